"""The execution plan of a layer: which of its beds act or incubate, and what computes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from lightning_morpho.layers.graft import GraftPlan
from lightning_morpho.layers.incubation import Nursery
from lightning_morpho.layers.span import rest_links_, span_plan
from lightning_morpho.lifecycle import Stage

if TYPE_CHECKING:
    from lightning_morpho.layers.seeds import SeedBeds


def settle_beds_(seeds: SeedBeds) -> dict[int, np.ndarray]:
    """Let beds wait whose seeds neither act nor incubate; blend weights of the others are returned."""
    acting = {}
    for index, bed in seeds.live_beds().items():
        alpha = seeds.row_alpha(index)
        busy = bool(np.count_nonzero(alpha) or np.count_nonzero(incubating_rows(seeds, index)))
        if busy:
            acting[index] = alpha
        bed.rest(not busy and not bed.kept.any())
        rate = seeds.config.lifecycle.fine_tuning_rate if _fine_tunes(seeds, index) else 1.0
        if bed.rate != rate:
            bed.rate = rate
    rest_links_(seeds)
    return acting


def incubating_rows(seeds: SeedBeds, index: int) -> np.ndarray:
    """Which chunks of a bed incubate, bool ``(N,)``."""
    state = seeds.state
    if seeds.config.lifecycle.incubation == "none":
        return np.zeros(len(state), bool)
    return (state.bed == index) & (state.stage == Stage.TRAINING) & ~state.fading


def lend_beds_(seeds: SeedBeds, acting: Mapping[int, np.ndarray]) -> list[int]:
    """Free beds that fill the number of those in one plan up to a power of two."""
    live = _launched(seeds, acting)
    free = [i for i in range(len(seeds.beds)) if seeds.bed_at(i).free]
    lent = free[: (1 << (live - 1).bit_length()) - live] if live else []
    for index in free:
        seeds.bed_at(index).lend(index in lent)
    return lent


def plan_(seeds: SeedBeds, acting: Mapping[int, np.ndarray]) -> None:
    """Plan what these beds do.

    Args:
        seeds: The seeds of a layer.
        acting: Blend weights of each bed that acts or incubates, one a chunk.
    """
    incubating = {index: incubating_rows(seeds, index) for index in acting}
    young = {index: rows for index, rows in incubating.items() if np.count_nonzero(rows)}
    # A module takes long to set an attribute: only what changes is set.
    if seeds.incubating != bool(young):
        seeds.incubating = bool(young)
    if seeds.blueprint.source == "producer":
        alphas, rows = list(acting.values()), list(incubating.values())
        seeds.plan = span_plan(seeds, list(acting), alphas, rows) if acting else None
        return
    grown = {i: alpha for i, alpha in acting.items() if i not in young or np.count_nonzero(alpha)}
    if young or seeds.nursery is not None:
        seeds.nursery = _nursery(seeds, young) if young else None
    seeds.plan = _graft_plan(seeds, grown) if grown else None


def _fine_tunes(seeds: SeedBeds, index: int) -> bool:
    """Whether the live seeds of a bed are all in FINE_TUNING."""
    live = seeds.lifecycle_table.live
    if Stage.FINE_TUNING not in live:
        return False
    counts = np.bincount(seeds.state.stage[seeds.state.bed == index], minlength=max(Stage) + 1)
    return bool(counts[Stage.FINE_TUNING]) and not any(counts[stage] for stage in live - {Stage.FINE_TUNING})


def _launched(seeds: SeedBeds, acting: Mapping[int, np.ndarray]) -> int:
    """How many beds one plan holds; incubating ones have another, but for spans."""
    if seeds.blueprint.source == "producer":
        return len(acting)
    return sum(bool(alpha.any() or not incubating_rows(seeds, index).any()) for index, alpha in acting.items())


def _nursery(seeds: SeedBeds, young: Mapping[int, np.ndarray]) -> Nursery:
    beds = {index: seeds.bed_at(index) for index in young}
    return Nursery(seeds.blueprint, beds, list(young.values()), seeds.config.grafting.blend, seeds.faults)


def _graft_plan(seeds: SeedBeds, grown: Mapping[int, np.ndarray]) -> GraftPlan:
    return GraftPlan(
        seeds.blueprint,
        [seeds.bed_at(index) for index in grown],
        list(grown.values()),
        seeds.plan if isinstance(seeds.plan, GraftPlan) else None,
        fused=seeds.features.get("fused_kernels", True),
        blend=seeds.config.grafting.blend,
        indices=list(grown),
        faults=seeds.faults,
    )
