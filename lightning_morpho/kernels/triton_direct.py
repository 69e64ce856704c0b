"""Device code for chunks of a few features that lie apart in memory, as in convolutions with channels first.

One program does one chunk and a run of positions: its few weights are scalars, and nothing goes through the
matrix units, which would multiply mostly zeros here. :mod:`lightning_morpho.kernels.triton` launches it.
"""

# mypy: ignore-errors
# ruff: noqa: D103, SIM108

from __future__ import annotations

import triton
import triton.language as tl

from lightning_morpho.kernels.triton_mlp import _activate, _position, _slope


@triton.jit
def direct_forward_kernel(
    source, base, out, kept, w_in, b_in, w_out, rows0, rows1, alpha,
    positions, inner, outer_stride, stride, feature_stride, count0, first_feature1, first_chunk1,
    PADDED: tl.constexpr, WIDTH0: tl.constexpr, WIDTH1: tl.constexpr, HIDDEN: tl.constexpr,
    COLUMNS: tl.constexpr, BLOCK: tl.constexpr, ACTIVATION: tl.constexpr, FLAT: tl.constexpr, SPARSE: tl.constexpr,
    SKIP: tl.constexpr, KEEP: tl.constexpr, SAME: tl.constexpr,
):  # fmt: skip
    chunk, width, feature, _ = _chunk_of(
        tl.program_id(0), rows0, rows1, count0, first_feature1, first_chunk1, WIDTH0, WIDTH1, SPARSE
    )
    m = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    k = tl.arange(0, COLUMNS)
    live_k = k < width
    mask = (m < positions)[:, None] & live_k[None, :]
    at = _position(m, inner, outer_stride, stride, FLAT)[:, None] + (feature + k).to(tl.int64)[None, :] * feature_stride
    strength = tl.load(alpha + chunk + tl.arange(0, 1))  # of one element: it broadcasts
    if SKIP:
        mask &= (strength > 0)[:, None]  # nothing to write where nothing lives
    x = tl.load(source + at, mask=mask, other=0.0)
    y = x.to(tl.float32)
    f = tl.zeros((BLOCK, COLUMNS), tl.float32)
    for j in tl.static_range(HIDDEN):
        w1 = tl.load(w_in + (chunk * HIDDEN + j) * PADDED + k, mask=live_k, other=0.0).to(tl.float32)
        w2 = tl.load(w_out + (chunk * PADDED + k) * HIDDEN + j, mask=live_k, other=0.0).to(tl.float32)
        h = tl.sum(y * w1[None, :], 1) + tl.load(b_in + chunk * HIDDEN + j).to(tl.float32)
        f += _activate(h, ACTIVATION)[:, None] * w2[None, :]
    if not SAME:
        y = tl.load(base + at, mask=mask, other=0.0).to(tl.float32)
    y = tl.where((strength > 0)[:, None], y + strength[:, None] * f, y)
    tl.store(out + at, y.to(source.dtype.element_ty), mask=mask)
    if KEEP:
        row = (tl.program_id(0) * COLUMNS + k).to(tl.int64) * positions
        tl.store(kept + row[None, :] + m[:, None], x, mask=mask)


@triton.jit
def direct_backward_kernel(
    source, grad, base, out, partial, w_in, b_in, w_out, rows0, rows1, alpha,
    positions, inner, outer_stride, stride, feature_stride, count0, first_feature1, first_chunk1, count1, partial1,
    PADDED: tl.constexpr, WIDTH0: tl.constexpr, WIDTH1: tl.constexpr, HIDDEN: tl.constexpr,
    COLUMNS: tl.constexpr, BLOCK: tl.constexpr, ACTIVATION: tl.constexpr, FLAT: tl.constexpr, SPARSE: tl.constexpr,
    KEPT: tl.constexpr, SAME: tl.constexpr, INPUT: tl.constexpr, WEIGHTS: tl.constexpr,
):  # fmt: skip
    chunk, width, feature, wide = _chunk_of(
        tl.program_id(0), rows0, rows1, count0, first_feature1, first_chunk1, WIDTH0, WIDTH1, SPARSE
    )
    m = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    k = tl.arange(0, COLUMNS)
    live_k = k < width
    mask = (m < positions)[:, None] & live_k[None, :]
    at = _position(m, inner, outer_stride, stride, FLAT)[:, None] + (feature + k).to(tl.int64)[None, :] * feature_stride
    strength = tl.load(alpha + chunk + tl.arange(0, 1))  # of one element: it broadcasts
    g = tl.load(grad + at, mask=mask, other=0.0).to(tl.float32)
    if KEPT:
        row = (tl.program_id(0) * COLUMNS + k).to(tl.int64) * positions
        x = tl.load(source + row[None, :] + m[:, None], mask=mask & (strength > 0)[:, None], other=0.0).to(tl.float32)
    else:
        x = tl.load(source + at, mask=mask, other=0.0).to(tl.float32)
    place = tl.where(wide, tl.program_id(0), tl.program_id(0) - count0)
    count = tl.where(wide, count0, count1)
    length = HIDDEN * (2 * width + 1)
    slot = partial + tl.where(wide, 0, partial1).to(tl.int64)
    slot += (tl.program_id(1).to(tl.int64) * count + place) * length
    d = tl.zeros((BLOCK, COLUMNS), tl.float32)
    for j in tl.static_range(HIDDEN):
        w1 = tl.load(w_in + (chunk * HIDDEN + j) * PADDED + k, mask=live_k, other=0.0).to(tl.float32)
        w2 = tl.load(w_out + (chunk * PADDED + k) * HIDDEN + j, mask=live_k, other=0.0).to(tl.float32)
        h = tl.sum(x * w1[None, :], 1) + tl.load(b_in + chunk * HIDDEN + j).to(tl.float32)
        dh = tl.sum(g * w2[None, :], 1) * strength * _slope(h, ACTIVATION)
        if INPUT:
            d += dh[:, None] * w1[None, :]
        if WEIGHTS:
            a = _activate(h, ACTIVATION)
            tl.store(slot + j * width + k, tl.sum(dh[:, None] * x, 0), mask=live_k)
            tl.store(slot + HIDDEN * width + j, tl.sum(dh, 0))
            tl.store(slot + HIDDEN * (width + 1) + k * HIDDEN + j, tl.sum(a[:, None] * g, 0) * strength, mask=live_k)
    if INPUT:
        if SAME:
            d = tl.where((strength > 0)[:, None], d, 0.0) + g
        else:
            d = tl.where((strength > 0)[:, None], d, 0.0) + tl.load(base + at, mask=mask, other=0.0).to(tl.float32)
        tl.store(out + at, d.to(grad.dtype.element_ty), mask=mask)


@triton.jit
def _chunk_of(
    program, rows0, rows1, count0, first_feature1, first_chunk1,
    WIDTH0: tl.constexpr, WIDTH1: tl.constexpr, SPARSE: tl.constexpr,
):  # fmt: skip
    """Chunk, width and first feature that a program works on, and whether it is one of the wide ones."""
    wide = program < count0
    place = tl.where(wide, program, program - count0)
    if SPARSE:
        row = tl.load(rows0 + place, mask=wide, other=0) + tl.load(rows1 + place, mask=~wide, other=0)
    else:
        row = place
    width = tl.where(wide, WIDTH0, WIDTH1)
    chunk = tl.where(wide, row, first_chunk1 + row)
    feature = tl.where(wide, row * WIDTH0, first_feature1 + row * WIDTH1)
    return chunk, width, feature, wide
