"""Statistics of activations, as plain functions."""

from __future__ import annotations

import torch
from torch import Tensor


def column_moments(columns: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and sum of squared deviations of each feature.

    Two passes over the data, so a large mean costs no accuracy.

    Args:
        columns: ``(M, D)``.

    Returns:
        Mean ``(D,)`` and sum of squared deviations ``(D,)``, float32 at least.
    """
    values = columns if columns.dtype == torch.float64 else columns.float()
    mean = values.mean(0)
    return mean, (values - mean).square().sum(0)


def merge_moments(
    count: Tensor, mean: Tensor, m2: Tensor, other_count: Tensor, other_mean: Tensor, other_m2: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Moments of two samples together (Chan, Golub, LeVeque: Updating Formulae, 1979).

    Example:
        >>> a, b = torch.randn(5, 1, dtype=torch.float64), torch.randn(7, 1, dtype=torch.float64) + 1000
        >>> merged = merge_moments(
        ...     torch.tensor(5), *column_moments(a), torch.tensor(7), *column_moments(b)
        ... )
        >>> torch.allclose(merged[2] / merged[0], torch.cat([a, b]).var(0, correction=0))
        True
    """
    total = count + other_count
    weight = torch.where(total > 0, other_count / total.clamp(min=1), 0.0).to(mean.dtype)
    shift = other_mean - mean
    return total, mean + shift * weight, m2 + other_m2 + shift.square() * weight * count.to(mean.dtype)
