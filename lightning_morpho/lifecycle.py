"""Stages of a seed and the transitions between them, as data, with the one function that checks them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum


class LifecycleError(RuntimeError):
    """Something was asked of a seed at a moment at which it can't be done."""


class Stage(IntEnum):
    """Stage of a seed; the values are stored in checkpoints and never change."""

    DORMANT = 0
    LOADING = 1
    ACTIVE = 2
    FOSSILIZED = 3
    CULLED = 4
    ERROR_RECOVERY = 5
    GERMINATED = 6
    TRAINING = 7
    GRAFTING = 8
    STABILIZATION = 9
    EVALUATING = 10
    FINE_TUNING = 11
    CANCELLED = 12
    ROLLED_BACK = 13


@dataclass(frozen=True)
class Lifecycle:
    """A transition table and the roles of its stages.

    Attributes:
        name: Name in configurations.
        path: The happy path, from DORMANT to FOSSILIZED.
        exits: Stages that a stage may be left for besides the next one on the path.
        recovery: Stages in which a seed waits until it may return to DORMANT.
        judged: Stage in which a seed waits for the verdict on it; kept, it goes on along the path.
    """

    name: str
    path: tuple[Stage, ...]
    exits: Mapping[Stage, frozenset[Stage]]
    recovery: frozenset[Stage]
    judged: Stage

    @property
    def live(self) -> frozenset[Stage]:
        """Stages in which a seed occupies a bed and has not been kept yet."""
        return frozenset(self.path[1:-1])

    @property
    def stages(self) -> frozenset[Stage]:
        """All stages of this lifecycle."""
        return frozenset(self.path) | self.recovery

    def successors(self, stage: Stage) -> frozenset[Stage]:
        """Stages that may follow ``stage``; empty for the terminal one, FOSSILIZED.

        Example:
            >>> sorted(s.name for s in PHASE1.successors(Stage.LOADING))
            ['ACTIVE', 'CULLED', 'ERROR_RECOVERY']
        """
        if stage in self.recovery:
            return frozenset({Stage.DORMANT})
        if stage not in self.path or stage is self.path[-1]:
            return frozenset()
        return self.exits.get(stage, frozenset()) | {self.following(stage)}

    def following(self, stage: Stage) -> Stage:
        """The next stage of the happy path.

        Example:
            >>> FULL.following(Stage.EVALUATING).name
            'FINE_TUNING'
        """
        return self.path[self.path.index(stage) + 1]

    def ending(self, stage: Stage, *wanted: Stage) -> Stage:
        """The first of some recovery stages that a live stage can be left for.

        Example:
            >>> FULL.ending(Stage.GERMINATED, Stage.ROLLED_BACK, Stage.CANCELLED).name
            'CANCELLED'
        """
        return next(target for target in wanted if target in self.successors(stage))

    def check(self, source: Stage, target: Stage) -> None:
        """Refuse a transition that is not in the table.

        Raises:
            LifecycleError: With the transitions that would be allowed.
        """
        allowed = self.successors(source)
        if target not in allowed:
            names = ", ".join(sorted(s.name for s in allowed)) or "none, it is terminal"
            raise LifecycleError(
                f"A seed in {source.name} can't become {target.name} in lifecycle `{self.name}`; "
                f"allowed from {source.name}: {names}."
            )


def _exits(stages: str, targets: str) -> dict[Stage, frozenset[Stage]]:
    return {Stage[s]: frozenset(Stage[t] for t in targets.split()) for s in stages.split()}


PHASE1 = Lifecycle(
    name="phase1",
    path=(Stage.DORMANT, Stage.LOADING, Stage.ACTIVE, Stage.FOSSILIZED),
    exits=_exits("LOADING ACTIVE", "CULLED ERROR_RECOVERY"),
    recovery=frozenset({Stage.CULLED, Stage.ERROR_RECOVERY}),
    judged=Stage.ACTIVE,
)

FULL = Lifecycle(
    name="full",
    path=(
        Stage.DORMANT,
        Stage.GERMINATED,
        Stage.TRAINING,
        Stage.GRAFTING,
        Stage.STABILIZATION,
        Stage.EVALUATING,
        Stage.FINE_TUNING,
        Stage.FOSSILIZED,
    ),
    exits={
        **_exits("GERMINATED", "CANCELLED"),
        **_exits("TRAINING", "CANCELLED CULLED ROLLED_BACK ERROR_RECOVERY"),
        **_exits("GRAFTING STABILIZATION EVALUATING FINE_TUNING", "CULLED ROLLED_BACK ERROR_RECOVERY"),
    },
    recovery=frozenset({Stage.CULLED, Stage.CANCELLED, Stage.ROLLED_BACK, Stage.ERROR_RECOVERY}),
    judged=Stage.EVALUATING,
)

LIFECYCLES: Mapping[str, Lifecycle] = {table.name: table for table in (PHASE1, FULL)}
