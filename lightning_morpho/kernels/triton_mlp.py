"""One tile of the fused chunk networks by the matrix units, for the kernels of :mod:`triton_chunks`."""

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
def forward_tile(
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
def backward_tile(
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
