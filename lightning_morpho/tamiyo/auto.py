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
    Assessment,
    Cull,
    Decision,
    Germinate,
    Keep,
    Observation,
    Penalize,
    Resize,
    SeedView,
)
from lightning_morpho.tamiyo.timing import Losses, stalled

ERRORS = 2.0
"""Standard errors by which what new units explain must lie above 0."""

Auto = Literal["auto"]
Direction = Literal["grow", "shrink", "both"]


@named_arguments
@dataclass(frozen=True, kw_only=True)
class AutoSize(Tamiyo):
    """No size given: widen to the budget early, let units that earn nothing fade, keep the fewest that suffice.

    1. From ``at`` of training on, at each tick: would new hidden units explain anything of the held-out residual that
       those there are won't? If so in any layer, every hidden layer becomes as wide as the budget allows. If the
       answer is still no after ``by``, nothing grows.
    2. From then on a group penalty draws the outgoing weights of newborn units to zero, unit by unit.
    3. At ``until`` the penalty ends. Of each layer the fewest units stay that validation does not miss; what the
       others gave is folded into them. The seeds of the units that stay are fossilized.

    New units must explain more than two standard errors. Beside that, of all that can be explained at least the part
    ``explains`` must be theirs alone; or what the host can still explain by learning no longer halves while training
    doubles, so that learning alone won't do (then it is enough if new units explained more at any time since half of
    the steps). How much of the residual is noise matters to neither.

    Where the length of training is unknown, the host is asked until the validation loss has stalled, and the size is
    chosen when it has stalled again. Without validation nothing can be sized: everything that germinated is kept,
    without penalty. Before the first validation nothing grows.

    Args:
        sizing: ``"grow"``: only grown units pay the penalty and may go. ``"shrink"``: only the host's own, from the
            first tick on; nothing germinates. ``"both"``: all of them.
        at: From when on to grow, as a fraction of the training's optimizer steps, in [0, 1].
        by: When to ask for the last time, in [0, 1], not before ``at``: at the first tick from then on.
        until: When to choose the size, in [0, 1], after ``by``. Before the learning rate decays.
        penalty: Share of an optimizer's step by which the norm of a unit's outgoing weights falls, in [0, 1]. Made
            for optimizers whose steps have about the size of the learning rate, such as Adam.
        tolerance: What narrowing may cost at that moment, all layers together, in points, ``>= 0``: neither the
            logged share nor the loss may get worse by more.
        explains: Of all of the held-out residual that can be explained, the part that makes new units welcome at once,
            in [0, 1]; 0: always grow, unasked.
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
    at: float = 0.02
    by: float = 0.2
    until: float = 0.5
    penalty: float = 0.01
    tolerance: float = 0.5
    explains: float = 0.2
    metric: str = "auto"
    point: float | Auto = "auto"
    patience: int = 3
    min_delta: float = 0.02

    def __post_init__(self) -> None:
        check(self.sizing in ("grow", "shrink", "both"), "tamiyo.sizing", "'grow', 'shrink' or 'both'", self.sizing)
        for name in ("at", "by", "until", "penalty", "explains"):
            check(is_fraction(getattr(self, name)), f"tamiyo.{name}", "a fraction in [0, 1]", getattr(self, name))
        check(self.by >= self.at, "tamiyo.by", f"not before `tamiyo.at` ({self.at})", self.by)
        check(self.until > self.by, "tamiyo.until", f"after `tamiyo.by` ({self.by})", self.until)
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
            now = _asked_now(observation)
            if now is None:
                return [Assess()]
            if now and not any(self._welcome(found, observation.assessments or ()) for found in now):
                germinations = []
        start: list[Decision] = [*germinations]
        host = self.sizing == "shrink" or (self.sizing == "both" and self._late(observation))
        if not observation.penalised and (germinations or host):
            start.append(Penalize(strength=self.penalty, host=self._host, grown=self.sizing != "shrink"))
        return start

    def _welcome(self, found: Assessment, all_found: Sequence[Assessment]) -> bool:
        """Whether new units would explain what learning alone won't."""
        if found.part >= self.explains and _surely(found):
            return True
        same = [entry for entry in all_found if entry.layer == found.layer]
        lately = [entry for entry in same if found.step <= 2 * entry.step]
        return any(map(_surely, lately)) and _learns_slowly(found, same)

    def _time_to_grow(self, observation: Observation) -> bool:
        if observation.total_steps is not None and observation.step < self.at * observation.total_steps:
            return False
        return not self._answered(observation)

    def _late(self, observation: Observation) -> bool:
        """Whether the last moment to grow has come."""
        if observation.total_steps is not None:
            return observation.step >= self.by * observation.total_steps
        return self._has_stalled(observation.losses)

    def _answered(self, observation: Observation) -> bool:
        """Whether the host was asked for the last time, at a tick before."""
        if observation.total_steps is None:
            return self._has_stalled(observation.losses[:-1])
        last = self.by * observation.total_steps
        return any(last <= found.step < observation.step for found in observation.assessments or ())

    def _has_stalled(self, losses: Losses) -> bool:
        return any(stalled(losses[:ticks], self.patience, self.min_delta) for ticks in range(1, len(losses) + 1))

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


def _asked_now(observation: Observation) -> Sequence[Assessment] | None:
    """What was found out at this tick; None if it was not asked."""
    found = observation.assessments
    if not found:
        return found
    return [entry for entry in found if entry.step == observation.step] or None


def _surely(found: Assessment) -> bool:
    """Whether new units would explain more than chance does."""
    return found.share > ERRORS * found.error


def _learns_slowly(found: Assessment, same: Sequence[Assessment]) -> bool:
    """Whether what the host can still explain fell more slowly than one over the steps, since half of them."""
    before = [entry for entry in same if 2 * entry.step <= found.step]
    return bool(before) and found.promise * found.step >= before[-1].promise * before[-1].step


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
