"""Two or more configurations compared by paired runs: the same random seeds, intervals of the differences."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any, Literal

from lightning_morpho.evidence import student_t_quantile

Result = Mapping[str, float]
"""Metrics of one run by name."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What B is worth against A, by paired differences of one metric.

    Attributes:
        metric: Its name.
        mean_a: Mean of A.
        mean_b: Mean of B.
        difference: Mean of B minus A, pair by pair.
        low: Lower end of the difference's confidence interval.
        high: Upper end of it.
        confidence: Level of the interval.
        pairs: Number of pairs.
        higher_is_better: Whether a rise of the metric is good.
    """

    metric: str
    mean_a: float
    mean_b: float
    difference: float
    low: float
    high: float
    confidence: float
    pairs: int
    higher_is_better: bool

    @property
    def verdict(self) -> Literal["better", "worse", "no difference shown"]:
        """Whether B is better or worse than A; the interval must exclude 0."""
        if self.low <= 0 <= self.high:
            return "no difference shown"
        return "better" if (self.low > 0) == self.higher_is_better else "worse"

    def __str__(self) -> str:
        """The verdict with its numbers."""
        said = self.verdict if self.verdict == "no difference shown" else f"B is {self.verdict}"
        return (
            f"{self.metric}: {said}: A {self.mean_a:.4f}, B {self.mean_b:.4f}, "
            f"B - A {self.difference:+.4f} [{self.low:+.4f}, {self.high:+.4f}] "
            f"({self.confidence:.0%} paired interval, {self.pairs} pairs)"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, the verdict among them."""
        return {**self.__dict__, "verdict": self.verdict}


def compare_pairs(
    a: Sequence[float],
    b: Sequence[float],
    *,
    metric: str = "metric",
    higher_is_better: bool = True,
    confidence: float = 0.95,
) -> Comparison:
    """Paired t interval of the difference of two arms.

    Args:
        a: One value a random seed.
        b: The same seeds in the same order.
        metric: What the values are.
        higher_is_better: Whether a rise is good.
        confidence: Level of the two-sided interval, in (0.5, 1).

    Raises:
        ValueError: For fewer than two pairs, arms of different lengths or values that are not finite.

    Example:
        >>> print(compare_pairs([0.70, 0.72, 0.71], [0.75, 0.76, 0.76], metric="test_acc"))
        test_acc: B is better: A 0.7100, B 0.7567, B - A +0.0467 [+0.0323, +0.0610] (95% paired interval, 3 pairs)
    """
    if len(a) != len(b) or len(a) < 2:
        raise ValueError(f"Two arms of equal length and at least 2 pairs were expected, got {len(a)} and {len(b)}.")
    if not 0.5 < confidence < 1:
        raise ValueError(f"`confidence` must be in (0.5, 1), got {confidence}.")
    wrong = [value for value in (*a, *b) if not math.isfinite(value)]
    if wrong:
        raise ValueError(f"`{metric}` must be finite in all runs, got {wrong[0]} in {len(wrong)} of {2 * len(a)} runs.")
    differences = [y - x for x, y in zip(a, b, strict=True)]
    mean = fmean(differences)
    margin = student_t_quantile((1 + confidence) / 2, len(a) - 1) * stdev(differences) / math.sqrt(len(a))
    return Comparison(
        metric=metric,
        mean_a=fmean(a),
        mean_b=fmean(b),
        difference=mean,
        low=mean - margin,
        high=mean + margin,
        confidence=confidence,
        pairs=len(a),
        higher_is_better=higher_is_better,
    )


def run_pairs(
    run: Callable[[str, int], Result],
    variants: Sequence[str],
    seeds: Iterable[int],
    on_result: Callable[[str, int, Result], None] = lambda variant, seed, result: None,
    done: Mapping[tuple[str, int], Result] | None = None,
) -> dict[str, list[Result]]:
    """Run all variants with the same random seeds, seed by seed, so that an interrupted series is paired too.

    Args:
        run: ``run(variant, seed)`` gives the metrics of one run.
        variants: Their names.
        seeds: The random seeds.
        on_result: Told of each result as it arrives.
        done: Results of an earlier, interrupted series, which are not run again.

    Returns:
        For each variant one result a seed.

    Example:
        >>> run_pairs(lambda variant, seed: {"x": seed + (variant == "b")}, ["a", "b"], [0, 1])["b"]
        [{'x': 1}, {'x': 2}]
    """
    results: dict[str, list[Result]] = {variant: [] for variant in variants}
    for seed in seeds:
        for variant in variants:
            result = (done or {}).get((variant, seed))
            if result is None:
                result = run(variant, seed)
                on_result(variant, seed, result)
            results[variant].append(result)
    return results


def metric_values(results: Sequence[Result], metric: str) -> list[float]:
    """One metric of all runs.

    Raises:
        ValueError: If a run did not log it.
    """
    for result in results:
        if metric not in result:
            raise ValueError(f"No run logs `{metric}`; what was logged: {', '.join(sorted(result))}.")
    return [float(result[metric]) for result in results]
