"""The topology of a layer's seeds as plain values: what a checkpoint holds beside the parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_morpho.layers.seeds import SeedBeds


def topology_of(seeds: SeedBeds) -> dict[str, Any]:
    """Stages, who lies in which bed, links, and what the layer was configured with."""
    return {
        "num_seeds": seeds.blueprint.site.chunks.num_chunks,
        "blueprint": asdict(seeds.config.blueprint),
        "blend": seeds.config.grafting.blend,
        "events": seeds.events,
        "steps": seeds.steps,
        "off": seeds.off,
        **seeds.stages.to_dict(),
        "signals": seeds.signals.to_dict(),
        "beds": [seeds.bed_at(i).to_dict() for i in range(len(seeds.beds))],
        "links": {key: link.to_dict() for key, link in zip(seeds.links, seeds.links.all_links(), strict=True)},
        "producers": [tap.producer.name for tap in seeds.inlets],
        "confirmed": seeds.confirmed,
        "refused": seeds.refused,
        "host_alive": seeds.host_alive.tolist(),
    }


def load_topology_(seeds: SeedBeds, saved: Mapping[str, Any]) -> None:
    """Restore what :func:`topology_of` gave."""
    seeds.events, seeds.steps = saved["events"], saved["steps"]
    seeds.stages.load_dict(saved)
    seeds.signals.load_dict(saved.get("signals", {}))
    for index, bed in enumerate(saved["beds"]):
        seeds.bed_at(index).load_dict(bed)
    for link, values in zip(seeds.links.all_links(), saved["links"].values(), strict=True):
        link.load_dict(values)
    seeds.confirmed, seeds.refused = saved["confirmed"], saved["refused"]
    seeds.host_alive[:] = saved.get("host_alive", True)
    seeds.switch(not saved.get("off", False))
    seeds.refresh()
    if seeds.outlet is not None:
        seeds.outlet.consumer.refresh()  # type: ignore[operator]


def check_topology(seeds: SeedBeds, saved: Mapping[str, Any]) -> None:
    """Refuse the topology of a layer that was configured otherwise.

    Raises:
        ValueError: With both values of what differs.
    """
    own = {
        "num_seeds": seeds.blueprint.site.chunks.num_chunks,
        "blueprint": asdict(seeds.config.blueprint),
        "blend": seeds.config.grafting.blend,
        "beds": len(seeds.beds),
        "producers": [tap.producer.name for tap in seeds.inlets],
    }
    found = {key: len(saved[key]) if key == "beds" else saved[key] for key in own}
    wrong = [key for key in own if found[key] != own[key]]
    if wrong:
        theirs, ours = ({key: values[key] for key in wrong} for values in (found, own))
        raise ValueError(
            f"Layer `{seeds.name}`: the checkpoint was made with {theirs}, but this run is configured with {ours}. "
            "Use the checkpoint's values in `layers`, `blueprint`, `grafting` and `budget`."
        )
    hidden = len(saved.get("host_alive", seeds.host_alive))
    if hidden != len(seeds.host_alive):
        raise ValueError(
            f"Layer `{seeds.name}`: the checkpoint's host has {hidden} hidden units before it, this model "
            f"{len(seeds.host_alive)}. Build the model with the sizes of the run."
        )
