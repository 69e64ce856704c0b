"""One germination after another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lightning_morpho.checks import named_arguments
from lightning_morpho.tamiyo.base import Tamiyo
from lightning_morpho.tamiyo.observation import Germinate, Observation
from lightning_morpho.tamiyo.places import germinate, growable


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
        possible = sorted(growable(observation), key=lambda layer: (layer.germinations, layer.position))
        return germinate(possible[: self.events], f"periodic, every {self.every} ticks")
