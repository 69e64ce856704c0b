"""One early round in all layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lightning_morpho.checks import named_arguments
from lightning_morpho.tamiyo.base import Tamiyo
from lightning_morpho.tamiyo.observation import Germinate, Observation
from lightning_morpho.tamiyo.places import germinate, growable
from lightning_morpho.tamiyo.timing import Moment


@named_arguments
@dataclass(frozen=True, kw_only=True)
class Uniform(Moment, Tamiyo):
    """One round, early: one germination in each layer that has a bed, at the same tick.

    Another round opens when the data change; it needs free beds (``layers.beds`` above 1, or culled seeds).
    """

    def grow(self, observation: Observation) -> Sequence[Germinate]:
        """Everywhere, when the moment has come; layers that were off then follow when they are on."""
        layers, reason = growable(observation), self.opens(observation)
        if reason is not None:
            return germinate(layers, reason)
        if observation.germinations:
            return germinate((layer for layer in layers if layer.late), "one round, joined late")
        return []
