"""Stages of a seed and the transitions between them, as data, with the one function that checks them.

What a stage does. *Forward* is what the seed changes in the layer's output, and with it in the host's gradient;
*seed* is what its own parameters do.

================ ======================================== =======================================================
stage            forward                                  seed
================ ======================================== =======================================================
DORMANT          nothing, at no cost                      has none
LOADING          alpha times its output                   trains, its updates warmed up; alpha may still rise
ACTIVE           alpha times its output                   trains; judged after ``active_ticks``
GERMINATED       nothing                                  rests: has its bed, no gradient, no optimizer state
TRAINING         nothing: values and gradients bit-equal  rests; with ``incubation: boosting`` trains, warmed up, on
                 to those without the seed                the negative gradient of its chunk's output
GRAFTING         alpha times its output; alpha rises      trains, its updates warmed up
STABILIZATION    alpha times its output                   trains, until its warm-up is over
EVALUATING       alpha times its output                   trains; judged after ``active_ticks``
FINE_TUNING      alpha times its output                   trains at ``fine_tuning_rate`` of the optimizer's update
FOSSILIZED       alpha times its output, for good         trains with the host, or is frozen (``train_fossils``)
CULLED,          nothing                                  its place in the bed is free; the chunk waits until it
CANCELLED,                                                may germinate again
ROLLED_BACK,
ERROR_RECOVERY
================ ======================================== =======================================================

A seed on its way out stays in its stage while alpha falls. Its host is never touched by a change of stage: alpha
moves at ticks alone, by ``alpha_step`` at most. Three exceptions: a seed that gives exactly zero at birth may start at
alpha 1, and a contained error and a rollback set alpha to 0 at once.
"""

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
        silent: Live stages in which alpha is 0.
        rising: Stage that lasts while alpha rises for the first time.
    """

    name: str
    path: tuple[Stage, ...]
    exits: Mapping[Stage, frozenset[Stage]]
    recovery: frozenset[Stage]
    judged: Stage
    silent: frozenset[Stage]
    rising: Stage

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
    silent=frozenset(),
    rising=Stage.LOADING,
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
    silent=frozenset({Stage.GERMINATED, Stage.TRAINING}),
    rising=Stage.GRAFTING,
)

LIFECYCLES: Mapping[str, Lifecycle] = {table.name: table for table in (PHASE1, FULL)}
