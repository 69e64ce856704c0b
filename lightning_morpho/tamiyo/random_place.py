"""Chance, as a control: a policy must beat it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from lightning_morpho.checks import check, is_count, is_fraction, named_arguments
from lightning_morpho.tamiyo.base import Tamiyo
from lightning_morpho.tamiyo.observation import Germinate, Observation
from lightning_morpho.tamiyo.places import germinate, growable


@named_arguments
@dataclass(frozen=True, kw_only=True)
class RandomPlace(Tamiyo):
    """Germinations at random ticks in random layers: the control that every other policy must beat.

    The draws depend on the seed, the tick and the layers' names alone.

    Args:
        rate: Chance of a round at each tick, in [0, 1].
        events: Layers that germinate in a round, ``>= 1``.
        seed: Random seed of the draws, ``>= 0``.
    """

    rate: float = 0.2
    events: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        check(is_fraction(self.rate), "tamiyo.rate", "a chance in [0, 1]", self.rate)
        check(is_count(self.events), "tamiyo.events", "at least 1 layer a round", self.events)
        check(is_count(self.seed, 0), "tamiyo.seed", "a non-negative integer", self.seed)

    def grow(self, observation: Observation) -> Sequence[Germinate]:
        """By chance."""
        draw = random.Random(f"{self.seed}:{observation.tick}")
        if draw.random() >= self.rate:
            return []
        possible = sorted(growable(observation), key=lambda layer: layer.name)
        chosen = draw.sample(possible, min(self.events, len(possible)))
        return germinate(chosen, f"by chance, seed {self.seed}")
