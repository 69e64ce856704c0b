"""Adapting a trained host: seeds everywhere from the start, and soon the budget goes where it helps most."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lightning_morpho.checks import check, is_fraction, named_arguments
from lightning_morpho.lifecycle import Stage
from lightning_morpho.tamiyo.base import Tamiyo
from lightning_morpho.tamiyo.observation import (
    Cull,
    Decision,
    Germinate,
    Keep,
    LayerView,
    Measure,
    Observation,
    SeedKey,
    SeedView,
)

GIVE_UP = 0.5
"""Share of training after which seeds that could not be measured are all kept."""


@named_arguments
@dataclass(frozen=True, kw_only=True)
class Probation(Tamiyo):
    """A seed in every layer before the first step; once, the least useful are moved to the most useful.

    The probation is held when ``at`` of the training is over, all seeds have warmed up and a held-out loss can be
    had. Seeds are ordered by the rise of that loss without each of them. The last ``share`` are culled, the others
    kept, and the parameters so freed go to the layers of the best: from the top down, one more bed each, while
    there are beds and the freed parameters suffice. With too few steps, or no held-out loss, all are kept. In the
    lifecycle ``full``, where a kept seed is still fine-tuned, freed parameters are not used again.

    Args:
        at: When, as a fraction of the training's optimizer steps, in [0, 1]; without a known end of training as
            soon as all seeds have warmed up.
        share: Share of the seeds that is moved, in [0, 1); 0: none, which is plain low-rank adaptation.
    """

    at: float = 0.1
    share: float = 0.5

    def __post_init__(self) -> None:
        check(is_fraction(self.at), "tamiyo.at", "a fraction of training in [0, 1]", self.at)
        check(is_fraction(self.share) and self.share < 1, "tamiyo.share", "in [0, 1)", self.share)

    def begin(self, observation: Observation) -> Sequence[Germinate]:
        """A seed in every layer."""
        return self._sown(observation.layers, "from the start")

    def grow(self, observation: Observation) -> Sequence[Germinate]:
        """Layers that were off at the start get their seed when they are on."""
        return self._sown([layer for layer in observation.layers if layer.late], "joined late")

    def _sown(self, layers: Sequence[LayerView], reason: str) -> list[Germinate]:
        return [
            Germinate(layer=layer.name, reason=reason)
            for layer in layers
            if layer.free_beds and layer.dormant and not layer.germinations
        ]

    def decide(self, observation: Observation) -> Sequence[Decision]:
        """Hold the probation when it is due; seeds that got the freed budget are kept without another one."""
        live = [(layer, seed) for layer in observation.layers for seed in layer.seeds if _undecided(seed)]
        moved = [(layer, seed) for layer, seed in live if seed.generation and seed.due]
        kept: list[Decision] = [Keep(seed=_key(*one), reason="took over freed parameters") for one in moved]
        trial = [one for one in live if not one[1].generation]
        return [*kept, *self._probation(observation, trial), *self.grow(observation)]

    def _probation(self, observation: Observation, trial: list[tuple[LayerView, SeedView]]) -> Sequence[Decision]:
        total = observation.total_steps
        done = 1.0 if total is None else observation.step / max(1, total)
        if not trial or done < self.at or not all(seed.due for _, seed in trial):
            return []
        keys = [_key(*one) for one in trial]
        if not self.share:
            return [Keep(seed=key, reason="no probation") for key in keys]
        if observation.measurements:
            return self._verdicts(observation, keys)
        if observation.can_measure:
            return [Measure(seeds=tuple(keys))]
        if total is None or done < GIVE_UP:
            return []
        return [Keep(seed=key, reason="unjudged: no held-out loss") for key in keys]

    def _verdicts(self, observation: Observation, keys: list[SeedKey]) -> list[Decision]:
        rises = {key: m.rise / len(m.seeds) for m in observation.measurements for key in m.seeds if m.rise == m.rise}
        # Equal rises stay in the order of the layers. What could not be measured is kept, and gets nothing.
        order = sorted((key for key in keys if key in rises), key=lambda key: -rises[key])
        count = math.floor(self.share * len(order))
        best, rest = order[: len(order) - count], order[len(order) - count :]
        unknown = [key for key in keys if key not in rises]
        decisions: list[Decision] = [
            *(Keep(seed=key, reason="probation passed", figures={"rise": rises[key]}) for key in best),
            *(Keep(seed=key, reason="unjudged: not measured") for key in unknown),
            *(Cull(seed=key, reason="least useful in probation", figures={"rise": rises[key]}) for key in rest),
        ]
        return decisions + list(self._moved(observation, best, rest))

    def _moved(self, observation: Observation, best: list[SeedKey], rest: list[SeedKey]) -> Sequence[Germinate]:
        """Beds for the best layers that together cost no more than those that are freed."""
        layers = {layer.name: layer for layer in observation.layers}
        active = {layer.name for layer in observation.layers for seed in layer.seeds if seed.stage is Stage.ACTIVE}
        lost = {name for name, _ in rest} - {name for name, _ in best}
        freed = sum(layers[name].bed_parameters for name in lost)
        germinations = []
        for name in dict.fromkeys(name for name, _ in best):
            cost = layers[name].bed_parameters
            if layers[name].free_beds and cost <= freed and name in active:
                freed -= cost
                chunks = tuple(chunk for layer, chunk in best if layer == name)
                germinations.append(Germinate(layer=name, chunks=chunks, reason="most useful in probation"))
        return germinations


def _undecided(seed: SeedView) -> bool:
    return seed.bed is not None and not seed.fading and seed.stage not in (Stage.FINE_TUNING, Stage.FOSSILIZED)


def _key(layer: LayerView, seed: SeedView) -> SeedKey:
    return layer.name, seed.chunk
