"""Statistics of activations, as plain functions."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_morpho.kernels import triton_problem
from lightning_morpho.kernels.geometry import layout_of

_BLOCK_ELEMENTS = 1 << 17
"""Elements that a step on the CPU looks at: they stay in its cache until all is known of them."""


class Moments(NamedTuple):
    """What is known of a sample of each feature.

    Attributes:
        seen: Positions, int64, a scalar.
        mean: Mean of each feature, ``(D,)``.
        m2: Sum of its squared deviations from the mean, ``(D,)``.
        largest: Its largest value, ``(D,)``; minus infinity before any.
    """

    seen: Tensor
    mean: Tensor
    m2: Tensor
    largest: Tensor


def column_moments(columns: Tensor) -> Moments:
    """Moments of each feature, in one pass.

    Sums are taken of deviations from the first position, so a large mean costs no accuracy.

    Args:
        columns: ``(M, D)``, at least one position.

    Returns:
        Moments, float32 at least.

    Example:
        >>> [values.tolist() for values in column_moments(torch.tensor([[1.0, -1.0], [3.0, -1.0]]))]
        [2, [2.0, -1.0], [2.0, 0.0], [3.0, -1.0]]
    """
    dtype = torch.float64 if columns.dtype == torch.float64 else torch.float32
    positions, features = columns.shape
    shift = columns[0].to(dtype)
    total, square = torch.zeros_like(shift), torch.zeros_like(shift)
    largest = torch.full_like(shift, -torch.inf)
    # A GPU gains nothing by blocks, a CPU several times the speed.
    rows = max(32, _BLOCK_ELEMENTS // features) if columns.device.type == "cpu" else positions
    for block in columns.split(rows):
        deviation = torch.sub(block, shift)
        total += deviation.sum(0)
        square += deviation.square_().sum(0)
        largest = torch.maximum(largest, block.amax(0).to(dtype))
    count = torch.tensor(positions, device=columns.device)
    return Moments(count, shift + total / positions, (square - total.square() / positions).clamp(min=0), largest)


def merge_moments(one: Moments, other: Moments) -> Moments:
    """Moments of two samples together (Chan, Golub, LeVeque: Updating Formulae, 1979).

    Example:
        >>> a, b = torch.randn(5, 1, dtype=torch.float64), torch.randn(7, 1, dtype=torch.float64) + 1000
        >>> merged = merge_moments(column_moments(a), column_moments(b))
        >>> torch.allclose(merged.m2 / merged.seen, torch.cat([a, b]).var(0, correction=0))
        True
    """
    total = one.seen + other.seen
    weight = torch.where(total > 0, other.seen / total.clamp(min=1), 0.0).to(one.mean.dtype)
    shift = other.mean - one.mean
    return Moments(
        total,
        one.mean + shift * weight,
        one.m2 + other.m2 + shift.square() * weight * one.seen.to(one.mean.dtype),
        torch.maximum(one.largest, other.largest.to(one.largest.dtype)),
    )


def add_sample(moments: Moments, columns: Tensor) -> Moments:
    """Moments after one more sample; ``moments`` may be overwritten.

    Args:
        moments: Of what was seen before.
        columns: ``(*, D)``, any strides; an empty sample changes nothing.
    """
    if columns.numel() == 0:
        return moments
    layout = layout_of(columns)
    half_or_full = columns.dtype in (torch.float32, torch.bfloat16, torch.float16)
    if columns.is_cuda and half_or_full and layout is not None and triton_problem() is None:
        from lightning_morpho.kernels.triton_moments import accumulate_

        return moments._replace(seen=accumulate_(columns, layout, *moments))
    return merge_moments(moments, column_moments(columns.reshape(-1, columns.shape[-1])))
