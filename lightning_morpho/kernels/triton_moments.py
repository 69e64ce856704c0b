"""Statistics of activations in one pass over them: two Triton kernels, for small samples one."""

# mypy: ignore-errors
# ruff: noqa: D103

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from lightning_morpho.kernels.geometry import Layout
from lightning_morpho.kernels.launch import Launcher, power_of_two
from lightning_morpho.kernels.triton_parts import position

BLOCK, BYTES, PROGRAMS = 4, 2048, 528
"""Rows a step, bytes of a row that a program reads, programs of a launch: the best on an H200."""
SMALL = 1 << 15
"""Values of a sample up to which one program does all: a launch takes longer."""


@triton.jit
def _sums(
    source, k, live, start, stop, inner, outer_stride, stride, feature_stride,
    BLOCK: tl.constexpr, COLUMNS: tl.constexpr, FLAT: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """First position of each feature; sum, sum of squares and largest value of what is left after it."""
    offset = k.to(tl.int64) * feature_stride
    shift = tl.load(source + offset, mask=live, other=0.0).to(tl.float32)
    total = tl.zeros((BLOCK, COLUMNS), tl.float32)
    square = tl.zeros((BLOCK, COLUMNS), tl.float32)
    largest = tl.full((BLOCK, COLUMNS), float("-inf"), tl.float32)
    for row in tl.range(start, stop, BLOCK, num_stages=STAGES):
        m = row + tl.arange(0, BLOCK)
        inside = m < stop
        at = position(m, inner, outer_stride, stride, FLAT)
        mask = inside[:, None] & live[None, :]
        x = tl.load(source + at[:, None] + offset[None, :], mask=mask, other=0.0).to(tl.float32)
        d = tl.where(inside[:, None], x - shift[None, :], 0.0)
        total += d
        square += d * d
        largest = tl.maximum(largest, tl.where(inside[:, None], x, float("-inf")))
    return shift, tl.sum(total, 0), tl.sum(square, 0), tl.max(largest, 0)


@triton.jit
def _merge(mean, m2, largest, k, live, before, positions, shift, total, square, top):
    """Merge with what was seen before (Chan, Golub, LeVeque)."""
    rows = positions * 1.0
    own_mean = shift + total / rows
    own_m2 = tl.maximum(square - total * total / rows, 0.0)
    old_mean = tl.load(mean + k, mask=live, other=0.0)
    weight = rows / (before + rows)
    change = own_mean - old_mean
    tl.store(mean + k, old_mean + change * weight, mask=live)
    tl.store(m2 + k, tl.load(m2 + k, mask=live, other=0.0) + own_m2 + change * change * weight * before, mask=live)
    tl.store(largest + k, tl.maximum(tl.load(largest + k, mask=live, other=0.0), top), mask=live)


@triton.jit
def _small_moments(
    source, count, mean, m2, largest, positions, inner, outer_stride, stride, feature_stride, features,
    BLOCK: tl.constexpr, COLUMNS: tl.constexpr, FLAT: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    k = tl.arange(0, COLUMNS)
    live = k < features
    shift, total, square, top = _sums(
        source, k, live, 0, positions, inner, outer_stride, stride, feature_stride, BLOCK, COLUMNS, FLAT, STAGES
    )
    seen = tl.load(count)
    _merge(mean, m2, largest, k, live, seen.to(tl.float32), positions, shift, total, square, top)
    tl.store(count, seen + positions)


@triton.jit
def _partial_moments(
    source, partial, positions, split_rows, inner, outer_stride, stride, feature_stride, features,
    BLOCK: tl.constexpr, COLUMNS: tl.constexpr, FLAT: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    k = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    live = k < features
    start = tl.program_id(1) * split_rows
    stop = tl.minimum(start + split_rows, positions)
    _, total, square, top = _sums(
        source, k, live, start, stop, inner, outer_stride, stride, feature_stride, BLOCK, COLUMNS, FLAT, STAGES
    )
    row = partial + tl.program_id(1) * 3 * features + k
    tl.store(row, total, mask=live)
    tl.store(row + features, square, mask=live)
    tl.store(row + 2 * features, top, mask=live)


@triton.jit
def _merge_moments(
    source, partial, count, mean, m2, largest, new_count, positions, splits, feature_stride, features,
    COLUMNS: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """Add up the splits, and merge with what was seen before; all programs read the old count, so it stays."""
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
    _merge(mean, m2, largest, k, live, seen.to(tl.float32), positions, shift, total, square, top)
    if tl.program_id(0) == 0:
        tl.store(new_count, seen + positions)


_SMALL, _PARTIAL, _MERGE = Launcher(_small_moments), Launcher(_partial_moments), Launcher(_merge_moments)


class _Plan(NamedTuple):
    """Launches for samples of one layout: grid and numbers of the one or two kernels, elements between the two."""

    grids: tuple[tuple[int, int], ...]
    numbers: tuple[tuple[Any, ...], ...]
    between: int


@lru_cache(maxsize=256)  # batches may come in ever new lengths
def _plan(layout: Layout, features: int, element: int) -> _Plan:
    width = min(BYTES // element, power_of_two(features))
    flat, stages = layout.inner == layout.positions, 3
    if features <= width and layout.positions * width <= SMALL:
        return _Plan(((1, 1),), ((*layout, features, BLOCK, width, flat, stages),), 0)
    columns, steps = -(-features // width), -(-layout.positions // BLOCK)
    each = -(-steps // min(steps, max(1, PROGRAMS // columns), 256))
    splits, narrow = -(-steps // each), 32
    first = (layout.positions, each * BLOCK, *layout[1:], features, BLOCK, width, flat, stages)
    second = (layout.positions, splits, layout.feature_stride, features, narrow, power_of_two(splits))
    return _Plan(((columns, splits), (-(-features // narrow), 1)), (first, second), splits * 3 * features)


def accumulate_(source: Tensor, layout: Layout, count: Tensor, mean: Tensor, m2: Tensor, largest: Tensor) -> Tensor:
    """Merge the moments of ``source (*, D)`` into ``mean``, ``m2`` and ``largest`` in place; gives the new count.

    That is ``count`` itself after a small sample.
    """
    plan = _plan(layout, mean.numel(), source.element_size())
    if not plan.between:
        _SMALL(plan.grids[0], (source, count, mean, m2, largest), plan.numbers[0], warps=4)
        return count
    partial = torch.empty(plan.between, dtype=torch.float32, device=source.device)
    new_count = torch.empty_like(count)
    _PARTIAL(plan.grids[0], (source, partial), plan.numbers[0], warps=4)
    _MERGE(plan.grids[1], (source, partial, count, mean, m2, largest, new_count), plan.numbers[1], warps=4)
    return new_count
