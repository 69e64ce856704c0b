"""Controllers: when and where to grow, and what to keep. Pure functions of an observation."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lightning_morpho.checks import named_arguments
from lightning_morpho.tamiyo.observation import Cull, Decision, Germinate, Keep, Measure, Observation


def judge(observation: Observation) -> list[Decision]:
    """Decide on the seeds that are due, by their contribution to the held-out loss.

    A seed is kept if the lower confidence bound of the rise in loss without it is above 0, else culled.
    Where nothing can be measured it is kept, with the reason ``unjudged``.
    """
    due = [(layer.name, seed.chunk) for layer in observation.layers for seed in layer.seeds if seed.due]
    if not observation.can_measure:
        return [Keep(seed=key, reason="unjudged: no held-out loss") for key in due]
    results = {key: m for m in observation.measurements for key in m.seeds}
    unmeasured = tuple(key for key in due if key not in results)
    if unmeasured:
        return [Measure(seeds=unmeasured)]
    decisions: list[Decision] = []
    for key in due:
        result = results[key]
        figures = {
            "rise": result.rise,
            "lower": result.lower,
            "batches": result.batches,
            "judged_with": len(result.seeds) - 1,
        }
        if math.isnan(result.lower) and result.batches < 2:
            decisions.append(Keep(seed=key, reason="unjudged: fewer than two validation batches", figures=figures))
        elif result.lower > 0:
            decisions.append(Keep(seed=key, reason="proven gain", figures=figures))
        else:
            decisions.append(Cull(seed=key, reason="no proven gain", figures=figures))
    return decisions


class Tamiyo(ABC):
    """A controller. Subclasses say when and where to grow; the judgement of grown seeds is shared.

    ``decide`` must be a pure function of the observation: every rank calls it, and all must agree.
    """

    def decide(self, observation: Observation) -> Sequence[Decision]:
        """Decisions of one tick."""
        return [*judge(observation), *self.grow(observation)]

    @abstractmethod
    def grow(self, observation: Observation) -> Sequence[Germinate]:
        """Germinations of one tick."""


def _everywhere(observation: Observation, reason: str) -> list[Germinate]:
    return [
        Germinate(layer=layer.name, reason=reason) for layer in observation.layers if layer.free_beds and layer.dormant
    ]


@named_arguments
@dataclass(frozen=True, kw_only=True)
class Never(Tamiyo):
    """Grows nothing: seeds stay dormant."""

    def grow(self, observation: Observation) -> Sequence[Germinate]:
        """Nothing."""
        return []


@named_arguments
@dataclass(frozen=True, kw_only=True)
class OneRound(Tamiyo):
    """One round, early: one germination in each layer that has a bed, at the same tick.

    Args:
        at: When, as a fraction of the training's optimizer steps, in [0, 1].
        patience: Where the length of training is unknown: ticks over which the validation loss is
            compared, ``>= 1``.
        min_delta: ... and the relative fall below which the round starts, ``>= 0``.
    """

    at: float = 0.15
    patience: int = 3
    min_delta: float = 0.02

    def __post_init__(self) -> None:
        if not 0 <= self.at <= 1:
            raise ValueError(f"`tamiyo.at` must be a fraction of training in [0, 1], got {self.at}.")
        if self.patience < 1:
            raise ValueError(f"`tamiyo.patience` must be at least 1 tick, got {self.patience}.")
        if not self.min_delta >= 0:
            raise ValueError(f"`tamiyo.min_delta` must be non-negative, got {self.min_delta}.")

    def grow(self, observation: Observation) -> Sequence[Germinate]:
        """Everywhere, once, when the moment has come; layers that were off then follow when they are on."""
        if observation.germinations:
            late = {layer.name for layer in observation.layers if layer.late}
            return [g for g in _everywhere(observation, "one round, joined late") if g.layer in late]
        if observation.total_steps is not None:
            if observation.step < self.at * observation.total_steps:
                return []
            return _everywhere(observation, f"one round at {self.at:.0%} of training")
        if not self._stalled(observation.losses):
            return []
        return _everywhere(observation, f"validation loss fell by less than {self.min_delta:.0%}")

    def _stalled(self, losses: Sequence[float | None]) -> bool:
        if len(losses) <= self.patience:
            return False
        before, now = losses[-1 - self.patience], losses[-1]
        return before is not None and now is not None and before - now < self.min_delta * abs(before)


@named_arguments
@dataclass(frozen=True, kw_only=True)
class Periodic(Tamiyo):
    """One germination after another, in turn over the layers.

    Args:
        start: First tick that grows, ``>= 1``.
        every: Ticks between two rounds, ``>= 1``.
        events: Germinations a round, ``>= 1``.
    """

    start: int = 1
    every: int = 2
    events: int = 1

    def __post_init__(self) -> None:
        for name in ("start", "every", "events"):
            if getattr(self, name) < 1:
                raise ValueError(f"`tamiyo.{name}` must be at least 1, got {getattr(self, name)}.")

    def grow(self, observation: Observation) -> Sequence[Germinate]:
        """In the layers with the fewest germinations so far, the earliest first."""
        elapsed = observation.tick - self.start
        if elapsed < 0 or elapsed % self.every:
            return []
        possible = [layer for layer in observation.layers if layer.free_beds and layer.dormant]
        possible.sort(key=lambda layer: layer.germinations)
        reason = f"periodic, every {self.every} ticks"
        return [Germinate(layer=layer.name, reason=reason) for layer in possible[: self.events]]


@named_arguments
@dataclass(frozen=True, kw_only=True)
class Scripted(Tamiyo):
    """Germinations at given ticks, in given layers.

    Args:
        events: One mapping a germination: ``tick`` (from 1), ``layer``, and ``chunks`` (a list, or
            none for all dormant ones).
    """

    events: Sequence[Mapping[str, Any]] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "events", tuple(self.events))
        for event in self.events:
            unknown = set(event) - {"tick", "layer", "chunks"}
            if unknown or not {"tick", "layer"} <= set(event):
                raise ValueError(
                    f"`tamiyo.events`: an entry has `tick`, `layer` and, if wanted, `chunks`, got {dict(event)}."
                )

    def grow(self, observation: Observation) -> Sequence[Germinate]:
        """What the script says for this tick.

        Raises:
            ValueError: If it names a layer that is not a hybrid one.
        """
        names = [layer.name for layer in observation.layers]
        wanted = [event for event in self.events if event["tick"] == observation.tick]
        unknown = sorted({event["layer"] for event in wanted} - set(names))
        if unknown:
            raise ValueError(f"`tamiyo.events` names the layers {unknown}; the hybrid layers are {names}.")
        return [
            Germinate(
                layer=event["layer"],
                chunks=None if event.get("chunks") is None else tuple(event["chunks"]),
                reason=f"scripted for tick {event['tick']}",
            )
            for event in wanted
        ]
