"""The guard of a ramp: is the run still as healthy as its baseline?"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median

from lightning_morpho.rollout_config import GUARDED, GuardConfig
from lightning_morpho.wording import plural


@dataclass(frozen=True)
class Baseline:
    """What runs without growth have at the same optimizer step.

    Attributes:
        values: Median over these runs, by name; what none of them measured is missing.
        runs: How many they are.
    """

    values: Mapping[str, float] = field(default_factory=dict)
    runs: int = 0


@dataclass(frozen=True, kw_only=True)
class RunHealth:
    """What a guard looks at, at one decision tick; equal on every rank.

    Attributes:
        val_loss: Latest validation loss, None where there was none.
        step_time: Median duration of a training step since the last tick, in seconds; None if unmeasured.
        errors: Contained errors of all seeds so far, over all ranks.
        baseline: What the runs without growth of the same job have.
    """

    val_loss: float | None = None
    step_time: float | None = None
    errors: int = 0
    baseline: Baseline = field(default_factory=Baseline)


@dataclass(frozen=True)
class Verdict:
    """Whether the guard held, and why not."""

    holds: bool
    reason: str = ""


class Guard:
    """Compares a run with its baseline.

    That is, where it is known: the runs without growth of the same job, at the same step; else the recorded
    values; else the run's own best so far.

    Args:
        config: What must hold.

    Example:
        >>> guard = Guard(GuardConfig(val_loss=0.1))
        >>> guard.check(RunHealth(val_loss=1.0)).holds
        True
        >>> guard.check(RunHealth(val_loss=1.2)).reason
        'val_loss 1.2 is above 1.1 (baseline 1, at most +10%)'
    """

    def __init__(self, config: GuardConfig) -> None:
        self.config = config
        self.lowest: dict[str, float] = {}

    def check(self, health: RunHealth) -> Verdict:
        """Judge one tick; what was not measured is not judged."""
        failures = [self._compare(name, getattr(health, name), health.baseline) for name in GUARDED]
        if self.config.errors is not None and health.errors > self.config.errors:
            failures.append(f"{health.errors} contained errors are above {self.config.errors}")
        reasons = [failure for failure in failures if failure]
        return Verdict(not reasons, "; ".join(reasons))

    def _compare(self, name: str, value: float | None, cohort: Baseline) -> str:
        limit = getattr(self.config, name)
        if value is None:
            return ""
        if not math.isfinite(value):
            return f"{name} is {value}"
        own = self.config.baseline.get(name, self.lowest.get(name, value))
        baseline = cohort.values.get(name, own)
        self.lowest[name] = min(value, self.lowest.get(name, value))
        if limit is None:
            return ""
        # abs: a loss below 0 may rise too
        bound = baseline + limit * abs(baseline)
        if value <= bound:
            return ""
        source = f" of {plural(cohort.runs, 'run')} without growth" if name in cohort.values else ""
        return f"{name} {value:.4g} is above {bound:.4g} (baseline {baseline:.4g}{source}, at most +{limit:.0%})"

    def state_dict(self) -> dict[str, float]:
        """Lowest values so far."""
        return dict(self.lowest)

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Restore what :meth:`state_dict` gave."""
        self.lowest = dict(state)


class StepTimer:
    """Median duration of training steps; on a GPU, of their launch and of what they wait for."""

    def __init__(self) -> None:
        self._begun: float | None = None
        self._durations: list[float] = []

    def start(self) -> None:
        """A step begins."""
        self._begun = time.perf_counter()

    def stop(self) -> None:
        """It is over."""
        if self._begun is not None:
            self._durations.append(time.perf_counter() - self._begun)
            self._begun = None

    def take(self) -> float | None:
        """Median since the last call, in seconds; None without a step."""
        durations, self._durations = self._durations, []
        return median(durations) if durations else None
