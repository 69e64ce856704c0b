"""What of a tick goes to the loggers: scalar series, histograms and maps, bounded however large the model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from lightning_morpho.lifecycle import Stage
from lightning_morpho.telemetry.events import SeedRecord
from lightning_morpho.telemetry.figures import LAYER_FIGURES, SEED_FIGURES, LayerFigures

MOST_SERIES: Mapping[str, int] = {"minimal": 20, "standard": 200, "full": 1000}
"""Scalar series that a whole run may write, by ``telemetry.level``."""

LAYERS_SHOWN: Mapping[str, int] = {"minimal": 0, "standard": 10, "full": 40}
SEEDS_SHOWN: Mapping[str, int] = {"minimal": 0, "standard": 0, "full": 24}
TOP_SEEDS = 5
"""Seeds of the highest credit that get series of their own, from ``standard`` on."""

HISTOGRAMS = ("stage", "alpha", "credit", "silent", "gradient_ratio")
"""Figures of all seeds that are drawn as histograms, from ``standard`` on."""

_SUMMED = ("added_parameters", "errors", "credit")

# Okabe and Ito's palette, safe for colour-blind readers.
STAGE_COLOURS: Mapping[Stage, tuple[int, int, int]] = {
    Stage.DORMANT: (225, 225, 225),
    Stage.FOSSILIZED: (230, 159, 0),
    Stage.CULLED: (90, 90, 90),
    Stage.CANCELLED: (90, 90, 90),
    Stage.ROLLED_BACK: (204, 121, 167),
    Stage.ERROR_RECOVERY: (213, 94, 0),
}
_LIVE_COLOUR = (0, 114, 178)


def shown_layers(figures: Sequence[LayerFigures], records: Sequence[SeedRecord], level: str) -> list[LayerFigures]:
    """Layers that get series of their own: all, or the first that grew. A layer once shown stays."""
    most = LAYERS_SHOWN[level]
    on = [f for f in figures if f.on]
    if len(figures) <= most:
        return on
    grown = dict.fromkeys(record.layer for record in records)
    wanted = set(list(grown)[:most])
    return [f for f in on if f.name in wanted]


def scalar_series(
    figures: Sequence[LayerFigures], run: Mapping[str, float], records: Sequence[SeedRecord], level: str
) -> dict[str, float]:
    """Scalars of one tick by name; over a whole run at most :data:`MOST_SERIES` names.

    What was not measured is left out.

    Names are ``morpho/run/<figure>``, ``morpho/<layer>/<figure>``; where not all layers are shown
    ``morpho/all_layers/<figure>``; ``morpho/top_seeds/<rank>/credit`` with both bounds for the seeds that are worth
    most now, whichever they are; at level ``full`` ``morpho/<layer>/seed_<chunk>/<figure>`` for the first seeds
    that germinate.

    Args:
        figures: Figures of all layers.
        run: Figures of the run.
        records: Seeds that left dormancy, in order of germination.
        level: ``telemetry.level``.
    """
    values = {f"morpho/run/{name}": value for name, value in run.items()}
    for layer in shown_layers(figures, records, level):
        values |= {f"morpho/{layer.name}/{name}": value for name, value in layer.values.items()}
    if level != "minimal" and len(figures) > LAYERS_SHOWN[level]:
        values |= {f"morpho/all_layers/{name}": _over_layers(figures, name) for name in LAYER_FIGURES}
    if level != "minimal":
        for rank, (_, _, credit) in enumerate(top_seeds(figures), 1):
            values |= {f"morpho/top_seeds/{rank}/{name}": value for name, value in credit.items()}
    by_name = {f.name: f for f in figures}
    for layer_name, chunk in dict.fromkeys((r.layer, r.chunk) for r in records[: SEEDS_SHOWN[level]]):
        seeds = by_name[layer_name].seeds
        shown = {name: float(seeds[name][chunk]) for name in SEED_FIGURES if name in seeds}
        values |= {f"morpho/{layer_name}/seed_{chunk}/{name}": value for name, value in shown.items()}
    return {name: value for name, value in values.items() if not math.isnan(value)}


def top_seeds(figures: Sequence[LayerFigures], most: int = TOP_SEEDS) -> list[tuple[str, int, dict[str, float]]]:
    """The seeds of the highest measured credit, the highest first: layer, chunk, and credit with its bounds."""
    found = [
        (f.name, chunk, {name: float(f.seeds[name][chunk]) for name in ("credit", "credit_lower", "credit_upper")})
        for f in figures
        if f.on and "credit" in f.seeds
        for chunk in np.flatnonzero(np.isfinite(f.seeds["credit"])).tolist()
    ]
    return sorted(found, key=lambda seed: -seed[2]["credit"])[:most]


def top_seeds_text(figures: Sequence[LayerFigures]) -> str:
    """Which seeds the series ``morpho/top_seeds/<rank>`` are about, as Markdown; empty if there are none."""
    return "\n".join(
        f"{rank}. `{layer}[{chunk}]`: {credit['credit']:+.4g}"
        for rank, (layer, chunk, credit) in enumerate(top_seeds(figures), 1)
    )


def _over_layers(figures: Sequence[LayerFigures], name: str) -> float:
    known = [v for f in figures if f.on and not math.isnan(v := f.values.get(name, math.nan))]
    if not known:
        return math.nan
    return sum(known) if name in _SUMMED else sum(known) / len(known)


def histograms(figures: Sequence[LayerFigures]) -> dict[str, np.ndarray]:
    """Values of all seeds by name, those that were measured."""
    found = {}
    for name in HISTOGRAMS:
        parts = [f.seeds[name].astype(np.float32) for f in figures if f.on and name in f.seeds]
        values = np.concatenate(parts) if parts else np.empty(0, np.float32)
        values = values[np.isfinite(values)]
        if values.size:
            found[f"morpho/seeds/{name}"] = values
    return found


def seed_map(layers: Sequence[LayerFigures], most: int = 16, across: int = 64) -> np.ndarray:
    """A picture of all seeds: a block of rows a layer, a cell a seed, its colour the stage, faint while alpha is low.

    Args:
        layers: The layers, top to bottom; those after the first ``most`` are left out.
        most: Layers drawn.
        across: Seeds in a row.

    Returns:
        uint8, ``(height, width, 3)``.
    """
    columns = min(across, max(len(f.seeds["stage"]) for f in layers))
    cell = min(24, max(4, 384 // columns))
    blocks = []
    for layer in layers[:most]:
        colours = _colours(layer.seeds["stage"], layer.seeds["alpha"])
        rows = -(-len(colours) // columns)
        grid = np.full((rows * columns, 3), 255, np.uint8)
        grid[: len(colours)] = colours
        block = grid.reshape(rows, columns, 3).repeat(cell, 0).repeat(cell, 1)
        block[cell - 1 :: cell] = 255
        block[:, cell - 1 :: cell] = 255
        blocks += [block, np.full((cell, block.shape[1], 3), 255, np.uint8)]
    return np.concatenate(blocks[:-1])


def _colours(stage: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    palette = np.array([STAGE_COLOURS.get(s, _LIVE_COLOUR) for s in Stage], np.float32)
    live = np.array([s not in STAGE_COLOURS or s is Stage.FOSSILIZED for s in Stage])
    strength = np.where(live[stage], 0.35 + 0.65 * alpha, 1.0)[:, None]
    return np.round(255 + (palette[stage] - 255) * strength).astype(np.uint8)


def seed_map_key(layers: Sequence[LayerFigures], most: int = 16) -> str:
    """What the picture of :func:`seed_map` shows, as Markdown."""
    names = "\n".join(f"{i}. `{f.name}` ({len(f.seeds['stage'])} seeds)" for i, f in enumerate(layers[:most], 1))
    left = f"\n\n{len(layers) - most} more layers are not drawn." if len(layers) > most else ""
    return (
        "One block a layer, top to bottom; one cell a seed, row by row. Light grey: dormant; blue: live; orange: "
        f"fossilized; dark grey: culled; pink: rolled back; red: error. Faint: alpha is low.\n\n{names}{left}"
    )
