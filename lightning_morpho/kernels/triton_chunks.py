"""The kernels of the fused chunk networks; :mod:`lightning_morpho.kernels.triton` launches them.

A program does one tile of chunks and one split of the rows, by the matrix units or, where ``DIRECT``, without them.
The tiles of wide chunks come before those of narrow ones.
"""

# mypy: ignore-errors
# ruff: noqa: D103, SIM108

from __future__ import annotations

import triton
import triton.language as tl

from lightning_morpho.kernels.triton_direct import backward_few, forward_few
from lightning_morpho.kernels.triton_mlp import backward_tile, forward_tile
from lightning_morpho.kernels.triton_parts import position


@triton.jit
def forward_kernel(
    source, base, out, kept, w_in, b_in, w_out, rows0, rows1, alpha,
    positions, split_rows, inner, outer_stride, stride, feature_stride,
    tiles, tiles0, count0, count1, first_feature1, first_chunk1,
    PADDED: tl.constexpr, WIDTH0: tl.constexpr, WIDTH1: tl.constexpr, HIDDEN: tl.constexpr,
    PACK0: tl.constexpr, PACK1: tl.constexpr, COLUMNS: tl.constexpr, UNITS: tl.constexpr, BLOCK: tl.constexpr,
    ACTIVATION: tl.constexpr, FLAT: tl.constexpr, SPARSE: tl.constexpr, SKIP: tl.constexpr,
    KEEP: tl.constexpr, SAME: tl.constexpr, PRECISION: tl.constexpr, DIRECT: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0) % tiles
    start = tl.program_id(0) // tiles * split_rows
    stop = tl.minimum(start + split_rows, positions)
    kept += tile.to(tl.int64) * positions * COLUMNS
    if DIRECT:
        do: tl.constexpr = forward_few
    else:
        do: tl.constexpr = forward_tile
    if WIDTH1 > 0:
        wide = tile < tiles0
    else:
        wide: tl.constexpr = True
    if wide:
        do(
            source, base, out, kept, w_in, b_in, w_out, rows0, alpha, tile, start, stop, inner, outer_stride, stride,
            feature_stride, 0, 0, count0, PADDED, WIDTH0, HIDDEN, PACK0, COLUMNS, UNITS, BLOCK, ACTIVATION,
            FLAT, SPARSE, SKIP, KEEP, SAME, PRECISION,
        )  # fmt: skip
    else:
        do(
            source, base, out, kept, w_in, b_in, w_out, rows1, alpha, tile - tiles0, start, stop, inner, outer_stride,
            stride, feature_stride, first_feature1, first_chunk1, count1, PADDED, WIDTH1, HIDDEN, PACK1, COLUMNS,
            UNITS, BLOCK, ACTIVATION, FLAT, SPARSE, SKIP, KEEP, SAME, PRECISION,
        )  # fmt: skip


@triton.jit
def backward_kernel(
    source, grad, base, out, partial, w_in, b_in, w_out, rows0, rows1, alpha, places,
    positions, split_rows, inner, outer_stride, stride, feature_stride,
    tiles, tiles0, count0, count1, first_feature1, first_chunk1, partial1, features, copy_rows, every,
    PADDED: tl.constexpr, WIDTH0: tl.constexpr, WIDTH1: tl.constexpr, HIDDEN: tl.constexpr,
    PACK0: tl.constexpr, PACK1: tl.constexpr, COLUMNS: tl.constexpr, UNITS: tl.constexpr, BLOCK: tl.constexpr,
    ACTIVATION: tl.constexpr, FLAT: tl.constexpr, SPARSE: tl.constexpr, KEPT: tl.constexpr, SAME: tl.constexpr,
    INPUT: tl.constexpr, WEIGHTS: tl.constexpr, COPY: tl.constexpr, PRECISION: tl.constexpr, DIRECT: tl.constexpr,
):  # fmt: skip
    """``partial1`` is where the partial gradients of narrow chunks start.

    Where ``COPY`` columns, only one in ``every`` program does a tile. The others copy the gradient of what is not live,
    as many columns and ``copy_rows`` rows each: that fills the memory's time while the former wait for what they load.
    """
    program = tl.program_id(0) // every
    tile = program % tiles
    split = program // tiles
    start = split * split_rows
    stop = tl.minimum(start + split_rows, positions)
    if KEPT:
        source += tile.to(tl.int64) * positions * COLUMNS
    if COPY > 0:
        networks = (tl.program_id(0) % every == 0) & (start < positions)
    else:
        networks: tl.constexpr = True
    if DIRECT:
        do: tl.constexpr = backward_few
    else:
        do: tl.constexpr = backward_tile
    if WIDTH1 > 0:
        wide = tile < tiles0
    else:
        wide: tl.constexpr = True
    if networks:
        if wide:
            do(
                source, grad, base, out, partial, w_in, b_in, w_out, rows0, alpha, tile, split, start, stop, inner,
                outer_stride, stride, feature_stride, 0, 0, count0, PADDED, WIDTH0, HIDDEN, PACK0, COLUMNS, UNITS,
                BLOCK, ACTIVATION, FLAT, SPARSE, KEPT, SAME, INPUT, WEIGHTS, PRECISION,
            )  # fmt: skip
        else:
            do(
                source, grad, base, out, partial + partial1, w_in, b_in, w_out, rows1, alpha, tile - tiles0, split,
                start, stop, inner, outer_stride, stride, feature_stride, first_feature1, first_chunk1, count1, PADDED,
                WIDTH1, HIDDEN, PACK1, COLUMNS, UNITS, BLOCK, ACTIVATION, FLAT, SPARSE, KEPT, SAME, INPUT, WEIGHTS,
                PRECISION,
            )  # fmt: skip
    else:
        before = tl.minimum(program + 1, tl.cdiv(positions, split_rows) * tiles)  # that do a tile
        _copy_rest(
            grad, out, places, tl.program_id(0) - before, positions, copy_rows, inner, outer_stride, stride, features,
            first_feature1, first_chunk1, WIDTH0, WIDTH1, COPY, FLAT,
        )  # fmt: skip


@triton.jit
def _copy_rest(
    grad, out, places, program, positions, copy_rows, inner, outer_stride, stride,
    features, first_feature1, first_chunk1, WIDTH0: tl.constexpr, WIDTH1: tl.constexpr, COPY: tl.constexpr,
    FLAT: tl.constexpr,
):  # fmt: skip
    """Copy the columns of chunks without a place among the live ones."""
    blocks = tl.cdiv(features, COPY)
    k = program % blocks * COPY + tl.arange(0, COPY)
    if WIDTH1 > 0:
        chunk = tl.where(k < first_feature1, k // WIDTH0, first_chunk1 + (k - first_feature1) // WIDTH1)
        RUN: tl.constexpr = (WIDTH0 | WIDTH1) & -(WIDTH0 | WIDTH1)
    else:
        chunk = k // WIDTH0
        RUN: tl.constexpr = WIDTH0 & -WIDTH0
    rest = tl.load(places + chunk, mask=k < features, other=0) < 0
    rest = tl.max_constancy(rest, RUN)
    start = program // blocks * copy_rows
    stop = tl.minimum(start + copy_rows, positions)
    for row in range(start, stop, 16):
        m = row + tl.arange(0, 16)
        at = position(m, inner, outer_stride, stride, FLAT)[:, None] + k[None, :]
        mask = (m < stop)[:, None] & rest[None, :]
        tl.store(out + at, tl.load(grad + at, mask=mask), mask=mask)


@triton.jit
def finish_kernel(
    partial, places, alpha, d_w_in, d_b_in, d_w_out, chunks, splits, count0, count1, first_chunk1, partial1,
    PADDED: tl.constexpr, WIDTH0: tl.constexpr, WIDTH1: tl.constexpr, HIDDEN: tl.constexpr, SPARSE: tl.constexpr,
    BLOCK: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """Add up the splits' partial gradients; dormant chunks and the padding of narrow ones get zero."""
    EACH: tl.constexpr = HIDDEN * (2 * PADDED + 1)
    e = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    chunk = e // EACH
    r = e % EACH
    inside = chunk < chunks
    wide = chunk < first_chunk1
    width = tl.where(wide, WIDTH0, WIDTH1)
    count = tl.where(wide, count0, count1)
    live = inside & (tl.load(alpha + chunk, mask=inside, other=0.0) > 0)
    if SPARSE:
        place = tl.load(places + chunk, mask=live, other=0)
    else:
        place = tl.where(wide, chunk, chunk - first_chunk1)
    in_w_in = r < HIDDEN * PADDED
    in_b_in = (r >= HIDDEN * PADDED) & (r < HIDDEN * (PADDED + 1))
    in_w_out = r >= HIDDEN * (PADDED + 1)
    q = r - HIDDEN * (PADDED + 1)
    column = tl.where(in_w_in, r % PADDED, tl.where(in_b_in, 0, q // HIDDEN))
    at = tl.where(
        in_w_in,
        (r // PADDED) * width + column,
        tl.where(in_b_in, HIDDEN * width + r - HIDDEN * PADDED, HIDDEN * (width + 1) + q),
    )
    live &= column < width
    start = tl.where(wide, 0, partial1).to(tl.int64) + place * (HIDDEN * (2 * width + 1)) + at
    step = count * (HIDDEN * (2 * width + 1))
    total = tl.zeros((BLOCK,), tl.float32)
    splits = tl.where(tl.max(live.to(tl.int32), 0) > 0, splits, 0)
    for first in range(0, splits, SPLITS):  # several at a time: one after another is a chain of waits
        split = first + tl.arange(0, SPLITS)
        mask = (split < splits)[:, None] & live[None, :]
        term = tl.load(partial + split.to(tl.int64)[:, None] * step[None, :] + start[None, :], mask=mask, other=0.0)
        total += tl.sum(term, 0)
    tl.store(d_w_in + chunk * (HIDDEN * PADDED) + r, total, mask=inside & in_w_in)
    tl.store(d_b_in + chunk * HIDDEN + r - HIDDEN * PADDED, total, mask=inside & in_b_in)
    tl.store(d_w_out + chunk * (HIDDEN * PADDED) + q, total, mask=inside & in_w_out)
