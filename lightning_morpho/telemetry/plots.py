"""Pictures of a run, drawn from the CSV metrics and the event log that it left."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lightning_morpho.telemetry.events import EVENTS_FILE, read_events
from lightning_morpho.telemetry.metric_files import CSV_FILE, read_csv_metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, safe for colour-blind readers; kinds of event differ in marker and row as well.
RUN_COLOURS = ("#6B6B6B", "#0072B2", "#CC79A7", "#000000")
KINDS = {
    "LOADING": ("germinated", "^", "#009E73"),
    "FOSSILIZED": ("fossilized", "s", "#E69F00"),
    "CULLED": ("culled", "v", "#D55E00"),
}


@dataclass(frozen=True)
class _Run:
    name: str
    epochs: np.ndarray  # (T,), epochs done when the metric was taken
    values: np.ndarray  # (T,)
    seeds: dict[str, Counter[float]]  # stage entered -> epochs done -> seeds


def _read_metric(folder: Path, metric: str) -> tuple[np.ndarray, np.ndarray, float]:
    """Epochs done, values, and optimizer steps an epoch."""
    path = folder / CSV_FILE
    curve = read_csv_metrics(path).get(metric)
    if curve is None:
        raise ValueError(f"`metric` must be a column of {path} with values in it, got {metric!r}.")
    epochs = np.array(curve.epochs, dtype=float)
    return epochs, np.array(curve.values), curve.steps[-1] / epochs[-1]


def _read_seeds(folder: Path, steps_an_epoch: float) -> dict[str, Counter[float]]:
    """Count the seeds that entered each stage of interest, by the epochs done at that time."""
    seeds: dict[str, Counter[float]] = {stage: Counter() for stage in KINDS}
    path = folder / EVENTS_FILE
    if not path.exists():
        return seeds
    for event in read_events(path):
        if event["event"] == "transition" and event["to"] in KINDS:
            seeds[event["to"]][event["step"] / steps_an_epoch] += 1
    return seeds


def _read_run(name: str, folder: Path, metric: str) -> _Run:
    epochs, values, steps_an_epoch = _read_metric(folder, metric)
    return _Run(name, epochs, values, _read_seeds(folder, steps_an_epoch))


def _draw_curves(axes: Axes, runs: list[_Run], labels: list[float]) -> None:
    for index, (run, label) in enumerate(zip(runs, labels, strict=True)):
        colour = RUN_COLOURS[index % len(RUN_COLOURS)]
        axes.plot(run.epochs, run.values, color=colour, linewidth=2)
        axes.annotate(
            f"{run.name} {run.values[-1]:.3f}",
            (run.epochs[-1], label),
            xytext=(6, 0),
            textcoords="offset points",
            color=colour,
            va="center",
            annotation_clip=False,
        )


def _label_heights(runs: list[_Run]) -> list[float]:
    """Heights of the labels at the right end: the last values, moved apart where they are close."""
    span = float(np.ptp(np.concatenate([run.values for run in runs]))) or 1.0
    heights = [float(run.values[-1]) for run in runs]
    order = sorted(range(len(runs)), key=lambda index: heights[index])
    for below, above in zip(order, order[1:], strict=False):
        heights[above] = max(heights[above], heights[below] + 0.06 * span)
    return heights


def _draw_on_curve(figure: Figure, axes: Axes, run: _Run) -> None:
    """Mark a run's events on its curve; those of one moment are stacked."""
    from matplotlib.transforms import offset_copy

    stacked: Counter[float] = Counter()
    for stage, (_, marker, colour) in KINDS.items():
        for epoch in run.seeds[stage]:
            raised = offset_copy(axes.transData, figure, y=11 * stacked[epoch], units="points")
            height = np.interp(epoch, run.epochs, run.values)
            axes.plot(epoch, height, marker, color=colour, ms=9, mec="white", zorder=3, transform=raised)
            axes.axvline(epoch, color="#999999", linewidth=0.8, linestyle=":", zorder=0)
            stacked[epoch] += 1


def _draw_strip(axes: Axes, runs: list[_Run]) -> None:
    """Draw a row for each run and kind of event: a marker with the number of seeds, when it happened."""
    rows = [(run, stage) for run in runs for stage in KINDS]
    for row, (run, stage) in enumerate(rows):
        _, marker, colour = KINDS[stage]
        for epoch, count in run.seeds[stage].items():
            axes.plot(epoch, row, marker, color=colour, ms=13, mec="white", clip_on=False)
            axes.text(epoch, row, str(count), size=8, ha="center", va="center_baseline")
    names = [f"{run.name}: {KINDS[stage][0]}" if len(runs) > 1 else KINDS[stage][0] for run, stage in rows]
    axes.set_yticks(range(len(rows)), names)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)


def plot_growth(runs: Mapping[str, Path], out: Path, *, metric: str = "val_acc", title: str = "") -> Path:
    """Draw a metric of several runs against epochs, and mark when seeds germinated, were kept or culled.

    Args:
        runs: Folder of each run by its name in the picture; a folder holds ``metrics.csv`` of
            Lightning's ``CSVLogger`` and, of a run that grew, ``morpho_events.jsonl``.
        out: File of the picture; the format follows the suffix.
        metric: Column of ``metrics.csv``, one value an epoch.
        title: Title of the picture; empty for the metric's name.

    Returns:
        ``out``.

    Raises:
        ImportError: If matplotlib is not installed.
        FileNotFoundError: If a folder holds no ``metrics.csv``.
        ValueError: If a run has no values of ``metric``, or no run is given.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('Pictures need matplotlib: pip install "lightning-morpho[plot]" installs it.') from error
    if not runs:
        raise ValueError("`runs` must name at least one run, got none.")
    read = [_read_run(name, Path(folder), metric) for name, folder in runs.items()]
    growing = [run for run in read if any(run.seeds.values())]

    rows = len(KINDS) * len(growing)
    figure = Figure(figsize=(8, 4.2 + 0.28 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    ratios = (14, rows) if rows else (1,)
    panels = figure.subplots(len(ratios), 1, sharex=True, height_ratios=ratios, squeeze=False)[:, 0]
    _draw_curves(panels[0], read, _label_heights(read))
    for run in growing:
        _draw_on_curve(figure, panels[0], run)
    if growing:
        _draw_strip(panels[1], growing)
    panels[0].set_title(title or metric, loc="left")
    panels[0].set_ylabel(metric)
    panels[0].grid(axis="y", alpha=0.25)
    panels[-1].set_xlabel("epoch")
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=150)
    return out
