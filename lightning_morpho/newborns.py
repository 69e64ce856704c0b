"""Seeds that can't learn: told from their neighbours at a tick, and given a new start or culled."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import median

from lightning_morpho.layers import HybridKasminaLayer
from lightning_morpho.layers.starvation import Look, looks_of, relieve_


@dataclass(frozen=True)
class Starved:
    """Seeds that starve, and what became of them.

    Attributes:
        layer: Their layer.
        chunks: Their chunks.
        reason: In words.
        figures: The numbers that decided it.
    """

    layer: str
    chunks: tuple[int, ...]
    reason: str
    figures: Mapping[str, float]


class _Usual:
    """What is usual among the neighbours of a seed: the median of each group, the seed itself left out."""

    def __init__(self, measured: Iterable[tuple[object, float | None]]) -> None:
        self._groups: dict[object, list[float]] = {}
        for group, value in measured:
            if value is not None:
                self._groups.setdefault(group, []).append(value)
        for values in self._groups.values():
            values.sort()

    def beside(self, group: object, value: float) -> float:
        """The median of a group without one of its values; 0 if that was all, below which nobody is."""
        values = self._groups[group]
        own, others = bisect_left(values, value), len(values) - 1
        if not others:
            return 0.0
        middle = (values[i + (i >= own)] for i in {(others - 1) // 2, others // 2})
        return median(middle)


def _gradient_group(layer: str, kind: str, look: Look) -> object:
    """Gradients relative to the host's compare over the whole model; as they are, only within a layer."""
    return kind if look.relative else (kind, layer)


def relieve_starved(layers: Mapping[str, HybridKasminaLayer]) -> list[Starved]:
    """Find the seeds that starve and give them a new start, or let them fade out; at a tick, on every rank alike.

    Args:
        layers: The hybrid layers that are switched on, by name.
    """
    looks = [(name, layer.morpho.kind, look) for name, layer in layers.items() for look in looks_of(layer.morpho)]
    gradients = _Usual((_gradient_group(*each), each[2].gradient) for each in looks)
    spreads = _Usual((kind, look.spread) for _, kind, look in looks)
    found: dict[tuple[str, int], list[tuple[Look, str, dict[str, float]]]] = {}
    for name, kind, look in looks:
        ratio, group = layers[name].morpho.config.starvation.ratio, _gradient_group(name, kind, look)
        usual_gradient = 0.0 if look.gradient is None else gradients.beside(group, look.gradient)
        usual_spread = 0.0 if look.spread is None else spreads.beside(kind, look.spread)
        verdict = _verdict(look, usual_gradient, usual_spread, ratio)
        if verdict is not None:
            found.setdefault((name, look.bed), []).append((look, *verdict))
    told = []
    for (name, bed), entries in found.items():
        chunks = [chunk for look, _, _ in entries for chunk in look.chunks]
        empty = all(look.gradient == 0 for look, _, _ in entries)
        figures = entries[0][2]
        anew = relieve_(layers[name].morpho, bed, chunks, empty=empty, figures=figures)
        fate = "new parameters" if anew else "fades out"
        told += [Starved(name, look.chunks, f"{why}: {fate}", own) for look, why, own in entries]
    return told


def _verdict(
    look: Look, usual_gradient: float, usual_spread: float, ratio: float
) -> tuple[str, dict[str, float]] | None:
    """Why a seed starves, and the figures; None if it does not."""
    if look.gradient is not None and look.gradient <= ratio * usual_gradient:
        reason = "no gradient" if look.gradient == 0 else "hardly any gradient"
        return reason, {"gradient": look.gradient, "neighbours": usual_gradient}
    if look.spread is not None and look.spread <= ratio * usual_spread:
        return "its output does not vary", {"spread": look.spread, "neighbours": usual_spread}
    return None
