"""Device code of the fused chunk networks; :mod:`lightning_morpho.kernels.triton` launches it."""

# mypy: ignore-errors
# ruff: noqa: D103, SIM108

from __future__ import annotations

import triton
import triton.language as tl


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
def _finite(x):
    """Nothing instead of what is not finite: a seed that diverges must reach neither the host nor its tile."""
    return tl.where(tl.abs(x) < float("inf"), x, 0.0)


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
def _features_of(tile, k, chunk, valid, count, PACK: tl.constexpr, WIDTH: tl.constexpr, SPARSE: tl.constexpr):
    """Feature of the group at each column of a tile, and whether there is one.

    Loads are as wide as the compiler can prove that neighbours are in order and share their mask.
    """
    if SPARSE:
        RUN: tl.constexpr = WIDTH & -WIDTH
        feature = chunk * WIDTH + k % WIDTH
        return tl.max_contiguous(tl.multiple_of(feature, RUN), RUN), valid
    else:
        feature = tile * (PACK * WIDTH) + k
        live = feature < count * WIDTH
        if k.shape[0] > PACK * WIDTH:
            live &= k < PACK * WIDTH
        return feature, live


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
    chunk_k, live_k = _chunks_of(tile, k // WIDTH, rows, count, PACK, SPARSE)
    chunk_j, live_j = _chunks_of(tile, j // HIDDEN, rows, count, PACK, SPARSE)
    feature, live_k = _features_of(tile, k, chunk_k, live_k, count, PACK, WIDTH, SPARSE)
    alpha_k = tl.load(alpha + first_chunk + chunk_k, mask=live_k, other=0.0)
    gate = live_k & (alpha_k > 0)
    block = gate[:, None] & live_j[None, :] & ((k // WIDTH)[:, None] == (j // HIDDEN)[None, :])
    unit = (first_chunk + chunk_j) * HIDDEN + j % HIDDEN
    dtype = source.dtype.element_ty
    w1 = tl.load(w_in + unit[None, :] * PADDED + (k % WIDTH)[:, None], mask=block, other=0.0).to(dtype)
    column = (first_chunk + chunk_k) * PADDED + k % WIDTH
    w2 = tl.load(w_out + column[None, :] * HIDDEN + (j % HIDDEN)[:, None], mask=tl.trans(block), other=0.0).to(dtype)
    b = tl.load(b_in + unit, mask=live_j, other=0.0).to(tl.float32)
    offset_k = (first_feature + feature).to(tl.int64) * feature_stride

    if SKIP:  # nothing to write where nothing lives
        stop = tl.where(tl.max(alpha_k, 0) > 0, stop, start)
    for row in range(start, stop, BLOCK):
        m = row + tl.arange(0, BLOCK)
        inside = m < stop
        at = _position(m, inner, outer_stride, stride, FLAT)[:, None] + offset_k[None, :]
        mask = inside[:, None] & live_k[None, :]
        x = tl.load(source + at, mask=mask, other=0.0)
        h = tl.dot(x, w1, input_precision=PRECISION) + b[None, :]
        f = tl.dot(_finite(_activate(h, ACTIVATION)).to(dtype), w2, input_precision=PRECISION)
        if SAME:
            y = x.to(tl.float32)
        else:
            y = tl.load(base + at, mask=mask, other=0.0).to(tl.float32)
        y = tl.where(gate[None, :], y + alpha_k[None, :] * _finite(f), y)
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
    chunk_k, live_k = _chunks_of(tile, k // WIDTH, rows, count, PACK, SPARSE)
    chunk_j, live_j = _chunks_of(tile, j // HIDDEN, rows, count, PACK, SPARSE)
    feature, live_k = _features_of(tile, k, chunk_k, live_k, count, PACK, WIDTH, SPARSE)
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

    for row in range(start, stop, BLOCK):
        m = row + tl.arange(0, BLOCK)
        inside = m < stop
        at = _position(m, inner, outer_stride, stride, FLAT)[:, None] + offset_k[None, :]
        mask = inside[:, None] & live_k[None, :]
        g = tl.load(grad + at, mask=mask, other=0.0)
        if KEPT:
            tiled = m.to(tl.int64)[:, None] * COLUMNS + k[None, :]
            x = tl.load(source + tiled, mask=inside[:, None] & (k >= 0)[None, :], other=0.0)
        else:
            x = tl.load(source + at, mask=mask, other=0.0)
        h = tl.dot(x, w1, input_precision=PRECISION) + b[None, :]
        dh = _finite(tl.dot(g, w2t, input_precision=PRECISION) * _slope(h, ACTIVATION))
        if WEIGHTS:
            a = _finite(_activate(h, ACTIVATION)).to(dtype)
            d_out = tl.dot(tl.trans(a), g, d_out, input_precision=PRECISION)
            d_in = tl.dot(tl.trans(dh.to(dtype)), x, d_in, input_precision=PRECISION)
            d_b += tl.sum(dh, 0)
        if INPUT:
            d = _finite(tl.dot(dh.to(dtype), w1t, input_precision=PRECISION))
            if SAME:
                d += g.to(tl.float32)
            else:
                d += tl.load(base + at, mask=mask, other=0.0).to(tl.float32)
            tl.store(out + at, d.to(dtype), mask=mask)
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
    for first in range(0, splits, SPLITS):  # several at a time: one after another is a chain of waits
        split = first + tl.arange(0, SPLITS)
        mask = (split < splits)[:, None] & live[None, :]
        term = tl.load(partial + split.to(tl.int64)[:, None] * step[None, :] + start[None, :], mask=mask, other=0.0)
        total += tl.sum(term, 0)
    tl.store(d_w_in + chunk * (HIDDEN * PADDED) + r, total, mask=inside & in_w_in)
    tl.store(d_b_in + chunk * HIDDEN + r - HIDDEN * PADDED, total, mask=inside & in_b_in)
    tl.store(d_w_out + chunk * (HIDDEN * PADDED) + q, total, mask=inside & in_w_out)
