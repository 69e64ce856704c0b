"""The policy that finds the size: whether to grow, then as much as fits, and later as little as is needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from lightning_morpho.checks import check, is_count, is_fraction, is_name, is_number, named_arguments
from lightning_morpho.lifecycle import Stage
from lightning_morpho.tamiyo.base import Tamiyo
from lightning_morpho.tamiyo.judgement import judge
from lightning_morpho.tamiyo.observation import (
    Assess,
    Cull,
    Decision,
    Germinate,
    Keep,
    Observation,
    Penalize,
    Resize,
    SeedView,
)
from lightning_morpho.tamiyo.timing import stalled

Auto = Literal["auto"]
Direction = Literal["grow", "shrink", "both"]


@named_arguments
@dataclass(frozen=True, kw_only=True)
class AutoSize(Tamiyo):
    """No size given: widen to the budget early, let units that earn nothing fade, keep the fewest that suffice.

    1. At ``at`` of training: if in no layer new hidden units would explain more than ``explains`` of the held-out
       residual, nothing grows. Else every hidden layer becomes as wide as the budget allows.
    2. From then on a group penalty draws the outgoing weights of newborn units to zero, unit by unit.
    3. At ``until`` the penalty ends. Of each layer the fewest units stay that validation does not miss; what the
       others gave is folded into them. The seeds of the units that stay are fossilized.

    Where the length of training is unknown, each of the two moments comes when the validation loss has stalled.
    Without validation nothing can be sized: everything that germinated is kept, without penalty. Before the first
    validation nothing grows.

    Args:
        sizing: ``"grow"``: only grown units pay the penalty and may go. ``"shrink"``: only the host's own, from the
            first tick on; nothing germinates. ``"both"``: all of them.
        at: When to grow, as a fraction of the training's optimizer steps, in [0, 1].
        until: When to choose the size, in [0, 1], after ``at``. Before the learning rate decays.
        penalty: Share of an optimizer's step by which the norm of a unit's outgoing weights falls, in [0, 1]. Made
            for optimizers whose steps have about the size of the learning rate, such as Adam.
        tolerance: What narrowing may cost at that moment, all layers together, in points, ``>= 0``: neither the
            logged share nor the loss may get worse by more.
        explains: Share of the held-out residual that new units must explain, in [0, 1]; 0: always grow.
        metric: What ``validation_step`` logs as a share of 1, such as an accuracy or R²: a point is 0.01 of it.
            ``"auto"``: the first logged name with ``acc`` or ``r2`` in it; without one the loss alone counts.
        point: A point of the loss, in its units, ``> 0``; a large one leaves the decision to the share. ``"auto"``:
            0.01 of the targets' variance where targets are real numbers, else 0.02 nats.
        patience: Where the length of training is unknown: ticks over which the validation loss is compared,
            ``>= 1``.
        min_delta: ... and the relative fall below which it has stalled, ``>= 0``.
    """

    fills_budget: ClassVar[bool] = True

    sizing: Direction = "grow"
    at: float = 0.1
    until: float = 0.5
    penalty: float = 0.01
    tolerance: float = 0.5
    explains: float = 0.002
    metric: str = "auto"
    point: float | Auto = "auto"
    patience: int = 3
    min_delta: float = 0.02

    def __post_init__(self) -> None:
        check(self.sizing in ("grow", "shrink", "both"), "tamiyo.sizing", "'grow', 'shrink' or 'both'", self.sizing)
        for name in ("at", "until", "penalty", "explains"):
            check(is_fraction(getattr(self, name)), f"tamiyo.{name}", "a fraction in [0, 1]", getattr(self, name))
        check(self.until > self.at, "tamiyo.until", f"after `tamiyo.at` ({self.at})", self.until)
        for name in ("tolerance", "min_delta"):
            value = getattr(self, name)
            check(is_number(value) and value >= 0, f"tamiyo.{name}", "a non-negative number", value)
        check(is_name(self.metric), "tamiyo.metric", "the name of a logged metric, or 'auto'", self.metric)
        positive = is_number(self.point) and self.point > 0  # type: ignore[operator]
        check(self.point == "auto" or positive, "tamiyo.point", "a positive number or 'auto'", self.point)
        check(is_count(self.patience), "tamiyo.patience", "at least 1 tick", self.patience)

    @property
    def _host(self) -> bool:
        return self.sizing != "grow"

    def decide(self, observation: Observation) -> Sequence[Decision]:
        """Decisions of one tick."""
        others = judge(_without(observation, lambda seed: seed.units is not None))
        if observation.resizings is not None:
            return [*self._penalty_off(observation), *others, *_verdicts(observation)]
        if not observation.can_size:
            growth = () if observation.validates_later else self.grow(observation)
            return [*self._penalty_off(observation), *others, *_unjudged(observation), *growth]
        if observation.penalised and self._time_to_resize(observation):
            resize = Resize(
                host=self._host,
                grown=self.sizing != "shrink",
                tolerance=self.tolerance,
                metric=self.metric,
                point=self.point,
            )
            return [*others, resize]
        return [*others, *self._begin(observation)]

    def grow(self, observation: Observation) -> Sequence[Germinate]:
        """Germinations of one tick: everywhere, once; layers that were off then follow when they are on."""
        if self.sizing == "shrink":
            return []
        layers = [layer for layer in observation.layers if layer.free_beds and layer.dormant]
        if observation.germinations:
            return [Germinate(layer=v.name, reason="to the budget, joined late") for v in layers if v.late]
        if not self._time_to_grow(observation):
            return []
        return [Germinate(layer=layer.name, reason="to the budget, to be sized later") for layer in layers]

    def _begin(self, observation: Observation) -> list[Decision]:
        """Growth and penalty, if their moment has come and growth would help."""
        germinations = list(self.grow(observation))
        if germinations and not observation.germinations and self.explains:
            if observation.assessments is None:
                return [Assess()]
            if all(found.share <= self.explains for found in observation.assessments) and observation.assessments:
                germinations = []
        start: list[Decision] = [*germinations]
        if not observation.penalised and (germinations or (self._host and self._time_to_penalise_host(observation))):
            start.append(Penalize(strength=self.penalty, host=self._host, grown=self.sizing != "shrink"))
        return start

    def _time_to_penalise_host(self, observation: Observation) -> bool:
        return self.sizing == "shrink" or self._time_to_grow(observation)

    def _time_to_grow(self, observation: Observation) -> bool:
        if observation.total_steps is not None:
            return self.at * observation.total_steps <= observation.step
        return stalled(observation.losses, self.patience, self.min_delta)

    def _time_to_resize(self, observation: Observation) -> bool:
        live = [seed for layer in observation.layers for seed in layer.seeds if seed.units is not None]
        if any(not seed.due for seed in live if not seed.fading and seed.stage is not Stage.FOSSILIZED):
            return False  # a newborn that is still warming up can't show yet what it is worth
        if observation.total_steps is not None:
            return observation.step >= self.until * observation.total_steps
        enough = observation.penalised > self.patience
        return enough and stalled(observation.losses, self.patience, self.min_delta)

    def _penalty_off(self, observation: Observation) -> list[Decision]:
        return [Penalize(strength=0.0, host=False, grown=False)] if observation.penalised else []


def _without(observation: Observation, leave: object) -> Observation:
    """The observation without some seeds."""
    assert callable(leave)
    layers = [replace(v, seeds=tuple(s for s in v.seeds if not leave(s))) for v in observation.layers]
    return replace(observation, layers=tuple(layers))


def _due(observation: Observation) -> list[tuple[str, SeedView]]:
    return [(v.name, seed) for v in observation.layers for seed in v.seeds if seed.due and seed.units is not None]


def _verdicts(observation: Observation) -> list[Decision]:
    """Keep the seeds with units left, let the others go."""
    decisions: list[Decision] = []
    for name, seed in _due(observation):
        figures = {"units": float(seed.units or 0)}
        if seed.units:
            decisions.append(Keep(seed=(name, seed.chunk), reason="sized: some units are needed", figures=figures))
        else:
            decisions.append(Cull(seed=(name, seed.chunk), reason="sized: no unit is needed", figures=figures))
    return decisions


def _unjudged(observation: Observation) -> list[Decision]:
    reason = "unjudged: not sized, there is no held-out error"
    return [Keep(seed=(name, seed.chunk), reason=reason) for name, seed in _due(observation)]
