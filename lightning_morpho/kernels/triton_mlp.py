"""Device code of the fused chunk networks by the matrix units; :mod:`lightning_morpho.kernels.triton` launches it."""

# mypy: ignore-errors
# ruff: noqa: D103, SIM108

from __future__ import annotations

import triton
import triton.language as tl

from lightning_morpho.kernels.triton_parts import activate, chunks_of, features_of, finite, position, slope


@triton.jit
def _tile_of(
    w_in, b_in, rows, alpha, tile, feature_stride, first_feature, first_chunk, count,
    PADDED: tl.constexpr, WIDTH: tl.constexpr, HIDDEN: tl.constexpr, PACK: tl.constexpr,
    COLUMNS: tl.constexpr, UNITS: tl.constexpr, SPARSE: tl.constexpr,
):  # fmt: skip
    """What both passes need of a tile: masks, where its features and weights lie, and the way into the hidden units."""
    k = tl.arange(0, COLUMNS)
    j = tl.arange(0, UNITS)
    chunk_k, live_k = chunks_of(tile, k // WIDTH, rows, count, PACK, SPARSE)
    chunk_j, live_j = chunks_of(tile, j // HIDDEN, rows, count, PACK, SPARSE)
    feature, live_k = features_of(tile, k, chunk_k, live_k, count, PACK, WIDTH, SPARSE)
    alpha_k = tl.load(alpha + first_chunk + chunk_k, mask=live_k, other=0.0)
    gate = live_k & (alpha_k > 0)
    block = gate[:, None] & live_j[None, :] & ((k // WIDTH)[:, None] == (j // HIDDEN)[None, :])
    unit = (first_chunk + chunk_j) * HIDDEN + j % HIDDEN
    w1 = tl.load(w_in + unit[None, :] * PADDED + (k % WIDTH)[:, None], mask=block, other=0.0)
    b = tl.load(b_in + unit, mask=live_j, other=0.0).to(tl.float32)
    column = ((first_chunk + chunk_k) * PADDED + k % WIDTH) * HIDDEN
    offset_k = (first_feature + feature).to(tl.int64) * feature_stride
    return live_k, live_j, alpha_k, gate, block, w1, b, column, offset_k


@triton.jit
def forward_kernel(
    source, base, out, kept, w_in, b_in, w_out, rows0, rows1, alpha,
    positions, split_rows, inner, outer_stride, stride, feature_stride,
    tiles, tiles0, count0, count1, first_feature1, first_chunk1,
    PADDED: tl.constexpr, WIDTH0: tl.constexpr, WIDTH1: tl.constexpr, HIDDEN: tl.constexpr,
    PACK0: tl.constexpr, PACK1: tl.constexpr, COLUMNS: tl.constexpr, UNITS: tl.constexpr, BLOCK: tl.constexpr,
    ACTIVATION: tl.constexpr, FLAT: tl.constexpr, SPARSE: tl.constexpr, SKIP: tl.constexpr,
    KEEP: tl.constexpr, SAME: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile and one split of the rows a program; the tiles of wide chunks come before those of narrow ones."""
    tile = tl.program_id(0) % tiles
    start = tl.program_id(0) // tiles * split_rows
    stop = tl.minimum(start + split_rows, positions)
    kept += tile.to(tl.int64) * positions * COLUMNS
    if WIDTH1 > 0:
        wide = tile < tiles0
    else:
        wide: tl.constexpr = True
    if wide:
        _forward_tile(
            source, base, out, kept, w_in, b_in, w_out, rows0, alpha, tile, start, stop, inner, outer_stride, stride,
            feature_stride, 0, 0, count0, PADDED, WIDTH0, HIDDEN, PACK0, COLUMNS, UNITS, BLOCK, ACTIVATION,
            FLAT, SPARSE, SKIP, KEEP, SAME, PRECISION,
        )  # fmt: skip
    else:
        _forward_tile(
            source, base, out, kept, w_in, b_in, w_out, rows1, alpha, tile - tiles0, start, stop, inner, outer_stride,
            stride, feature_stride, first_feature1, first_chunk1, count1, PADDED, WIDTH1, HIDDEN, PACK1, COLUMNS,
            UNITS, BLOCK, ACTIVATION, FLAT, SPARSE, SKIP, KEEP, SAME, PRECISION,
        )  # fmt: skip


@triton.jit
def _forward_tile(
    source, base, out, kept, w_in, b_in, w_out, rows, alpha,
    tile, start, stop, inner, outer_stride, stride, feature_stride, first_feature, first_chunk, count,
    PADDED: tl.constexpr, WIDTH: tl.constexpr, HIDDEN: tl.constexpr, PACK: tl.constexpr,
    COLUMNS: tl.constexpr, UNITS: tl.constexpr, BLOCK: tl.constexpr, ACTIVATION: tl.constexpr,
    FLAT: tl.constexpr, SPARSE: tl.constexpr, SKIP: tl.constexpr,
    KEEP: tl.constexpr, SAME: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    k = tl.arange(0, COLUMNS)
    j = tl.arange(0, UNITS)
    live_k, _, alpha_k, gate, block, w1, b, column, offset_k = _tile_of(
        w_in, b_in, rows, alpha, tile, feature_stride, first_feature, first_chunk, count,
        PADDED, WIDTH, HIDDEN, PACK, COLUMNS, UNITS, SPARSE,
    )  # fmt: skip
    dtype = source.dtype.element_ty
    w1 = w1.to(dtype)
    w2 = tl.load(w_out + column[None, :] + (j % HIDDEN)[:, None], mask=tl.trans(block), other=0.0).to(dtype)

    if SKIP:  # nothing to write where nothing lives
        stop = tl.where(tl.max(alpha_k, 0) > 0, stop, start)
    for row in range(start, stop, BLOCK):
        m = row + tl.arange(0, BLOCK)
        inside = m < stop
        at = position(m, inner, outer_stride, stride, FLAT)[:, None] + offset_k[None, :]
        mask = inside[:, None] & live_k[None, :]
        x = tl.load(source + at, mask=mask, other=0.0)
        h = tl.dot(x, w1, input_precision=PRECISION) + b[None, :]
        f = tl.dot(finite(activate(h, ACTIVATION)).to(dtype), w2, input_precision=PRECISION)
        if SAME:
            y = x.to(tl.float32)
        else:
            y = tl.load(base + at, mask=mask, other=0.0).to(tl.float32)
        y = tl.where(gate[None, :], y + alpha_k[None, :] * finite(f), y)
        tl.store(out + at, y.to(dtype), mask=mask)
        if KEEP:
            at = m.to(tl.int64)[:, None] * COLUMNS + k[None, :]
            tl.store(kept + at, x, mask=inside[:, None] & (k >= 0)[None, :])


@triton.jit
def backward_kernel(
    source, grad, base, out, partial, w_in, b_in, w_out, rows0, rows1, alpha,
    positions, split_rows, inner, outer_stride, stride, feature_stride,
    tiles, tiles0, count0, count1, first_feature1, first_chunk1, partial1,
    PADDED: tl.constexpr, WIDTH0: tl.constexpr, WIDTH1: tl.constexpr, HIDDEN: tl.constexpr,
    PACK0: tl.constexpr, PACK1: tl.constexpr, COLUMNS: tl.constexpr, UNITS: tl.constexpr, BLOCK: tl.constexpr,
    ACTIVATION: tl.constexpr, FLAT: tl.constexpr, SPARSE: tl.constexpr, KEPT: tl.constexpr, SAME: tl.constexpr,
    INPUT: tl.constexpr, WEIGHTS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Work divided as in the forward kernel; ``partial1`` is where the partial gradients of narrow chunks start."""
    tile = tl.program_id(0) % tiles
    split = tl.program_id(0) // tiles
    start = split * split_rows
    stop = tl.minimum(start + split_rows, positions)
    if KEPT:
        source += tile.to(tl.int64) * positions * COLUMNS
    if WIDTH1 > 0:
        wide = tile < tiles0
    else:
        wide: tl.constexpr = True
    if wide:
        _backward_tile(
            source, grad, base, out, partial, w_in, b_in, w_out, rows0, alpha, tile, split, start, stop, inner,
            outer_stride, stride, feature_stride, 0, 0, count0, PADDED, WIDTH0, HIDDEN, PACK0, COLUMNS, UNITS, BLOCK,
            ACTIVATION, FLAT, SPARSE, KEPT, SAME, INPUT, WEIGHTS, PRECISION,
        )  # fmt: skip
    else:
        _backward_tile(
            source, grad, base, out, partial + partial1, w_in, b_in, w_out, rows1, alpha, tile - tiles0, split, start,
            stop, inner, outer_stride, stride, feature_stride, first_feature1, first_chunk1, count1, PADDED, WIDTH1,
            HIDDEN, PACK1, COLUMNS, UNITS, BLOCK, ACTIVATION, FLAT, SPARSE, KEPT, SAME, INPUT, WEIGHTS, PRECISION,
        )  # fmt: skip


@triton.jit
def _backward_tile(
    source, grad, base, out, partial, w_in, b_in, w_out, rows, alpha,
    tile, split, start, stop, inner, outer_stride, stride, feature_stride, first_feature, first_chunk, count,
    PADDED: tl.constexpr, WIDTH: tl.constexpr, HIDDEN: tl.constexpr, PACK: tl.constexpr,
    COLUMNS: tl.constexpr, UNITS: tl.constexpr, BLOCK: tl.constexpr, ACTIVATION: tl.constexpr,
    FLAT: tl.constexpr, SPARSE: tl.constexpr, KEPT: tl.constexpr, SAME: tl.constexpr,
    INPUT: tl.constexpr, WEIGHTS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    k = tl.arange(0, COLUMNS)
    j = tl.arange(0, UNITS)
    live_k, live_j, alpha_k, _, block, w1, b, column, offset_k = _tile_of(
        w_in, b_in, rows, alpha, tile, feature_stride, first_feature, first_chunk, count,
        PADDED, WIDTH, HIDDEN, PACK, COLUMNS, UNITS, SPARSE,
    )  # fmt: skip
    dtype = grad.dtype.element_ty
    w1 = w1.to(dtype)
    w2t = tl.load(w_out + column[:, None] + (j % HIDDEN)[None, :], mask=block, other=0.0)
    w2t = (w2t.to(tl.float32) * alpha_k[:, None]).to(dtype)
    if INPUT:
        w1t = tl.trans(w1)
    d_in = tl.zeros((UNITS, COLUMNS), tl.float32)
    d_out = tl.zeros((UNITS, COLUMNS), tl.float32)
    d_b = tl.zeros((UNITS,), tl.float32)

    rest = tl.where(tl.max(alpha_k, 0) > 0, stop, start)
    for row in range(start, rest, BLOCK):
        m = row + tl.arange(0, BLOCK)
        inside = m < stop
        at = position(m, inner, outer_stride, stride, FLAT)[:, None] + offset_k[None, :]
        mask = inside[:, None] & live_k[None, :]
        g = tl.load(grad + at, mask=mask, other=0.0)
        if KEPT:
            tiled = m.to(tl.int64)[:, None] * COLUMNS + k[None, :]
            x = tl.load(source + tiled, mask=inside[:, None] & (k >= 0)[None, :], other=0.0)
        else:
            x = tl.load(source + at, mask=mask, other=0.0)
        h = tl.dot(x, w1, input_precision=PRECISION) + b[None, :]
        dh = finite(tl.dot(g, w2t, input_precision=PRECISION) * slope(h, ACTIVATION))
        if WEIGHTS:
            a = finite(activate(h, ACTIVATION)).to(dtype)
            d_out = tl.dot(tl.trans(a), g, d_out, input_precision=PRECISION)
            d_in = tl.dot(tl.trans(dh.to(dtype)), x, d_in, input_precision=PRECISION)
            d_b += tl.sum(dh, 0)
        if INPUT:
            d = finite(tl.dot(dh.to(dtype), w1t, input_precision=PRECISION))
            if SAME:
                d += g.to(tl.float32)
            else:
                d += tl.load(base + at, mask=mask, other=0.0).to(tl.float32)
            tl.store(out + at, d.to(dtype), mask=mask)
    if INPUT:  # where nothing lives the gradient passes by
        for row in range(rest, stop, BLOCK):
            m = row + tl.arange(0, BLOCK)
            at = position(m, inner, outer_stride, stride, FLAT)[:, None] + offset_k[None, :]
            mask = (m < stop)[:, None] & live_k[None, :]
            tl.store(out + at, tl.load(base + at, mask=mask, other=0.0), mask=mask)
    if WEIGHTS:
        place = tile * PACK + j // HIDDEN
        slot = partial + (split.to(tl.int64) * count + place) * (HIDDEN * (2 * WIDTH + 1))
        u = j % HIDDEN
        own = tl.trans(block)
        tl.store(slot[:, None] + (u * WIDTH)[:, None] + (k % WIDTH)[None, :], d_in, mask=own)
        tl.store(slot + HIDDEN * WIDTH + u, d_b, mask=live_j)
        d_out *= alpha_k[None, :]
        tl.store(slot[:, None] + (HIDDEN * (WIDTH + 1) + u)[:, None] + ((k % WIDTH) * HIDDEN)[None, :], d_out, mask=own)


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
