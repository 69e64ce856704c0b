"""Runs of the growth experiments, by task and arm, and how their figures are shown."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lightning_morpho.ab import Comparison, compare_pairs

Run = dict[str, Any]
MARGIN = 0.5  # points
SWEPT = 4  # seeds with which a rate counts as run


class Results:
    """Runs by task and arm, each arm at its best rate.

    Args:
        runs: The lines of the results file.
        swept: Seeds with which a rate counts as run.
    """

    def __init__(self, runs: Iterable[Run], swept: int = SWEPT) -> None:
        self.swept, self.comparisons = swept, 0
        self._runs: dict[tuple[str, str], dict[float, dict[int, Run]]] = defaultdict(lambda: defaultdict(dict))
        for run in runs:
            self.add(run)

    @property
    def runs(self) -> list[Run]:
        """All of them."""
        return [run for made in self._runs.values() for runs in made.values() for run in runs.values()]

    def add(self, run: Run) -> None:
        """One more run; one of the same task, arm, rate and seed gives way."""
        self._runs[run["task"], run["arm"]][run["rate"]][run["seed"]] = run

    @property
    def tasks(self) -> list[str]:
        """Their names, in the order of the runs."""
        return list(dict.fromkeys(task for task, _ in self._runs))

    def has(self, job: Mapping[str, Any]) -> bool:
        """Whether a run of this task, arm, rate and seed is there."""
        return job["seed"] in self._runs.get((job["task"], job["arm"]), {}).get(job["rate"], {})

    def arm(self, task: str, arm: str) -> list[Run]:
        """The runs of an arm at its best rate, by random seed; empty if none of its rates counts as run."""
        made = {rate: runs for rate, runs in self.rates(task, arm).items() if len(runs) >= self.swept}
        runs = made[best_rate(made)] if made else {}
        return [runs[seed] for seed in sorted(runs)]

    def rates(self, task: str, arm: str) -> dict[float, dict[int, Run]]:
        """The runs of an arm by rate and random seed."""
        return dict(sorted(self._runs.get((task, arm), {}).items()))

    def arms(self, task: str) -> list[str]:
        """The arms that ran on a task."""
        return [arm for of, arm in self._runs if of == task]

    def widths(self, task: str) -> dict[int, list[Run]]:
        """Static nets by width."""
        arms = sorted(int(arm) for arm in self.arms(task) if arm.isdigit())
        return {width: runs for width in arms if (runs := self.arm(task, str(width)))}

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


def best_rate(made: Mapping[float, Mapping[int, Run]]) -> float:
    """The rate that is best on validation, the mean over the seeds that have run at each rate deciding.

    Args:
        made: Runs by rate and seed; there must be seeds that all rates have.
    """
    shared = set.intersection(*map(set, made.values()))
    return max(sorted(made), key=lambda rate: mean([made[rate][seed] for seed in shared], "val"))


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
