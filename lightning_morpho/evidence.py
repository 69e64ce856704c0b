"""What paired differences prove: means and confidence bounds, in the standard library alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, stdev


def student_t_quantile(p: float, degrees: int) -> float:
    """Quantile of Student's t distribution (Hill: Algorithm 396, 1970, by its Cornish-Fisher series).

    Exact for 1 and 2 degrees of freedom, within 0.5 % from 3 on for ``p`` up to 0.99.

    Example:
        >>> [round(student_t_quantile(0.95, n), 2) for n in (1, 2, 9, 1000)]
        [6.31, 2.92, 1.83, 1.65]
    """
    if degrees < 1:
        raise ValueError(f"`degrees` must be at least 1, got {degrees}.")
    if degrees == 1:
        return math.tan(math.pi * (p - 0.5))
    if degrees == 2:
        return (2 * p - 1) * math.sqrt(2 / (4 * p * (1 - p)))
    z, n = NormalDist().inv_cdf(p), degrees
    return (
        z
        + (z**3 + z) / (4 * n)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * n**3)
        + (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / (92160 * n**4)
    )


@dataclass(frozen=True)
class Bounds:
    """Mean of paired differences, and how far it is known.

    Attributes:
        mean: The mean; NaN without a pair, or if one is not finite.
        lower: Its one-sided lower confidence bound; NaN with fewer than two pairs too.
        upper: Its one-sided upper bound. Both together hold with less than the level: 0.95 a side is 0.9 for both.
    """

    mean: float
    lower: float
    upper: float


def paired_bounds(differences: Sequence[float], confidence: float) -> Bounds:
    """Bounds of the mean of paired differences, by Student's t.

    The level holds for one comparison; where many are made, about ``1 - confidence`` of those without any effect
    will look proven.

    Args:
        differences: One value a pair.
        confidence: Level of each one-sided bound, in (0.5, 1).

    Example:
        >>> paired_bounds([1.0, 1.0, 1.0], 0.95)
        Bounds(mean=1.0, lower=1.0, upper=1.0)
    """
    count = len(differences)
    if count == 0 or not all(map(math.isfinite, differences)):
        return Bounds(math.nan, math.nan, math.nan)
    mean = fmean(differences)
    if count == 1:
        return Bounds(mean, math.nan, math.nan)
    margin = student_t_quantile(confidence, count - 1) * stdev(differences) / math.sqrt(count)
    return Bounds(mean, mean - margin, mean + margin)
