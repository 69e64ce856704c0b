"""A policy that draws its decisions: the tick alone decides, so every rank of a run draws the same."""

from __future__ import annotations

import random

from lightning_morpho import Observation, Stage, Tamiyo
from lightning_morpho.tamiyo import Cull, Decision, Germinate, Keep


class RandomEvents(Tamiyo):
    """Germinates, keeps and culls at random.

    Args:
        germinate: Chance that a layer with a free bed grows at a tick, in some of its dormant chunks.
        end: Chance that a seed that is trained ends at a tick.
        keep: Chance that a seed that ends is kept; else it is culled.
    """

    def __init__(self, *, germinate: float = 0.5, end: float = 0.4, keep: float = 0.05) -> None:
        self.germinate, self.end, self.keep = germinate, end, keep

    def grow(self, observation: Observation) -> list[Germinate]:
        return []

    def decide(self, observation: Observation) -> list[Decision]:
        draw = random.Random(observation.tick)
        decisions: list[Decision] = []
        for layer in observation.layers:
            if layer.dormant and layer.free_beds and draw.random() < self.germinate:
                some = draw.sample(layer.dormant, draw.randint(1, min(4, len(layer.dormant))))
                decisions.append(Germinate(layer=layer.name, chunks=tuple(some), reason="drawn", force=True))
            for seed in layer.seeds:
                if seed.stage is Stage.ACTIVE and not seed.fading and draw.random() < self.end:
                    act = Keep if draw.random() < self.keep else Cull
                    decisions.append(act(seed=(layer.name, seed.chunk), reason="drawn"))
        return decisions
