"""Seeds as fused Triton kernels: each live chunk is read once and written once.

A tile is as many whole chunks as fit in 32 columns (64 for chunks wider than 32). Its weights are loaded
once, as blocks on a diagonal, and applied by the matrix units to block after block of rows. The backward
pass recomputes the hidden units and writes one partial weight gradient for each split of the rows; a second
kernel adds these up. Importing this module needs Triton; :mod:`lightning_morpho.kernels.dispatch` does
without it where it is missing.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from lightning_morpho.chunks import ChunkGroup
from lightning_morpho.kernels.active import ActiveSet
from lightning_morpho.kernels.geometry import ChunkMLPs, layout_of

SPARSE_BELOW = 0.6
"""Share of live chunks below which tiles are packed from live chunks alone, at the price of narrower loads."""
WRITES_ALL = True
"""A pass over all chunks writes every feature."""


# ---------------------------------------------------------------- on the device
@triton.jit
def _activate(h, ACTIVATION: tl.constexpr):
    if ACTIVATION == "relu":
        return tl.maximum(h, 0.0)
    elif ACTIVATION == "gelu":
        return 0.5 * h * (1.0 + tl.erf(h * 0.7071067811865476))
    elif ACTIVATION == "selu":
        return 1.0507009873554805 * tl.where(h > 0, h, 1.6732632423543772 * (tl.exp(tl.minimum(h, 0.0)) - 1.0))
    elif ACTIVATION == "silu":
        return h * tl.sigmoid(h)
    else:
        return 2.0 * tl.sigmoid(2.0 * h) - 1.0


@triton.jit
def _slope(h, ACTIVATION: tl.constexpr):
    if ACTIVATION == "relu":
        return (h > 0).to(tl.float32)
    elif ACTIVATION == "gelu":
        return 0.5 * (1.0 + tl.erf(h * 0.7071067811865476)) + h * tl.exp(-0.5 * h * h) * 0.3989422804014327
    elif ACTIVATION == "selu":
        return 1.0507009873554805 * tl.where(h > 0, 1.0, 1.6732632423543772 * tl.exp(tl.minimum(h, 0.0)))
    elif ACTIVATION == "silu":
        s = tl.sigmoid(h)
        return s * (1.0 + h * (1.0 - s))
    else:
        t = 2.0 * tl.sigmoid(2.0 * h) - 1.0
        return 1.0 - t * t


@triton.jit
def _position(m, inner, outer_stride, stride, FLAT: tl.constexpr):
    """Offset of each position, 64 bits: activations may hold more than 2^31 elements."""
    if FLAT:
        return m.to(tl.int64) * stride
    else:
        return (m // inner).to(tl.int64) * outer_stride + (m % inner).to(tl.int64) * stride


@triton.jit
def _chunks_of(tile, at, rows, count, PACK: tl.constexpr, SPARSE: tl.constexpr):
    """Chunk of the group in each place ``at`` of a tile, and whether there is one."""
    place = tile * PACK + at
    valid = (at < PACK) & (place < count)
    if SPARSE:
        return tl.load(rows + place, mask=valid, other=0), valid
    else:
        return place, valid


@triton.jit
def _forward(
    source, base, out, kept, w_in, b_in, w_out, rows, alpha,
    positions, split_rows, inner, outer_stride, stride, feature_stride, first_feature, first_chunk, count,
    PADDED: tl.constexpr, WIDTH: tl.constexpr, HIDDEN: tl.constexpr, PACK: tl.constexpr,
    COLUMNS: tl.constexpr, UNITS: tl.constexpr, BLOCK: tl.constexpr, ACTIVATION: tl.constexpr,
    FLAT: tl.constexpr, SPARSE: tl.constexpr, SKIP: tl.constexpr, KEEP: tl.constexpr, SAME: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0)
    k = tl.arange(0, COLUMNS)
    j = tl.arange(0, UNITS)
    chunk_k, live_k = _chunks_of(tile, k // WIDTH, rows, count, PACK, SPARSE)
    chunk_j, live_j = _chunks_of(tile, j // HIDDEN, rows, count, PACK, SPARSE)
    if SPARSE:
        feature = chunk_k * WIDTH + k % WIDTH
    else:
        feature = tile * (PACK * WIDTH) + k
    alpha_k = tl.load(alpha + first_chunk + chunk_k, mask=live_k, other=0.0)
    gate = live_k & (alpha_k > 0)
    block = gate[:, None] & live_j[None, :] & ((k // WIDTH)[:, None] == (j // HIDDEN)[None, :])
    unit = (first_chunk + chunk_j) * HIDDEN + j % HIDDEN
    dtype = source.dtype.element_ty
    w1 = tl.load(w_in + unit[None, :] * PADDED + (k % WIDTH)[:, None], mask=block, other=0.0).to(dtype)
    column = (first_chunk + chunk_k) * PADDED + k % WIDTH
    w2 = tl.load(
        w_out + column[None, :] * HIDDEN + (j % HIDDEN)[:, None], mask=tl.trans(block), other=0.0
    ).to(dtype)
    b = tl.load(b_in + unit, mask=live_j, other=0.0).to(tl.float32)
    offset_k = (first_feature + feature).to(tl.int64) * feature_stride

    start = tl.program_id(1) * split_rows
    stop = tl.minimum(start + split_rows, positions)
    if SKIP:  # nothing to write where nothing lives
        stop = tl.where(tl.max(alpha_k, 0) > 0, stop, start)
    for row in range(start, stop, BLOCK):
        m = row + tl.arange(0, BLOCK)
        inside = m < stop
        at = _position(m, inner, outer_stride, stride, FLAT)[:, None] + offset_k[None, :]
        mask = inside[:, None] & live_k[None, :]
        x = tl.load(source + at, mask=mask, other=0.0)
        h = tl.dot(x, w1, input_precision=PRECISION) + b[None, :]
        f = tl.dot(_activate(h, ACTIVATION).to(dtype), w2, input_precision=PRECISION)
        if SAME:
            y = x.to(tl.float32)
        else:
            y = tl.load(base + at, mask=mask, other=0.0).to(tl.float32)
        y = tl.where(gate[None, :], y + alpha_k[None, :] * f, y)
        tl.store(out + at, y.to(dtype), mask=mask)
        if KEEP:
            at = (tile.to(tl.int64) * positions + m)[:, None] * COLUMNS + k[None, :]
            tl.store(kept + at, x, mask=inside[:, None] & (k >= 0)[None, :])


@triton.jit
def _backward(
    source, grad, base, out, partial, w_in, b_in, w_out, rows, alpha,
    positions, split_rows, inner, outer_stride, stride, feature_stride, first_feature, first_chunk, count,
    PADDED: tl.constexpr, WIDTH: tl.constexpr, HIDDEN: tl.constexpr, PACK: tl.constexpr,
    COLUMNS: tl.constexpr, UNITS: tl.constexpr, BLOCK: tl.constexpr, ACTIVATION: tl.constexpr,
    FLAT: tl.constexpr, SPARSE: tl.constexpr, KEPT: tl.constexpr, SAME: tl.constexpr,
    INPUT: tl.constexpr, WEIGHTS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0)
    k = tl.arange(0, COLUMNS)
    j = tl.arange(0, UNITS)
    chunk_k, live_k = _chunks_of(tile, k // WIDTH, rows, count, PACK, SPARSE)
    chunk_j, live_j = _chunks_of(tile, j // HIDDEN, rows, count, PACK, SPARSE)
    if SPARSE:
        feature = chunk_k * WIDTH + k % WIDTH
    else:
        feature = tile * (PACK * WIDTH) + k
    alpha_k = tl.load(alpha + first_chunk + chunk_k, mask=live_k, other=0.0)
    gate = live_k & (alpha_k > 0)
    block = gate[:, None] & live_j[None, :] & ((k // WIDTH)[:, None] == (j // HIDDEN)[None, :])
    unit = (first_chunk + chunk_j) * HIDDEN + j % HIDDEN
    dtype = grad.dtype.element_ty
    w1 = tl.load(w_in + unit[None, :] * PADDED + (k % WIDTH)[:, None], mask=block, other=0.0).to(dtype)
    column = (first_chunk + chunk_k) * PADDED + k % WIDTH
    w2t = tl.load(w_out + column[:, None] * HIDDEN + (j % HIDDEN)[None, :], mask=block, other=0.0)
    w2t = (w2t.to(tl.float32) * alpha_k[:, None]).to(dtype)
    b = tl.load(b_in + unit, mask=live_j, other=0.0).to(tl.float32)
    if INPUT:
        w1t = tl.trans(w1)
    offset_k = (first_feature + feature).to(tl.int64) * feature_stride
    d_in = tl.zeros((UNITS, COLUMNS), tl.float32)
    d_out = tl.zeros((UNITS, COLUMNS), tl.float32)
    d_b = tl.zeros((UNITS,), tl.float32)

    start = tl.program_id(1) * split_rows
    stop = tl.minimum(start + split_rows, positions)
    for row in range(start, stop, BLOCK):
        m = row + tl.arange(0, BLOCK)
        inside = m < stop
        at = _position(m, inner, outer_stride, stride, FLAT)[:, None] + offset_k[None, :]
        mask = inside[:, None] & live_k[None, :]
        g = tl.load(grad + at, mask=mask, other=0.0)
        if KEPT:
            tiled = (tile.to(tl.int64) * positions + m)[:, None] * COLUMNS + k[None, :]
            x = tl.load(source + tiled, mask=inside[:, None] & (k >= 0)[None, :], other=0.0)
        else:
            x = tl.load(source + at, mask=mask, other=0.0)
        h = tl.dot(x, w1, input_precision=PRECISION) + b[None, :]
        dh = tl.dot(g, w2t, input_precision=PRECISION) * _slope(h, ACTIVATION)
        if WEIGHTS:
            a = _activate(h, ACTIVATION).to(dtype)
            d_out = tl.dot(tl.trans(a), g, d_out, input_precision=PRECISION)
            d_in = tl.dot(tl.trans(dh.to(dtype)), x, d_in, input_precision=PRECISION)
            d_b += tl.sum(dh, 0)
        if INPUT:
            d = tl.dot(dh.to(dtype), w1t, input_precision=PRECISION)
            if SAME:
                d += g.to(tl.float32)
            else:
                d += tl.load(base + at, mask=mask, other=0.0).to(tl.float32)
            tl.store(out + at, d.to(dtype), mask=mask)
    if WEIGHTS:
        place = tile * PACK + j // HIDDEN
        slot = partial + (tl.program_id(1).to(tl.int64) * count + place) * (HIDDEN * (2 * WIDTH + 1))
        u = j % HIDDEN
        own = tl.trans(block)
        tl.store(slot[:, None] + (u * WIDTH)[:, None] + (k % WIDTH)[None, :], d_in, mask=own)
        tl.store(slot + HIDDEN * WIDTH + u, d_b, mask=live_j)
        d_out *= alpha_k[None, :]
        tl.store(slot[:, None] + (HIDDEN * (WIDTH + 1) + u)[:, None] + ((k % WIDTH) * HIDDEN)[None, :], d_out, mask=own)


@triton.jit
def _finish(
    partial, places, alpha, d_w_in, d_b_in, d_w_out, group_chunks, count, splits, first_chunk,
    PADDED: tl.constexpr, WIDTH: tl.constexpr, HIDDEN: tl.constexpr, SPARSE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Add up the splits' partial gradients; dormant chunks and the padding of narrow ones get zero."""
    EACH: tl.constexpr = HIDDEN * (2 * PADDED + 1)
    LENGTH: tl.constexpr = HIDDEN * (2 * WIDTH + 1)
    e = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    n = e // EACH
    r = e % EACH
    inside = n < group_chunks
    live = inside & (tl.load(alpha + first_chunk + n, mask=inside, other=0.0) > 0)
    if SPARSE:
        place = tl.load(places + first_chunk + n, mask=live, other=0)
    else:
        place = n
    in_w_in = r < HIDDEN * PADDED
    in_b_in = (r >= HIDDEN * PADDED) & (r < HIDDEN * (PADDED + 1))
    in_w_out = r >= HIDDEN * (PADDED + 1)
    q = r - HIDDEN * (PADDED + 1)
    column = tl.where(in_w_in, r % PADDED, tl.where(in_b_in, 0, q // HIDDEN))
    at = tl.where(
        in_w_in,
        (r // PADDED) * WIDTH + column,
        tl.where(in_b_in, HIDDEN * WIDTH + r - HIDDEN * PADDED, HIDDEN * (WIDTH + 1) + q),
    )
    live &= column < WIDTH
    total = tl.zeros((BLOCK,), tl.float32)
    for split in range(splits):
        row = (split * count + place).to(tl.int64)
        total += tl.load(partial + row * LENGTH + at, mask=live, other=0.0)
    chunk = first_chunk + n
    tl.store(d_w_in + chunk * (HIDDEN * PADDED) + r, total, mask=inside & in_w_in)
    tl.store(d_b_in + chunk * HIDDEN + r - HIDDEN * PADDED, total, mask=inside & in_b_in)
    tl.store(d_w_out + chunk * (HIDDEN * PADDED) + q, total, mask=inside & in_w_out)


# ---------------------------------------------------------------- on the host
class _Tiling(NamedTuple):
    """How a group's chunks are cut into tiles, and rows into splits."""

    pack: int
    columns: int
    units: int
    tiles: int
    block: int
    splits: int
    split_rows: int


FORWARD_BLOCK, FORWARD_WARPS, FORWARD_STAGES, FORWARD_PROGRAMS = 128, 4, 3, 1056
BACKWARD_BLOCK, BACKWARD_WARPS, BACKWARD_STAGES, BACKWARD_PROGRAMS = 64, 4, 3, 1056
"""Rows a step, warps, pipeline depth and programs of a launch: the best found on an H200."""


def _tiling(group: ChunkGroup, hidden: int, count: int, positions: int, block: int, programs: int) -> _Tiling:
    most_columns, most_units = (32, 64) if group.width <= 32 and hidden <= 64 else (64, 128)
    pack = max(1, min(most_columns // group.width, most_units // hidden))
    columns = max(16, triton.next_power_of_2(pack * group.width))
    units = max(16, triton.next_power_of_2(pack * hidden))
    tiles = triton.cdiv(max(count, 1), pack)
    block = min(block, max(16, triton.next_power_of_2(positions)))
    steps = triton.cdiv(positions, block)
    each = triton.cdiv(steps, min(steps, max(1, programs // tiles)))
    return _Tiling(pack, columns, units, tiles, block, triton.cdiv(steps, each), each * block)


def _precision(dtype: torch.dtype) -> str:
    return "tf32" if dtype is torch.float32 else "ieee"


def forward_(
    networks: ChunkMLPs,
    weights: list[Tensor],
    active: ActiveSet,
    source: Tensor,
    base: Tensor,
    out: Tensor,
    *,
    sparse: bool,
    keep: bool,
) -> list[Tensor]:
    """Write ``base`` plus what the seeds of one bed give for ``source`` to ``out``.

    Arguments as for :func:`lightning_morpho.kernels.batched.forward_`; ``source``, ``base`` and ``out`` lie in
    memory alike. What it keeps has the shape ``(tiles, M, columns)``.
    """
    layout = layout_of(networks.columns(source))
    assert layout is not None
    kept: list[Tensor] = []
    for group, rows in zip(networks.chunks.groups, active.rows, strict=True):
        count = len(rows) if sparse else group.count
        t = _tiling(group, networks.hidden, count, layout.positions, FORWARD_BLOCK, FORWARD_PROGRAMS)
        saved = source.new_empty((t.tiles, layout.positions, t.columns) if keep else 0)
        if keep:
            kept.append(saved)
        if not count:
            continue
        _forward[t.tiles, t.splits](
            source, base, out, saved, *weights, rows, active.alpha,
            layout.positions, t.split_rows, *layout[1:], group.first_feature, group.first_chunk, count,
            networks.chunks.max_width, group.width, networks.hidden, t.pack,
            t.columns, t.units, t.block, networks.activation,
            layout.inner == layout.positions, sparse, base is out, keep, base is source,
            _precision(source.dtype), num_warps=FORWARD_WARPS, num_stages=FORWARD_STAGES,
        )  # fmt: skip
    return kept


def backward_(
    networks: ChunkMLPs,
    weights: list[Tensor],
    active: ActiveSet,
    source: Tensor | list[Tensor],
    grad: Tensor,
    base: Tensor,
    out: Tensor | None,
    *,
    sparse: bool,
    needs_weights: bool,
) -> list[Tensor] | None:
    """Gradients of :func:`forward_` of one bed.

    Arguments and result as for :func:`lightning_morpho.kernels.batched.backward_`; ``grad``, ``base``, ``out``
    and a whole ``source`` lie in memory alike.
    """
    layout = layout_of(networks.columns(grad))
    assert layout is not None
    grads = [torch.empty_like(w) for w in weights] if needs_weights else None
    for index, (group, rows) in enumerate(zip(networks.chunks.groups, active.rows, strict=True)):
        count = len(rows) if sparse else group.count
        t = _tiling(group, networks.hidden, count, layout.positions, BACKWARD_BLOCK, BACKWARD_PROGRAMS)
        each = networks.hidden * (2 * group.width + 1)
        shape = (t.splits, count, each) if needs_weights else 0
        partial = torch.empty(shape, dtype=torch.float32, device=grad.device)
        kept = isinstance(source, list)
        if count:
            _backward[t.tiles, t.splits](
                source[index] if kept else source, grad, base, grad if out is None else out, partial,
                *weights, rows, active.alpha,
                layout.positions, t.split_rows, *layout[1:], group.first_feature, group.first_chunk, count,
                networks.chunks.max_width, group.width, networks.hidden, t.pack,
                t.columns, t.units, t.block, networks.activation,
                layout.inner == layout.positions, sparse, kept, base is grad, out is not None, needs_weights,
                _precision(grad.dtype), num_warps=BACKWARD_WARPS, num_stages=BACKWARD_STAGES,
            )  # fmt: skip
        if grads is not None:
            _finish_group(networks, group, active, grads, partial, count, t.splits, sparse)
    return grads


def _finish_group(
    networks: ChunkMLPs,
    group: ChunkGroup,
    active: ActiveSet,
    grads: list[Tensor],
    partial: Tensor,
    count: int,
    splits: int,
    sparse: bool,
) -> None:
    padded, block = networks.chunks.max_width, 256
    elements = group.count * networks.hidden * (2 * padded + 1)
    arguments: tuple[Any, ...] = (group.count, count, splits if count else 0, group.first_chunk)
    _finish[(triton.cdiv(elements, block),)](
        partial, active.places, active.alpha, *grads, *arguments,
        padded, group.width, networks.hidden, sparse, block, num_warps=4,
    )  # fmt: skip
