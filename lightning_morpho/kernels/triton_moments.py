"""Statistics of activations in one pass over them, as two Triton kernels."""

# mypy: ignore-errors
# ruff: noqa: D103

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lightning_morpho.kernels.geometry import Layout
from lightning_morpho.kernels.launch import Launcher

BLOCK, BYTES, PROGRAMS = 4, 2048, 528
"""Rows a step, bytes of a row that a program reads, programs of a launch: the best on an H200."""


@triton.jit
def _partial_moments(
    source, partial, positions, split_rows, inner, outer_stride, stride, feature_stride, features,
    BLOCK: tl.constexpr, COLUMNS: tl.constexpr, FLAT: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Sum, sum of squares and largest value of each feature, of what is left after the first position's."""
    k = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    live = k < features
    offset = k.to(tl.int64) * feature_stride
    shift = tl.load(source + offset, mask=live, other=0.0).to(tl.float32)
    total = tl.zeros((BLOCK, COLUMNS), tl.float32)
    square = tl.zeros((BLOCK, COLUMNS), tl.float32)
    largest = tl.full((BLOCK, COLUMNS), float("-inf"), tl.float32)
    start = tl.program_id(1) * split_rows
    stop = tl.minimum(start + split_rows, positions)
    for row in tl.range(start, stop, BLOCK, num_stages=STAGES):
        m = row + tl.arange(0, BLOCK)
        inside = m < stop
        if FLAT:
            at = m.to(tl.int64) * stride
        else:
            at = (m // inner).to(tl.int64) * outer_stride + (m % inner).to(tl.int64) * stride
        mask = inside[:, None] & live[None, :]
        x = tl.load(source + at[:, None] + offset[None, :], mask=mask, other=0.0).to(tl.float32)
        d = tl.where(inside[:, None], x - shift[None, :], 0.0)
        total += d
        square += d * d
        largest = tl.maximum(largest, tl.where(inside[:, None], x, float("-inf")))
    row = partial + tl.program_id(1) * 3 * features + k
    tl.store(row, tl.sum(total, 0), mask=live)
    tl.store(row + features, tl.sum(square, 0), mask=live)
    tl.store(row + 2 * features, tl.max(largest, 0), mask=live)


@triton.jit
def _merge_moments(
    source, partial, count, mean, m2, largest, new_count, positions, splits, feature_stride, features,
    COLUMNS: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """Add up the splits, and merge with what was seen before (Chan, Golub, LeVeque)."""
    k = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    live = k < features
    split = tl.arange(0, SPLITS)
    at = partial + (split * 3 * features)[:, None] + k[None, :]
    mask = (split < splits)[:, None] & live[None, :]
    total = tl.sum(tl.load(at, mask=mask, other=0.0), 0)
    square = tl.sum(tl.load(at + features, mask=mask, other=0.0), 0)
    top = tl.max(tl.load(at + 2 * features, mask=mask, other=float("-inf")), 0)
    shift = tl.load(source + k.to(tl.int64) * feature_stride, mask=live, other=0.0).to(tl.float32)
    seen = tl.load(count)
    before = seen.to(tl.float32)
    rows = positions * 1.0
    own_mean = shift + total / rows
    own_m2 = tl.maximum(square - total * total / rows, 0.0)
    old_mean = tl.load(mean + k, mask=live, other=0.0)
    weight = rows / (before + rows)
    change = own_mean - old_mean
    tl.store(mean + k, old_mean + change * weight, mask=live)
    tl.store(m2 + k, tl.load(m2 + k, mask=live, other=0.0) + own_m2 + change * change * weight * before, mask=live)
    tl.store(largest + k, tl.maximum(tl.load(largest + k, mask=live, other=0.0), top), mask=live)
    if tl.program_id(0) == 0:
        tl.store(new_count, seen + positions)


_PARTIAL, _MERGE = Launcher(_partial_moments), Launcher(_merge_moments)


def accumulate_(source: Tensor, layout: Layout, count: Tensor, mean: Tensor, m2: Tensor, largest: Tensor) -> Tensor:
    """Merge the moments of ``source (*, D)`` into ``mean``, ``m2`` and ``largest`` in place; gives the new count."""
    features = mean.numel()
    width = min(BYTES // source.element_size(), triton.next_power_of_2(features))
    columns = triton.cdiv(features, width)
    steps = triton.cdiv(layout.positions, BLOCK)
    each = triton.cdiv(steps, min(steps, max(1, PROGRAMS // columns), 256))
    splits = triton.cdiv(steps, each)
    partial = torch.empty((splits, 3, features), dtype=torch.float32, device=source.device)
    new_count = torch.empty_like(count)
    _PARTIAL(
        (columns, splits),
        (source, partial),
        (
            layout.positions, each * BLOCK, *layout[1:], features,
            BLOCK, width, layout.inner == layout.positions, 3,
        ),
        warps=4,
    )  # fmt: skip
    narrow = 32
    _MERGE(
        (triton.cdiv(features, narrow), 1),
        (source, partial, count, mean, m2, largest, new_count),
        (layout.positions, splits, layout.feature_stride, features, narrow, triton.next_power_of_2(splits)),
        warps=4,
    )
    return new_count
