"""A ramp: the percentage rises by schedule while the guard holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning_morpho.rollout.guard import Guard, RunHealth
from lightning_morpho.rollout_config import RampConfig
from lightning_morpho.wording import plural


class Ramp:
    """Where a run stands in its ramp. It is driven by decision ticks, and deterministic.

    Args:
        config: Schedule, monitored period, guard.

    Attributes:
        stage: Number of the present stage; -1 before the first one, at 0 %.
        held: Ticks in a row at which the guard held in this stage.
        halted: Why the ramp will not rise any more; empty while it may.

    Example:
        >>> ramp = Ramp(RampConfig(schedule={0: 10, 2: 100}, monitor_ticks=1))
        >>> ramp.start(0), ramp.percentage
        ('stage 1 of 2: 10 %', 10.0)
        >>> ramp.tick(1, RunHealth(val_loss=1.0))
        >>> ramp.tick(2, RunHealth(val_loss=0.9)), ramp.percentage
        ('stage 2 of 2: 100 %, the guard held for 2 ticks', 100.0)
    """

    def __init__(self, config: RampConfig) -> None:
        self.config = config
        self.guard = Guard(config.guard)
        self.stage = -1
        self.held = 0
        self.halted = ""
        self._holding = False

    @property
    def percentage(self) -> float:
        """The present percentage."""
        return 0.0 if self.stage < 0 else float(list(self.config.schedule.values())[self.stage])

    @property
    def highest(self) -> float:
        """The percentage of the last stage."""
        return float(max(self.config.schedule.values()))

    def start(self, progress: int) -> str | None:
        """Enter the first stage, if its time has come; there is nothing to monitor before it."""
        if self.stage >= 0 or self.halted or progress < min(self.config.schedule):
            return None
        return self._enter(0)

    def tick(self, progress: int, health: RunHealth) -> str | None:
        """One decision tick.

        Args:
            progress: Epochs or optimizer steps done, as ``config.by`` says.
            health: What the guard looks at.

        Returns:
            What changed and why, None if nothing did.
        """
        verdict = self.guard.check(health)
        if not verdict.holds:
            return self._fail(verdict.reason)
        self.held += 1
        self._holding = False
        times = list(self.config.schedule)
        following = self.stage + 1
        due = following < len(times) and progress >= times[following]
        if not due or self.halted or self.held < self.config.monitor_ticks:
            return None
        held = self.held
        return f"{self._enter(following)}, the guard held for {plural(held, 'tick')}"

    def _fail(self, reason: str) -> str | None:
        self.held = 0
        if self.stage < 0 or self.config.on_failure == "hold":
            repeated, self._holding = self._holding or bool(self.halted), True
            return None if repeated else f"held at {self.percentage:g} %: {reason}"
        self.halted = reason
        self.stage = -1 if self.config.on_failure == "off" else self.stage - 1
        return f"rolled back to {self.percentage:g} %: {reason}"

    def _enter(self, stage: int) -> str:
        self.stage, self.held = stage, 0
        return f"stage {stage + 1} of {len(self.config.schedule)}: {self.percentage:g} %"

    def state_dict(self) -> dict[str, Any]:
        """Stage and guard as plain values."""
        return {"stage": self.stage, "held": self.held, "halted": self.halted, "guard": self.guard.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave; a shorter schedule ends at its last stage."""
        self.stage = min(state["stage"], len(self.config.schedule) - 1)
        self.held, self.halted = state["held"], state["halted"]
        self.guard.load_state_dict(state["guard"])
