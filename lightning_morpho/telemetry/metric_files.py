"""Curves that a logger left in a folder: Lightning's ``metrics.csv``, or TensorBoard's event files."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

CSV_FILE = "metrics.csv"
TENSORBOARD_FILES = "events.out.tfevents.*"
_NO_METRICS = ("epoch", "step", "hp_metric")


@dataclass(frozen=True)
class Curve:
    """A metric over a run.

    Attributes:
        steps: Optimizer steps done when each value was taken, rising.
        values: The values, finite.
        epochs: Epochs done then; None where the logger did not say.
    """

    steps: tuple[int, ...]
    values: tuple[float, ...]
    epochs: tuple[int | None, ...]


Point = tuple[int, float, int | None]
"""Steps done, value, epochs done."""


def curve_of(points: Iterable[Point]) -> Curve | None:
    """A curve of points in the order in which they were written; None if no value is finite.

    A run that is resumed goes back to the step of its checkpoint: what was written beyond it counts no more.

    Example:
        >>> curve_of([(10, 0.5, 1), (20, 0.4, 2), (30, 0.3, 3), (20, 0.45, 2)])
        Curve(steps=(10, 20), values=(0.5, 0.45), epochs=(1, 2))
    """
    kept: list[Point] = []
    for point in points:
        while kept and kept[-1][0] >= point[0]:
            kept.pop()
        if math.isfinite(point[1]):
            kept.append(point)
    if not kept:
        return None
    steps, values, epochs = zip(*kept, strict=True)
    return Curve(steps, values, epochs)


def read_csv_metrics(path: Path) -> dict[str, Curve]:
    """Curves of a ``metrics.csv`` by name; a row that a kill cut off is left out.

    Raises:
        OSError: If the file can't be read.
    """
    points: dict[str, list[Point]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            step, epoch = _number(row.get("step")), _number(row.get("epoch"))
            if step is None:
                continue
            done = None if epoch is None else int(epoch) + 1
            for name, text in row.items():
                value = _number(text)
                if value is not None and name not in _NO_METRICS:
                    # Lightning logs the index of the last step.
                    points.setdefault(name, []).append((int(step) + 1, value, done))
    return curves_by_name(points)


def _number(text: str | list[str] | None) -> float | None:
    try:
        return float(text) if isinstance(text, str) and text else None
    except ValueError:
        return None


def read_tensorboard_metrics(folder: Path) -> dict[str, Curve]:
    """Scalars of the TensorBoard event files of one folder, by tag.

    Raises:
        ImportError: If TensorBoard is not installed.
    """
    from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

    files = EventAccumulator(str(folder), size_guidance={SCALARS: 0})
    files.Reload()
    tags = [tag for tag in files.Tags()["scalars"] if tag not in _NO_METRICS]
    return curves_by_name(
        {tag: [(scalar.step + 1, scalar.value, None) for scalar in files.Scalars(tag)] for tag in tags}
    )


def curves_by_name(points: Mapping[str, Iterable[Point]]) -> dict[str, Curve]:
    """Curves of points by name; a name without any finite value is left out."""
    curves = {name: curve_of(values) for name, values in points.items()}
    return {name: curve for name, curve in curves.items() if curve is not None}


def joined(own: Curve | None, logged: Curve) -> Curve:
    """A logger's curve, with what a run wrote itself before it and after it.

    A logger may keep only the last stretch of a run that was resumed.

    Example:
        >>> joined(Curve((10, 20, 30), (1.0, 2.0, 3.0), (1, 2, 3)), Curve((20, 25), (2.0, 2.5), (2, 3)))
        Curve(steps=(10, 20, 25, 30), values=(1.0, 2.0, 2.5, 3.0), epochs=(1, 2, 3, 3))
    """
    if own is None:
        return logged
    points = zip(own.steps, own.values, own.epochs, strict=True)
    first, last = logged.steps[0], logged.steps[-1]
    outside = [point for point in points if not first <= point[0] <= last]
    together = sorted([*outside, *zip(logged.steps, logged.values, logged.epochs, strict=True)])
    steps, values, epochs = zip(*together, strict=True)
    return Curve(steps, values, epochs)


def read_metrics(folders: Iterable[Path]) -> tuple[dict[str, Curve], str]:
    """Curves in the first of some folders that has any, and where they are from, in words.

    ``metrics.csv`` comes before TensorBoard's files: it also knows epochs.
    """
    candidates = list(dict.fromkeys(folders))
    for folder in candidates:
        if (folder / CSV_FILE).is_file():
            curves = read_csv_metrics(folder / CSV_FILE)
            if curves:
                return curves, CSV_FILE
    for folder in candidates:
        if any(folder.glob(TENSORBOARD_FILES)):
            try:
                return read_tensorboard_metrics(folder), "TensorBoard"
            except ImportError:
                return (
                    {},
                    'TensorBoard files need pip install "lightning-morpho[tensorboard]" to be read',
                )
    return {}, "no logger's files"
