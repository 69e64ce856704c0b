"""Germinations: whether a layer can take one, and what happens to its beds then."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from lightning_morpho.layers.beds import derived_generator
from lightning_morpho.layers.span import open_links_
from lightning_morpho.lifecycle import LifecycleError

if TYPE_CHECKING:
    from lightning_morpho.layers.seeds import SeedBeds


def check_germination(seeds: SeedBeds, chunks: Iterable[int] | None) -> tuple[list[int], int]:
    """Which chunks a germination would take, and which bed.

    Args:
        seeds: The seeds of a layer.
        chunks: Chunks, None for every dormant one.

    Raises:
        ValueError: For a chunk out of range or named twice.
        LifecycleError: If a seed is not dormant, the layer's pair is not confirmed, no bed is free, or a budget of
            the run is spent.
    """
    wanted = seeds.stages.check_dormant(chunks)
    _check_pair(seeds)
    bed = seeds.free_bed()
    if bed is None:
        raise LifecycleError(f"Layer `{seeds.name}`{_no_bed(seeds)}")
    objection = None if seeds.objection is None else seeds.objection()
    if objection is not None:
        raise LifecycleError(f"Layer `{seeds.name}` can't grow now: {objection}.")
    return wanted, bed


def _check_pair(seeds: SeedBeds) -> None:
    if seeds.refused is not None:
        raise LifecycleError(f"Layer `{seeds.name}` can't grow `{seeds.kind}`: {seeds.refused}.")
    if not seeds.confirmed:
        raise LifecycleError(
            f"Layer `{seeds.name}` can't grow `{seeds.kind}` yet: its pair was proposed from the code and must be "
            "confirmed. MorphoCallback does that on the first training batch; in a loop of your own call "
            "`confirm_pairs_(model, example)` or train one step under `PairProbe`."
        )


def _no_bed(seeds: SeedBeds) -> str:
    if not len(seeds.beds) and seeds.outlet is not None:
        return f" has no beds of its own: it becomes wider when `{seeds.outlet.consumer.name}` grows."
    return (
        f": all {len(seeds.beds)} beds are taken. Raise `layers.beds` (and `budget.parameters`), or cull a seed first."
    )


def germinate_(seeds: SeedBeds, chunks: Iterable[int] | None, reason: str) -> list[int]:
    """Grow the blueprint in these chunks, in the next free bed; see :meth:`SeedBeds.germinate`."""
    wanted, index = check_germination(seeds, chunks)
    generations = seeds.state.generation[wanted].tolist()
    generator = derived_generator(seeds.config.seed, seeds.name, tuple(wanted), seeds.events)
    warmup = seeds.config.warmup.length(seeds.steps)
    seeds.bed_at(index).open(seeds.blueprint, wanted, generations, seeds.events, warmup, generator)
    open_links_(seeds, index, warmup, generator)
    seeds.starvation.forget(index)
    seeds.events += 1
    seeds.stages.germinate(wanted, index, reason)
    seeds.refresh()
    return wanted
