"""One early round in the place that a real trial chose."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lightning_morpho.checks import check, check_flags, is_count, is_fraction, named_arguments
from lightning_morpho.tamiyo.base import Tamiyo
from lightning_morpho.tamiyo.observation import Decision, LayerView, Observation, Tried, Try
from lightning_morpho.tamiyo.places import germinate, growable, ranked
from lightning_morpho.tamiyo.timing import Moment


@named_arguments
@dataclass(frozen=True, kw_only=True)
class Trial(Moment, Tamiyo):
    """One round, early, in the layer that proved best when it was tried.

    When the moment has come each candidate grows for a short time, one after the other, from the same state of the
    run and on the same batches; after each everything is put back, bit for bit. Then the one with the lowest held-out
    loss germinates anew. With ``shared`` all candidates grow together, once, and each is left out at the end: the one
    without which the held-out loss rises most germinates. What trials cost is in the event log, the field reports and
    the figures ``trial_steps``, ``trial_seconds`` and ``trial_flops`` of the run. Where nothing can be tried (no
    held-out loss, manual optimization, several optimizers, sharded models, data that can't be read twice): the
    narrowest layer, and the reason says why.

    It is for those who must choose one layer and know none: on two small tasks the choices of trials in turn did not
    make up for their cost (``python -m benchmarks.trial``). With no cost charged, on two others (``python -m
    benchmarks.trial_places``), a shared trial of 6 % of the steps chose better than chance, and not worse than trials
    in turn of as many steps or twice as many; no better than the narrowest layer, which costs nothing, and with lower
    means than ``Uniform``, which needs no choice.

    A trial needs memory for one more copy of the weights and the optimizer's state.

    Args:
        share: Optimizer steps of one trial as a share of the training's, or of the steps so far where its length is
            unknown, in (0, 1].
        candidates: Most layers that are tried, the narrowest first, ``>= 1``.
        layers: Layers that germinate in a round, the best of those tried, ``>= 1``.
        shared: Whether all candidates share one trial; else each has its own, one after the other.
    """

    share: float = 0.02
    candidates: int = 8
    layers: int = 1
    shared: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check(is_fraction(self.share) and self.share > 0, "tamiyo.share", "a fraction in (0, 1]", self.share)
        check(is_count(self.candidates), "tamiyo.candidates", "at least 1 layer", self.candidates)
        check(is_count(self.layers), "tamiyo.layers", "at least 1 layer", self.layers)
        check_flags(self, "tamiyo", "shared")

    def grow(self, observation: Observation) -> Sequence[Decision]:
        """Ask for the trials when the moment has come, then grow where they went best."""
        opened = self.opens(observation)
        if opened is None:
            return []
        places = ranked(growable(observation), "narrowest")[: self.candidates]
        if len(places) <= self.layers:
            return germinate(places, f"{opened}, there is nothing to choose from")
        if observation.no_trial is not None:
            return germinate(places[: self.layers], f"{opened}, by narrowest, no trial: {observation.no_trial}")
        if observation.trials is None:
            steps = self._steps(observation)
            return [Try(places=tuple((layer.name,) for layer in places), steps=steps, shared=self.shared)]
        best = _best(places, observation.trials)
        if not best:
            return germinate(places[: self.layers], f"{opened}, by narrowest, no trial came to an end")
        how = "in a shared trial" if self.shared else "trials"
        return germinate(best[: self.layers], f"{opened}, the best of {len(observation.trials)} {how}")

    def _steps(self, observation: Observation) -> int:
        total = observation.step if observation.total_steps is None else observation.total_steps
        return max(1, round(self.share * total))


def _best(layers: Sequence[LayerView], trials: Sequence[Tried]) -> list[LayerView]:
    """Layers of whose trial something is known, the best first; ties keep their order."""
    costs = {tried.place: tried.cost for tried in trials}
    known = [layer for layer in layers if math.isfinite(costs.get((layer.name,), math.inf))]
    return sorted(known, key=lambda layer: costs[layer.name,])
