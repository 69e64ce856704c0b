"""Tables of the growth experiments: what a run costs, and what it has for it on the way."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from growth_results import Results, Run, mean, table

MEBI = 2**20
ARMS = ("auto", "shrink", "uniform", "random", "periodic", "round25")
TEXT = """## What a run costs

Static nets of the reference, the best and the widest width beside the arms that grow. *Mean over FLOPs, over seconds*:
the area under test points (10 looks a run) up to the largest total of the task's rows, divided by it; a run that ends
earlier keeps its last points. FLOPs are counted by torch, those of the forward pass times three. Seconds are processor
time of one core (ResNet and GPT: time on the wall, on a shared H200), validation and ticks included; *in ticks*: the
share of deciding, judging and cutting. MiB: parameters (dormant ones too), gradients, Adam's moments and what the
forward pass keeps, at the largest moment. *Loss jump*: rise of the validation loss in the tick, the largest of all runs
at growth, the mean at the cut. (Of most runs of `auto` the jump at growth
was not noted; three on the GPT were made on another machine and are left out here.)

"""


def area(run: Run, axis: int, horizon: float) -> float:
    """Mean test points over training up to a horizon, by trapezoids.

    Args:
        run: A run with a curve of FLOPs, seconds and test points.
        axis: 0: over FLOPs, 1: over seconds.
        horizon: Where to stop. A run that ends before it keeps its last points.

    Example:
        >>> area({"curve": [[1.0, 0, 10.0], [2.0, 0, 30.0]]}, 0, 4.0)
        22.5
    """
    at, points = [0.0], [run["curve"][0][2]]
    for look in run["curve"]:
        if look[axis] > horizon:
            break
        at.append(look[axis])
        points.append(look[2])
    at.append(horizon)
    points.append(points[-1])
    pieces = zip(at, at[1:], points, points[1:], strict=False)
    return sum((b - a) * (p + q) / 2 for a, b, p, q in pieces) / horizon


def recorded(runs: Sequence[Run]) -> list[Run]:
    """Runs that noted their costs."""
    return [run for run in runs if run.get("curve")]


def costs(results: Results) -> str:
    """One row for each task and arm."""
    rows = []
    for task in results.tasks:
        if not task.startswith("rank"):
            rows += task_costs(results, task)
    head = (
        "task",
        "arm",
        "seeds",
        "points at the end",
        "at best validation",
        "mean over FLOPs",
        "mean over seconds",
        "TFLOPs",
        "seconds",
        "in ticks",
        "parameters",
        "MiB",
        "loss jump at growth",
        "at the cut",
        "seeds culled",
    )
    if not rows:
        return ""
    return TEXT + table(head, rows) + "\n![Test points against training FLOPs](curves.png)\n\n"


def task_costs(results: Results, task: str) -> list[list[str]]:
    """The rows of one task."""
    names = static_names(results, task) | {arm: arm for arm in ARMS}
    found = {name: recorded(results.arm(task, arm)) for arm, name in names.items()}
    arms = {name: runs for name, runs in found.items() if runs}
    if not any(name in ARMS for name in arms):
        return []
    ends = [[statistics.fmean(run["curve"][-1][axis] for run in runs) for runs in arms.values()] for axis in (0, 1)]
    return [[task, name, *cost_cells(runs, [max(end) for end in ends])] for name, runs in arms.items()]


def static_names(results: Results, task: str) -> dict[str, str]:
    """The static nets that are shown, and what they are called."""
    if task == "mnist1d_plain":
        return {"25": "25", "25@664": "25, 664 steps"}
    widths = results.widths(task)
    if len(widths) < 3:
        return {}
    best, reference = results.reference(task)
    called: dict[str, list[str]] = {}
    for width, name in ((reference, "reference"), (best, "best"), (max(widths), "widest")):
        called.setdefault(str(width), []).append(name)
    return {width: f"{width} ({', '.join(names)})" for width, names in called.items()}


def cost_cells(runs: list[Run], horizons: list[float]) -> list[str]:
    """One arm's figures."""

    def average(values: Sequence[float]) -> float:
        return statistics.fmean(values)

    grown = [run for run in runs if "tick_seconds" in run]
    jumps = {kind: [jump for run in grown for jump in run["jumps"][kind]] for kind in ("growth", "cut")}
    germinated = sum(run["germinations"] for run in grown)
    return [
        str(len(runs)),
        f"{mean(runs, 'test'):.2f}",
        f"{average([run['best'][1] for run in runs]):.2f}",
        *(f"{average([area(run, axis, horizons[axis]) for run in runs]):.1f}" for axis in (0, 1)),
        f"{mean(runs, 'gflops') / 1000:.3g}",
        f"{mean(runs, 'seconds'):.1f}",
        f"{100 * mean(grown, 'tick_seconds') / mean(grown, 'seconds'):.0f} %" if grown else "",
        f"{mean(runs, 'parameters'):,.0f}",
        f"{mean(runs, 'memory') / MEBI:.2f}",
        f"{max(jumps['growth']):+.1e}" if jumps["growth"] else "",
        f"{average(jumps['cut']):+.3f}" if jumps["cut"] else "",
        f"{sum(run['culled'] for run in grown)} of {germinated}" if germinated else "",
    ]
