"""What the kernels of :mod:`triton_mlp` and :mod:`triton_direct` share."""

# mypy: ignore-errors
# ruff: noqa: D103

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def activate(h, ACTIVATION: tl.constexpr):
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
def slope(h, ACTIVATION: tl.constexpr):
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
def finite(x):
    """Nothing instead of what is not finite: a seed that diverges must reach neither the host nor its tile."""
    return tl.where(tl.abs(x) < float("inf"), x, 0.0)


@triton.jit
def position(m, inner, outer_stride, stride, FLAT: tl.constexpr):
    """Offset of each position, 64 bits: activations may hold more than 2^31 elements."""
    if FLAT:
        return m.to(tl.int64) * stride
    else:
        return (m // inner).to(tl.int64) * outer_stride + (m % inner).to(tl.int64) * stride


@triton.jit
def chunks_of(tile, at, rows, count, PACK: tl.constexpr, SPARSE: tl.constexpr):
    """Chunk of the group in each place ``at`` of a tile, and whether there is one."""
    place = tile * PACK + at
    valid = (at < PACK) & (place < count)
    if SPARSE:
        return tl.load(rows + place, mask=valid, other=0), valid
    else:
        return place, valid


@triton.jit
def features_of(tile, k, chunk, valid, count, PACK: tl.constexpr, WIDTH: tl.constexpr, SPARSE: tl.constexpr):
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
