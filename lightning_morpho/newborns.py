"""Seeds that can't learn: told from their neighbours at a tick, and given a new start or culled."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import median

from lightning_morpho.layers import HybridKasminaLayer
from lightning_morpho.layers.starvation import Look


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


@dataclass(frozen=True)
class _Case:
    """One look, and the seeds it is compared with."""

    layer: str
    kind: str
    look: Look

    @property
    def gradient_peers(self) -> tuple[object, ...]:
        """Gradients relative to the host's compare over the whole model; as they are, only within a layer."""
        look = self.look
        return (self.kind, look.relative) if look.relative else (self.kind, look.relative, self.layer)


def relieve_starved(layers: Mapping[str, HybridKasminaLayer]) -> list[Starved]:
    """Find the seeds that starve and give them a new start, or let them fade out; at a tick, on every rank alike.

    Args:
        layers: The hybrid layers that are switched on, by name.
    """
    cases = [_Case(name, layer.morpho.kind, look) for name, layer in layers.items() for look in layer.morpho.looks()]
    found: dict[tuple[str, int], list[tuple[Look, str, dict[str, float]]]] = {}
    for case in cases:
        verdict = _verdict(case, cases, layers[case.layer].morpho.config.starvation.ratio)
        if verdict is not None:
            found.setdefault((case.layer, case.look.bed), []).append((case.look, *verdict))
    told = []
    for (name, bed), entries in found.items():
        chunks = [chunk for look, _, _ in entries for chunk in look.chunks]
        empty = all(look.gradient == 0 for look, _, _ in entries)
        figures = entries[0][2]
        anew = layers[name].morpho.relieve(bed, chunks, empty=empty, figures=figures)
        fate = "new parameters" if anew else "fades out"
        told += [Starved(name, look.chunks, f"{why}: {fate}", own) for look, why, own in entries]
    return told


def _verdict(case: _Case, cases: Iterable[_Case], ratio: float) -> tuple[str, dict[str, float]] | None:
    """Why a seed starves, and the figures; None if it does not."""
    look = case.look
    others = [other for other in cases if other is not case]
    if look.gradient is not None:
        usual = _median(o.look.gradient for o in others if o.gradient_peers == case.gradient_peers)
        if look.gradient <= ratio * usual:
            return "no gradient" if look.gradient == 0 else "hardly any gradient", {
                "gradient": look.gradient,
                "neighbours": usual,
            }
    if look.spread is not None:
        usual = _median(o.look.spread for o in others if o.kind == case.kind)
        if look.spread <= ratio * usual:
            return "its output does not vary", {"spread": look.spread, "neighbours": usual}
    return None


def _median(values: Iterable[float | None]) -> float:
    """Median of what was measured; 0 of nothing, below which nobody is."""
    measured = [value for value in values if value is not None]
    return median(measured) if measured else 0.0
