"""The figures of one tick: of each seed, each layer and the run, as plain numbers and numpy arrays."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from lightning_morpho.layers import HybridKasminaLayer, dead_parameters
from lightning_morpho.layers.seeds import SeedBeds
from lightning_morpho.lifecycle import Stage
from lightning_morpho.telemetry.events import SeedRecord
from lightning_morpho.telemetry.field_reports import TrialCost

SAMPLED_FIGURES: Mapping[str, str] = {
    "mean": "mean of the chunk's output",
    "variance": "variance of it, mean over its units",
    "silent": "share of units never above 0: dead behind a ReLU",
    "activation_norm": "root mean square of the output's length",
    "host_gradient": "length of the gradient of the base weights of this chunk",
    "seed_gradient": "length of the gradient of its bed; of the whole bed where seeds share it",
    "gradient_ratio": "seed_gradient / host_gradient",
    "correlation": "mean size of the correlation of two units of the chunk",
    "effective_rank": "dimensions that the chunk's units use, as a share of their number",
}
"""Figures of a seed that were sampled since the last tick, and what they mean."""

SEED_FIGURES: Mapping[str, str] = {
    "stage": "stage",
    "age": "ticks in this stage",
    "alpha": "blend weight in [0, 1]",
    "generation": "how many seeds the chunk had before",
    "errors": "errors contained so far",
    "parameters": "parameters that it added: its share of the bed",
    "credit": "rise of the held-out loss without it, when last measured",
    "credit_lower": "lower confidence bound of that",
    "credit_upper": "upper confidence bound of that",
    **SAMPLED_FIGURES,
}
"""Figures of a seed and what they mean."""

LAYER_FIGURES: Mapping[str, str] = {
    "alpha": "mean blend weight of the current seeds",
    "active_share": "share of chunks to whose output growth adds",
    "added_parameters": "parameters that growth added",
    "errors": "errors contained so far",
    "credit": "sum of the measured credits of the seeds in place; seeds judged together share what they give together",
    "forward_ms": "milliseconds of a forward call",
    **{name: f"{text}; mean over the chunks" for name, text in SAMPLED_FIGURES.items()},
}
"""Figures of a layer and what they mean."""

RUN_FIGURES: Mapping[str, str] = {
    "parameters": "parameters of the model with what growth added, as it would be exported",
    "added_parameters": "parameters that growth added and has not taken back; below 0 if sizing removed more",
    "growth_ratio": "parameters now / at the start",
    "return_per_parameter": "measured credit of the seeds in place / added parameters, in loss units",
    "germinations": "germination events so far",
    "seeds_dormant": "seeds that wait",
    "seeds_live": "seeds that grow",
    "seeds_fossilized": "seeds kept",
    "seeds_recovering": "seeds culled, rolled back or in error that wait for the embargo's end",
    "errors": "errors contained so far",
    "rollbacks": "times that the run or its rollout was set back",
    "layers_on": "layers that the rollout has switched on",
    "cohort_share": "share of the prepared layers that the rollout has switched on",
    "tick_seconds": "seconds that this tick took, measurements included, trials apart",
    "tick_share": "share of the time since the fit began that ticks took, trials apart",
    "trial_steps": "optimizer steps that trials have cost so far",
    "trial_seconds": "seconds that trials have cost so far",
    "trial_flops": "floating-point operations that trials have cost so far on one rank",
}
"""Figures of the run and what they mean."""

_IN_PLACE = frozenset(stage.name for stage in Stage) - {
    "DORMANT", "CULLED", "CANCELLED", "ROLLED_BACK", "ERROR_RECOVERY"
}  # fmt: skip

Records = Mapping[tuple[int, int], SeedRecord]
"""What is known of each seed of a layer that left dormancy, by chunk and generation."""


def records_by_layer(records: Iterable[SeedRecord]) -> dict[str, dict[tuple[int, int], SeedRecord]]:
    """Records of the seeds of each layer."""
    found: dict[str, dict[tuple[int, int], SeedRecord]] = {}
    for record in records:
        found.setdefault(record.layer, {})[record.chunk, record.generation] = record
    return found


@dataclass(frozen=True, kw_only=True)
class LayerFigures:
    """Figures of one layer.

    Attributes:
        name: Its name.
        on: Whether the rollout has it switched on.
        stages: Number of seeds by stage, empty ones left out.
        values: Figures by name, NaN where not measured.
        seeds: Figures of all its seeds by name, ``(N,)`` each, NaN where not measured.
    """

    name: str
    on: bool
    stages: Mapping[str, int]
    values: Mapping[str, float]
    seeds: Mapping[str, np.ndarray]

    def maps(self) -> dict[str, np.ndarray]:
        """Stage, alpha and generation of all seeds, a byte each."""
        return {
            "stage": self.seeds["stage"].astype(np.uint8),
            "alpha": np.round(self.seeds["alpha"] * 255).astype(np.uint8),
            "generation": np.minimum(self.seeds["generation"], 255).astype(np.uint8),
        }


class Credit(NamedTuple):
    """Credit of one seed, in units of the loss; NaN where nothing was measured.

    Attributes:
        rise: Rise of the held-out loss without it.
        lower: One-sided lower confidence bound of that.
        upper: One-sided upper bound.
    """

    rise: float
    lower: float
    upper: float


def credit_of(record: SeedRecord) -> Credit:
    """Measured credit of a seed; seeds that can only be left out together share what was found, in equal parts."""
    figures = record.figures
    # Where seeds were judged as a group each was left out by itself, too: its rise is its own.
    shared_by = 1 if "joint" in figures else 1 + figures.get("judged_with", 0)
    return Credit(*(figures.get(name, math.nan) / shared_by for name in Credit._fields))


def contribution_of(record: SeedRecord) -> float:
    """What a seed adds to the credit of its layer and the run.

    Of seeds judged together it is an equal part of what they give together: each alone may be worth nearly all of
    it, and the sum of that would count it several times.
    """
    if "joint" in record.figures:
        return record.figures["joint"] / (1 + record.figures["judged_with"])
    return credit_of(record).rise


def seed_figures(seeds: SeedBeds, records: Records) -> dict[str, np.ndarray]:
    """Figures of all seeds of a layer: those of :data:`SEED_FIGURES` that are known, ``(N,)`` each.

    Args:
        seeds: The layer's seeds.
        records: What is known of the layer's seeds that left dormancy.
    """
    state = seeds.state
    credit = np.full((len(Credit._fields), len(state)), math.nan)
    for (chunk, generation), record in records.items():
        if record.figures and state.stage[chunk] != Stage.DORMANT and state.generation[chunk] == generation:
            credit[:, chunk] = credit_of(record)
    known = {name: getattr(state, name).copy() for name in ("stage", "age", "alpha", "generation", "errors")} | {
        "parameters": _parameters(seeds),
        "credit": credit[0],
        "credit_lower": credit[1],
        "credit_upper": credit[2],
    }
    return known | {name: values.numpy() for name, values in seeds.health.items()}


def _parameters(seeds: SeedBeds) -> np.ndarray:
    """Each seed's share of its bed; 0 for a seed without one."""
    shares = np.zeros(len(seeds.state))
    for index in np.unique(seeds.state.bed[seeds.state.bed >= 0]).tolist():
        bed = seeds.bed_at(index)
        shares[seeds.state.bed == index] = bed.numel / max(int(bed.occupied.sum()), 1)
    return shares


def layer_figures(layer: HybridKasminaLayer, records: Records, forward_ms: float = math.nan) -> LayerFigures:
    """Figures of one layer.

    Args:
        layer: The layer.
        records: What is known of the layer's seeds that left dormancy.
        forward_ms: Milliseconds of a forward call, NaN if that was not measured.
    """
    seeds = layer.morpho
    figures = seed_figures(seeds, records)
    counts = np.bincount(figures["stage"], minlength=len(Stage))
    occupied = [seeds.bed_at(i).occupied for i in range(len(seeds.beds))]
    judged = [r for r in records.values() if r.figures and r.stage in _IN_PLACE]
    values = {
        "alpha": float(figures["alpha"].mean()),
        "active_share": float(np.any(occupied, axis=0).mean()) if occupied else 0.0,
        "added_parameters": float(seeds.live_parameters),
        "errors": float(figures["errors"].sum()),
        "credit": _sum_known(np.array([contribution_of(r) for r in judged])),
        "forward_ms": forward_ms,
    }
    sampled = {name: _mean_known(figures[name]) for name in seeds.health}
    return LayerFigures(
        name=seeds.name,
        on=not seeds.off,
        stages={stage.name: int(counts[stage]) for stage in Stage if counts[stage]},
        values=values | sampled,
        seeds=figures,
    )


def _sum_known(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(known.sum()) if known.size else math.nan


def _mean_known(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else math.nan


def run_figures(
    layers: Mapping[str, HybridKasminaLayer],
    figures: Sequence[LayerFigures],
    *,
    host_parameters: int,
    rollbacks: int,
    tick_seconds: float,
    tick_share: float,
    trials: Sequence[TrialCost] = (),
) -> dict[str, float]:
    """Figures of the run, see :data:`RUN_FIGURES`.

    Args:
        layers: All hybrid layers by name.
        figures: Their figures.
        host_parameters: Parameters of the model without beds.
        rollbacks: Times that the run or its rollout was set back.
        tick_seconds: Duration of the tick, trials apart.
        tick_share: Share of the time that ticks took.
        trials: What trials have cost.
    """
    growing = [layer.morpho for layer in layers.values() if len(layer.morpho.beds)]
    counts = np.bincount(np.concatenate([seeds.state.stage for seeds in growing]), minlength=len(Stage))
    table = next(iter(layers.values())).morpho.lifecycle_table
    added = sum(seeds.live_parameters for seeds in growing) - dead_parameters(layers.values())
    credit = _sum_known(np.array([f.values["credit"] for f in figures]))
    on = sum(f.on for f in figures)
    return {
        "parameters": float(host_parameters + added),
        "added_parameters": float(added),
        "growth_ratio": (host_parameters + added) / host_parameters if host_parameters else math.nan,
        "return_per_parameter": credit / added if added > 0 else math.nan,
        "germinations": float(sum(seeds.events for seeds in growing)),
        "seeds_dormant": float(counts[Stage.DORMANT]),
        "seeds_live": float(sum(counts[stage] for stage in table.live)),
        "seeds_fossilized": float(counts[Stage.FOSSILIZED]),
        "seeds_recovering": float(sum(counts[stage] for stage in table.recovery)),
        "errors": float(sum(int(seeds.state.errors.sum()) for seeds in growing)),
        "rollbacks": float(rollbacks),
        "layers_on": float(on),
        "cohort_share": on / len(figures),
        "tick_seconds": tick_seconds,
        "tick_share": tick_share,
        "trial_steps": float(sum(cost.steps for cost in trials)),
        "trial_seconds": sum(cost.seconds for cost in trials),
        "trial_flops": sum(cost.flops for cost in trials),
    }


def live_seeds(figures: Iterable[LayerFigures], records: Sequence[SeedRecord], most: int) -> list[dict[str, Any]]:
    """The youngest live seeds with their figures, at most ``most``."""
    by_name = {f.name: f for f in figures}
    found: list[dict[str, Any]] = []
    for record in reversed(records):
        if len(found) >= most:
            break
        seeds = by_name[record.layer].seeds
        if int(seeds["generation"][record.chunk]) == record.generation and record.stage in _IN_PLACE - {"FOSSILIZED"}:
            values = {name: array[record.chunk].item() for name, array in seeds.items()}
            found.append({"layer": record.layer, "chunk": record.chunk, **values, "stage": record.stage})
    return found
