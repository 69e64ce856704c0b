"""What the page of a run draws, as plain values for JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightning_morpho.lifecycle import Stage
from lightning_morpho.telemetry.happenings import Happening, happenings
from lightning_morpho.telemetry.metric_files import Curve
from lightning_morpho.telemetry.saved_run import SavedRun, SeedLife
from lightning_morpho.telemetry.story import main_metric

COSTS = (
    ("morpho/run/parameters", "Parameters of the model", "parameters"),
    ("morpho/run/added_parameters", "Parameters that growth added", "parameters"),
    ("morpho/run/return_per_parameter", "What an added parameter is worth", "loss"),
    ("morpho/run/tick_seconds", "Time that a decision tick took", "seconds"),
)
"""Metrics of size and time, each with its title and unit."""

CREDIT = ("rise", "lower", "upper", "batches", "judged_with", "joint", "joint_lower")
"""Figures of a judgement, as the page takes them."""

MOST_CURVES = 150
"""Curves on the page; of more, those of single layers are left to the loggers."""

MOST_POINTS = 1200
"""Points of a curve on the page; a longer one is thinned so that its extremes stay."""


def page_data(log: SavedRun) -> dict[str, Any]:
    """Everything that the page's charts and their tables show."""
    layers = layer_sizes(log)
    places = {name: place for place, name in enumerate(layers)}
    texts = _Texts()
    data = {
        "name": log.name,
        "last": log.last_step,
        "main": main_metric(log.metrics),
        "metrics": {name: _points(log.metrics[name]) for name in chosen_curves(log.metrics)},
        "more": max(0, len(log.metrics) - MOST_CURVES),
        "costs": [dict(zip(("metric", "title", "unit"), cost, strict=True)) for cost in COSTS],
        "stages": [stage.name for stage in Stage],
        "layers": [{"name": name, "chunks": chunks} for name, chunks in layers.items()],
        "lives": [_life(life, places[life.layer], texts) for life in log.lives],
        "events": [_event(happening, texts) for happening in happenings(log.entries)],
    }
    return data | {"texts": list(texts)}


def layer_sizes(log: SavedRun) -> dict[str, int]:
    """Chunks of each layer that could grow, by name; of an incomplete log, as far as events show them."""
    sizes = {module["name"]: module["seeds"] for module in log.modules if module["seeds"]}
    for life in log.lives:
        sizes[life.layer] = max(sizes.get(life.layer, 0), life.chunk + 1)
    return sizes


def chosen_curves(metrics: Mapping[str, Curve]) -> list[str]:
    """Names of the curves on the page: the run's own metrics, then growth of the run, then of layers.

    Example:
        >>> curve = Curve((1,), (0.5,), (None,))
        >>> chosen_curves({"morpho/net.0/alpha": curve, "morpho/run/errors": curve, "val_loss": curve})
        ['val_loss', 'morpho/run/errors', 'morpho/net.0/alpha']
    """
    rank = {name: 2 if name.startswith("morpho/") else 0 for name in metrics}
    rank |= {name: 1 for name in metrics if name.startswith("morpho/run/")}
    return sorted(metrics, key=lambda name: (rank[name], name))[:MOST_CURVES]


def _points(curve: Curve) -> dict[str, Sequence[float]]:
    kept = thinned(curve.values, MOST_POINTS)
    return {"x": [curve.steps[i] for i in kept], "y": [_rounded(curve.values[i]) for i in kept]}


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")


def thinned(values: Sequence[float], most: int) -> list[int]:
    """Indices of at most ``most`` values: lowest and highest of each stretch, and both ends.

    Example:
        >>> thinned([0, 9, 1, 1, 1, -5, 1, 1], 6)
        [0, 1, 4, 5, 7]
    """
    if len(values) <= most:
        return list(range(len(values)))
    buckets = (most - 2) // 2
    edges = [len(values) * i // buckets for i in range(buckets + 1)]
    chosen = {0, len(values) - 1}
    for start, stop in zip(edges, edges[1:], strict=False):
        stretch = range(start, stop)
        chosen |= {min(stretch, key=values.__getitem__), max(stretch, key=values.__getitem__)}
    return sorted(chosen)


class _Texts(dict[str, int]):
    """Texts by number: a page with thousands of seeds holds few different ones."""

    def __missing__(self, text: str) -> int:
        return self.setdefault(text, len(self))


def _life(life: SeedLife, layer: int, texts: _Texts) -> list[Any]:
    """One seed as a row: short, since there may be thousands."""
    figures: Mapping[str, float | None] = life.figures
    spells = [[Stage[spell.stage].value, spell.start, spell.end] for spell in life.spells]
    credit = [figures.get(name) for name in CREDIT]
    return [layer, life.chunk, life.generation, texts[life.blueprint], spells, texts[life.reason], credit]


def _event(happening: Happening, texts: _Texts) -> list[int]:
    words = (happening.kind, happening.layer, happening.what, happening.why)
    return [happening.step, *(texts[word] for word in words), happening.count]
