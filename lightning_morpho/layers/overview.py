"""What a layer says of its seeds: sums over all of them, and one entry a seed."""

from __future__ import annotations

import math
from typing import Any

from lightning_morpho.layers.seeds import SeedBeds
from lightning_morpho.lifecycle import Stage

STATISTICS = (
    "mean",
    "variance",
    "silent",
    "activation_norm",
    "host_gradient",
    "seed_gradient",
    "gradient_ratio",
)
"""What sampling measures of each chunk unless it is told to measure more; NaN in a report before it has."""


def layer_stats(seeds: SeedBeds) -> dict[str, Any]:
    """Sums over all seeds of a layer, as plain values; see ``ChunkedKasminaLayer.get_layer_stats``."""
    state = seeds.state
    beds = [seeds.bed_at(i) for i in range(len(seeds.beds))]
    live = state.where(*seeds.lifecycle_table.live)
    of_kept = sum(bed.numel for bed in beds if not bed.free and not (bed.occupied & ~bed.kept).any())
    return {
        "blueprint": seeds.kind,
        "seeds": {stage.name: count for stage in Stage if (count := int((state.stage == stage).sum()))},
        "kept_seeds": sum(int(bed.kept.sum()) for bed in beds),
        "germinations": seeds.events,
        "beds": len(beds),
        "free_beds": seeds.free_beds,
        "live_parameters": seeds.live_parameters - of_kept,
        "kept_parameters": of_kept,
        "mean_alpha": float(state.alpha[live].mean()) if len(live) else math.nan,
        "errors": int(state.errors.sum()),
    }


def health_report(seeds: SeedBeds) -> list[dict[str, Any]]:
    """One entry a seed, as plain values; see ``ChunkedKasminaLayer.get_health_report``."""
    report = []
    for chunk in range(len(seeds.state)):
        seed = seeds.seed_at(chunk)
        entry = {"chunk": chunk, "generation": seed.generation, "stage": seed.stage.name, "alpha": seed.alpha}
        entry |= {"age": seed.age, "errors": seed.errors, "recovering": seed.recovering}
        report.append(entry | {"statistics": dict.fromkeys(STATISTICS, math.nan) | dict(seed.health)})
    return report
