"""Where to grow."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from lightning_morpho.tamiyo.observation import Germinate, LayerView, Observation

Score = Literal["narrowest", "earliest", "gradient", "silent", "variance", "correlation", "effective_rank"]
"""What a layer is chosen by."""

_STATISTICS: Mapping[str, str] = {"gradient": "host_gradient"}
"""Statistics that stand under another name than their score."""


def growable(observation: Observation) -> list[LayerView]:
    """The layers that can take a germination, in the model's order."""
    return [layer for layer in observation.layers if layer.growable]


def germinate(layers: Iterable[LayerView], reason: str) -> list[Germinate]:
    """One germination in each of some layers, in all their dormant chunks."""
    return [Germinate(layer=layer.name, reason=reason) for layer in layers]


def known(values: Iterable[float]) -> list[float]:
    """The values that were measured."""
    return [value for value in values if math.isfinite(value)]


def score(layer: LayerView, by: Score) -> float:
    """How much a layer asks for growth; NaN if that was not measured.

    ``narrowest``: minus its width. ``earliest``: minus its position. ``gradient``: energy of the gradient of its
    weights. The others: mean of the statistic over its chunks; of ``variance``, minus that.
    """
    if by == "narrowest":
        return -layer.width
    if by == "earliest":
        return -layer.position
    values = known(layer.statistics.get(_STATISTICS.get(by, by), ()))
    if not values:
        return math.nan
    if by == "gradient":
        return sum(value * value for value in values)
    mean = sum(values) / len(values)
    return -mean if by == "variance" else mean


def ranked(layers: Sequence[LayerView], by: Score) -> list[LayerView]:
    """Layers with a known score, the highest first, ties to the narrowest and then to the earliest."""
    scored = [layer for layer in layers if not math.isnan(score(layer, by))]
    return sorted(scored, key=lambda layer: (-score(layer, by), layer.width, layer.position))
