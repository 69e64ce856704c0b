"""Runs of the growth experiments, by task and arm, and how their figures are shown."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from lightning_morpho.ab import Comparison, compare_pairs

Run = dict[str, Any]
MARGIN = 0.5  # points


class Results:
    """Runs by task and arm, each arm at its best rate.

    Args:
        runs: The lines of the results file.
    """

    def __init__(self, runs: Sequence[Run]) -> None:
        self.tasks = list(dict.fromkeys(run["task"] for run in runs))
        self.comparisons = 0
        self._runs: dict[tuple[str, str], dict[float, dict[int, Run]]] = defaultdict(lambda: defaultdict(dict))
        for run in runs:
            self._runs[run["task"], run["arm"]][run["rate"]][run["seed"]] = run

    def arm(self, task: str, arm: str) -> list[Run]:
        """The runs of an arm at its best rate, by random seed; empty if it did not run with two of them.

        A rate with fewer seeds than another is left out: the sweep has not reached its end there.
        """
        made = list(self.rates(task, arm).values())
        seeds = max((2, *map(len, made)))
        return max((runs for runs in made if len(runs) == seeds), key=lambda runs: mean(runs, "val"), default=[])

    def rates(self, task: str, arm: str) -> dict[float, list[Run]]:
        """The runs of an arm at each rate."""
        found = self._runs.get((task, arm), {})
        return {rate: [runs[seed] for seed in sorted(runs)] for rate, runs in sorted(found.items())}

    def arms(self, task: str) -> list[str]:
        """The arms that ran on a task."""
        return [arm for of, arm in self._runs if of == task]

    def widths(self, task: str) -> dict[int, list[Run]]:
        """Static nets by width."""
        arms = sorted(int(arm) for t, arm in self._runs if t == task and arm.isdigit())
        return {width: self.arm(task, str(width)) for width in arms}

    def reference(self, task: str) -> tuple[int, int]:
        """Best and reference width of the static sweep."""
        widths = self.widths(task)
        best = max(widths, key=lambda w: mean(widths[w], "test"))
        top = mean(widths[best], "test")
        return best, min(w for w in widths if mean(widths[w], "test") >= top - MARGIN)

    def compare(self, base: Sequence[Run], other: Sequence[Run]) -> Comparison:
        """Test points of one arm against another, by the seeds that both have."""
        pairs = [(a["test"], b["test"]) for a in base for b in other if a["seed"] == b["seed"]]
        self.comparisons += 1
        return compare_pairs([a for a, _ in pairs], [b for _, b in pairs], metric="test points")


def mean(runs: Sequence[Run], name: str) -> float:
    """Mean of one figure."""
    return statistics.fmean(run[name] for run in runs)


def shown(comparison: Comparison) -> str:
    """A difference with its interval."""
    half = comparison.high - comparison.difference
    return f"{comparison.difference:+.2f} ± {half:.2f}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
