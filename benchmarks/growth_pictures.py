"""Pictures of the growth experiments, from their runs alone."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from growth_costs import recorded, static_names
from growth_results import Results, Run, mean

COLUMNS = 3
DASHES = ["-", "--", ":"]
MARKS = {"auto": ("*", "tab:blue"), "shrink": ("v", "tab:orange"), "uniform": ("s", "tab:green")}


def draw(results: Results, tasks: Sequence[str], folder: Path) -> None:
    """All pictures of the page, as far as there is something to see."""
    if tasks:
        sizes(results, tasks, folder / "growth.png")
    drawn = [
        task
        for task in tasks
        if any(recorded(results.arm(task, arm)) for arm in MARKS)
        and any(recorded(results.arm(task, arm)) for arm in static_names(results, task))
    ]
    if drawn:
        curves(results, drawn, folder / "curves.png")


def panels(count: int) -> tuple[Any, Any]:
    """A figure of so many axes, three in a row."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = -(-count // COLUMNS)
    figure, axes = pyplot.subplots(rows, COLUMNS, figsize=(10, 2.6 * rows), squeeze=False)
    for axis in axes.flat[count:]:
        axis.axis("off")
    return figure, axes.flat


def save(figure: Any, x: str, y: str, path: Path) -> None:
    """Label and write a figure."""
    figure.supxlabel(x)
    figure.supylabel(y)
    figure.tight_layout()
    figure.savefig(path, dpi=90)


def sizes(results: Results, tasks: Sequence[str], path: Path) -> None:
    """Test points against parameters: static widths as a line, nets that grew or shrank as marks."""
    figure, axes = panels(len(tasks))
    for axis, task in zip(axes, tasks, strict=False):
        static = results.widths(task).values()
        points, marked = [mean(runs, "test") for runs in static], []
        axis.plot([mean(runs, "parameters") for runs in static], points, ".-", color="0.5", label="static")
        for arm, (mark, color) in MARKS.items():
            runs = results.arm(task, arm)
            if runs:
                marked.append(mean(runs, "test"))
                axis.plot(mean(runs, "parameters"), marked[-1], mark, color=color, markersize=8, label=arm)
        axis.set(xscale="log", title=task, ylim=frame([*points, *marked], marked))
        axis.ticklabel_format(axis="y", useOffset=False)
    fullest = max(axes[: len(tasks)], key=lambda axis: len(axis.get_legend_handles_labels()[0]))
    fullest.legend(fontsize=8)
    save(figure, "parameters", "test points", path)


def frame(points: Sequence[float], shown: Sequence[float] = ()) -> tuple[float, float]:
    """Where the better half of the points lies, and those that must be shown, with room."""
    top, middle = max(points), statistics.median(points)
    room = max(0.1, 0.15 * (top - middle))
    return min(middle - 2 * (top - middle), *shown, top) - room, top + room


def curves(results: Results, tasks: Sequence[str], path: Path) -> None:
    """Test points against training FLOPs, the mean of all seeds."""
    figure, axes = panels(len(tasks))
    for axis, task in zip(axes, tasks, strict=False):
        seen: list[float] = []
        static = static_names(results, task)
        for (arm, name), dash in zip(({arm: arm for arm in MARKS} | static).items(), ["-"] * 3 + DASHES, strict=False):
            runs = recorded(results.arm(task, arm))
            if not runs:
                continue
            x, y = mean_curve(runs)
            seen += y
            axis.plot(x, y, dash, label=name, color="0.5" if arm in static else MARKS[arm][1])
        axis.set(title=task, ylim=frame(seen))
        axis.legend(fontsize=6)
    save(figure, "training GFLOPs", "test points", path)


def mean_curve(runs: Sequence[Run]) -> tuple[list[float], list[float]]:
    """FLOPs and test points of each look, the mean of all runs."""
    looks = zip(*(run["curve"] for run in runs), strict=True)
    means = [[statistics.fmean(column) for column in zip(*look, strict=True)] for look in looks]
    return [look[0] for look in means], [look[2] for look in means]
