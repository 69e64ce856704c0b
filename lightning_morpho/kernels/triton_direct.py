"""Device code for chunks of a few features, without the matrix units.

These would multiply mostly zeros, in float32 by three products each. Here a program takes some chunks and a block
of rows, and does one hidden unit of each chunk after another, in float32 throughout. Its kernels take the
arguments of those in :mod:`triton_mlp`; :mod:`lightning_morpho.kernels.triton` launches both.
"""

# mypy: ignore-errors
# ruff: noqa: D103, SIM108

from __future__ import annotations

import triton
import triton.language as tl

from lightning_morpho.kernels.triton_parts import activate, chunks_of, finite, position, slope


@triton.jit
def direct_forward_kernel(
    source, base, out, kept, w_in, b_in, w_out, rows0, rows1, alpha,
    positions, split_rows, inner, outer_stride, stride, feature_stride,
    tiles, tiles0, count0, count1, first_feature1, first_chunk1,
    PADDED: tl.constexpr, WIDTH0: tl.constexpr, WIDTH1: tl.constexpr, HIDDEN: tl.constexpr,
    PACK0: tl.constexpr, PACK1: tl.constexpr, COLUMNS: tl.constexpr, UNITS: tl.constexpr, BLOCK: tl.constexpr,
    ACTIVATION: tl.constexpr, FLAT: tl.constexpr, SPARSE: tl.constexpr, SKIP: tl.constexpr,
    KEEP: tl.constexpr, SAME: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0) % tiles
    start = tl.program_id(0) // tiles * split_rows
    stop = tl.minimum(start + split_rows, positions)
    kept += tile.to(tl.int64) * positions * COLUMNS
    if WIDTH1 > 0:
        wide = tile < tiles0
    else:
        wide: tl.constexpr = True
    if wide:
        _forward_few(
            source, base, out, kept, w_in, b_in, w_out, rows0, alpha, tile, start, stop, inner, outer_stride, stride,
            feature_stride, 0, 0, count0, PADDED, WIDTH0, HIDDEN, PACK0, COLUMNS, BLOCK, ACTIVATION, FLAT, SPARSE,
            SKIP, KEEP, SAME,
        )  # fmt: skip
    else:
        _forward_few(
            source, base, out, kept, w_in, b_in, w_out, rows1, alpha, tile - tiles0, start, stop, inner, outer_stride,
            stride, feature_stride, first_feature1, first_chunk1, count1, PADDED, WIDTH1, HIDDEN, PACK1, COLUMNS,
            BLOCK, ACTIVATION, FLAT, SPARSE, SKIP, KEEP, SAME,
        )  # fmt: skip


@triton.jit
def _few_of(
    rows, alpha, tile, feature_stride, first_feature, first_chunk, count,
    WIDTH: tl.constexpr, PACK: tl.constexpr, SIDE: tl.constexpr, SPARSE: tl.constexpr,
):  # fmt: skip
    """Chunks of a tile, their alpha, and where each of their features lies; features are padded to ``SIDE``."""
    chunk, valid = chunks_of(tile, tl.arange(0, PACK), rows, count, PACK, SPARSE)
    k = tl.arange(0, SIDE)
    live = valid[:, None] & (k < WIDTH)[None, :]
    strength = tl.load(alpha + first_chunk + chunk, mask=valid, other=0.0)
    offset = (first_feature + chunk[:, None] * WIDTH + k[None, :]).to(tl.int64) * feature_stride
    return first_chunk + chunk, valid, live, strength, offset


@triton.jit
def _unit_of(
    w_in, b_in, w_out, chunk, gate, j, PADDED: tl.constexpr, WIDTH: tl.constexpr, HIDDEN: tl.constexpr,
    SIDE: tl.constexpr,
):  # fmt: skip
    """Weights into one hidden unit of each chunk, its bias, and weights out of it."""
    k = tl.arange(0, SIDE)[None, :]
    mask = gate[:, None] & (k < WIDTH)
    unit = chunk * HIDDEN + j
    w1 = tl.load(w_in + unit[:, None] * PADDED + k, mask=mask, other=0.0).to(tl.float32)
    b = tl.load(b_in + unit, mask=gate, other=0.0).to(tl.float32)
    w2 = tl.load(w_out + (chunk[:, None] * PADDED + k) * HIDDEN + j, mask=mask, other=0.0).to(tl.float32)
    return w1[None, :, :], b[None, :], w2[None, :, :]


@triton.jit
def _forward_few(
    source, base, out, kept, w_in, b_in, w_out, rows, alpha,
    tile, start, stop, inner, outer_stride, stride, feature_stride, first_feature, first_chunk, count,
    PADDED: tl.constexpr, WIDTH: tl.constexpr, HIDDEN: tl.constexpr, PACK: tl.constexpr, COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr, ACTIVATION: tl.constexpr, FLAT: tl.constexpr, SPARSE: tl.constexpr, SKIP: tl.constexpr,
    KEEP: tl.constexpr, SAME: tl.constexpr,
):  # fmt: skip
    SIDE: tl.constexpr = COLUMNS // PACK
    chunk, _, live, strength, offset = _few_of(
        rows, alpha, tile, feature_stride, first_feature, first_chunk, count, WIDTH, PACK, SIDE, SPARSE
    )
    gate = strength > 0
    if SKIP:  # nothing to write where nothing lives
        stop = tl.where(tl.max(strength, 0) > 0, stop, start)
    for row in range(start, stop, BLOCK):
        m = row + tl.arange(0, BLOCK)
        at = position(m, inner, outer_stride, stride, FLAT)[:, None, None] + offset[None, :, :]
        mask = (m < stop)[:, None, None] & live[None, :, :]
        x = tl.load(source + at, mask=mask, other=0.0).to(tl.float32)
        f = tl.zeros((BLOCK, PACK, SIDE), tl.float32)
        for j in tl.static_range(HIDDEN):
            w1, b, w2 = _unit_of(w_in, b_in, w_out, chunk, gate, j, PADDED, WIDTH, HIDDEN, SIDE)
            f += finite(activate(tl.sum(x * w1, 2) + b, ACTIVATION))[:, :, None] * w2
        if SAME:
            y = x
        else:
            y = tl.load(base + at, mask=mask, other=0.0).to(tl.float32)
        y = tl.where(gate[None, :, None], y + strength[None, :, None] * finite(f), y)
        tl.store(out + at, y.to(source.dtype.element_ty), mask=mask)
        if KEEP:
            column = tl.arange(0, PACK)[:, None] * SIDE + tl.arange(0, SIDE)[None, :]
            at = m.to(tl.int64)[:, None, None] * COLUMNS + column[None, :, :]
            tl.store(kept + at, x.to(source.dtype.element_ty), mask=mask)


@triton.jit
def direct_backward_kernel(
    source, grad, base, out, partial, w_in, b_in, w_out, rows0, rows1, alpha,
    positions, split_rows, inner, outer_stride, stride, feature_stride,
    tiles, tiles0, count0, count1, first_feature1, first_chunk1, partial1,
    PADDED: tl.constexpr, WIDTH0: tl.constexpr, WIDTH1: tl.constexpr, HIDDEN: tl.constexpr,
    PACK0: tl.constexpr, PACK1: tl.constexpr, COLUMNS: tl.constexpr, UNITS: tl.constexpr, BLOCK: tl.constexpr,
    ACTIVATION: tl.constexpr, FLAT: tl.constexpr, SPARSE: tl.constexpr, KEPT: tl.constexpr, SAME: tl.constexpr,
    INPUT: tl.constexpr, WEIGHTS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Each program does ``BLOCK`` rows: ``split_rows`` is as many."""
    tile = tl.program_id(0) % tiles
    split = tl.program_id(0) // tiles
    start = split * split_rows
    if KEPT:
        source += tile.to(tl.int64) * positions * COLUMNS
    if WIDTH1 > 0:
        wide = tile < tiles0
    else:
        wide: tl.constexpr = True
    if wide:
        _backward_few(
            source, grad, base, out, partial, w_in, b_in, w_out, rows0, alpha, tile, split, start, positions, inner,
            outer_stride, stride, feature_stride, 0, 0, count0, PADDED, WIDTH0, HIDDEN, PACK0, COLUMNS, BLOCK,
            ACTIVATION, FLAT, SPARSE, KEPT, SAME, INPUT, WEIGHTS,
        )  # fmt: skip
    else:
        _backward_few(
            source, grad, base, out, partial + partial1, w_in, b_in, w_out, rows1, alpha, tile - tiles0, split, start,
            positions, inner, outer_stride, stride, feature_stride, first_feature1, first_chunk1, count1, PADDED,
            WIDTH1, HIDDEN, PACK1, COLUMNS, BLOCK, ACTIVATION, FLAT, SPARSE, KEPT, SAME, INPUT, WEIGHTS,
        )  # fmt: skip


@triton.jit
def _backward_few(
    source, grad, base, out, partial, w_in, b_in, w_out, rows, alpha,
    tile, split, start, stop, inner, outer_stride, stride, feature_stride, first_feature, first_chunk, count,
    PADDED: tl.constexpr, WIDTH: tl.constexpr, HIDDEN: tl.constexpr, PACK: tl.constexpr, COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr, ACTIVATION: tl.constexpr, FLAT: tl.constexpr, SPARSE: tl.constexpr, KEPT: tl.constexpr,
    SAME: tl.constexpr, INPUT: tl.constexpr, WEIGHTS: tl.constexpr,
):  # fmt: skip
    SIDE: tl.constexpr = COLUMNS // PACK
    chunk, valid, live, strength, offset = _few_of(
        rows, alpha, tile, feature_stride, first_feature, first_chunk, count, WIDTH, PACK, SIDE, SPARSE
    )
    gate = strength > 0
    m = start + tl.arange(0, BLOCK)
    k = tl.arange(0, SIDE)[None, :]
    at = position(m, inner, outer_stride, stride, FLAT)[:, None, None] + offset[None, :, :]
    mask = (m < stop)[:, None, None] & live[None, :, :]
    g = tl.load(grad + at, mask=mask, other=0.0).to(tl.float32)
    if KEPT:
        column = tl.arange(0, PACK)[:, None] * SIDE + k
        tiled = m.to(tl.int64)[:, None, None] * COLUMNS + column[None, :, :]
        x = tl.load(source + tiled, mask=mask & gate[None, :, None], other=0.0).to(tl.float32)
    else:
        x = tl.load(source + at, mask=mask & gate[None, :, None], other=0.0).to(tl.float32)
    slot = partial + (split.to(tl.int64) * count + tile * PACK + tl.arange(0, PACK)) * (HIDDEN * (2 * WIDTH + 1))
    d = tl.zeros((BLOCK, PACK, SIDE), tl.float32)
    if tl.max(strength, 0) > 0:
        for j in tl.static_range(HIDDEN):
            w1, b, w2 = _unit_of(w_in, b_in, w_out, chunk, gate, j, PADDED, WIDTH, HIDDEN, SIDE)
            h = tl.sum(x * w1, 2) + b
            dh = finite(tl.sum(g * w2, 2) * strength[None, :] * slope(h, ACTIVATION))
            if INPUT:
                d += dh[:, :, None] * w1
            if WEIGHTS:
                a = finite(activate(h, ACTIVATION))
                d_in = tl.sum(dh[:, :, None] * x, 0)
                d_out = tl.sum(a[:, :, None] * g, 0) * strength[:, None]
                tl.store(slot[:, None] + j * WIDTH + k, d_in, mask=live)
                tl.store(slot + HIDDEN * WIDTH + j, tl.sum(dh, 0), mask=valid)
                tl.store(slot[:, None] + HIDDEN * (WIDTH + 1) + k * HIDDEN + j, d_out, mask=live)
    if INPUT:
        d = finite(d)
        if SAME:
            d += g
        else:
            d += tl.load(base + at, mask=mask, other=0.0).to(tl.float32)
        tl.store(out + at, d.to(grad.dtype.element_ty), mask=mask)
