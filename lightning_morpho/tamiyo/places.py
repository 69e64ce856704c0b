"""Where to grow."""

from __future__ import annotations

from collections.abc import Iterable

from lightning_morpho.tamiyo.observation import Germinate, LayerView, Observation


def growable(observation: Observation) -> list[LayerView]:
    """The layers that can take a germination, in the model's order."""
    return [layer for layer in observation.layers if layer.growable]


def germinate(layers: Iterable[LayerView], reason: str) -> list[Germinate]:
    """One germination in each of some layers, in all their dormant chunks."""
    return [Germinate(layer=layer.name, reason=reason) for layer in layers]
