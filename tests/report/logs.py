"""Run folders written line by line, as runs of many kinds would leave them."""

from __future__ import annotations

import csv
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lightning_morpho.telemetry import EVENTS_FILE, append_event
from lightning_morpho.telemetry.run_log import METRICS_FILE

PHASE1 = ("DORMANT", "LOADING", "ACTIVE", "FOSSILIZED")
FULL = ("DORMANT", "GERMINATED", "TRAINING", "GRAFTING", "STABILIZATION", "EVALUATING", "FINE_TUNING", "FOSSILIZED")


def transition(layer: str, chunk: int, source: str, target: str, step: int, **more: Any) -> dict[str, Any]:
    told = {"generation": 0, "blueprint": "span", "reason": "because", "figures": {}, "tick": step // 40, "epoch": 0}
    return (
        {"event": "transition", "step": step, "layer": layer, "chunk": chunk, "from": source, "to": target}
        | told
        | more
    )


def fit_start(step: int = 0) -> dict[str, Any]:
    """The start of a fit in the event log."""
    return {"event": "fit_start", "tick": step // 40, "step": step}


def start(layers: dict[str, int], step: int = 0, host: str = "Net", parameters: int = 10_000) -> dict[str, Any]:
    """The start of a fit in the figures; ``layers``: seeds by name of layer."""
    modules = [module("", host, 0), *(module(name, "Linear", seeds) for name, seeds in layers.items())]
    return {
        "kind": "start",
        "time": 1000.0 + step / 100,
        "tick": step // 40,
        "step": step,
        "epoch": step // 40,
        "model": {"class": host, "parameters": parameters, "trainable": parameters, "modules": len(modules)},
        "trainer": {"device": "cpu", "total_steps": 8000},
        "eligibility": {"budget": 100_000, "modules": modules},
        "config": {"layers": {"num_seeds": 4}, "budget": {"parameters": "auto"}, "seed": 0},
        "versions": {"torch": "2.13.0"},
    }


def module(name: str, kind: str, seeds: int) -> dict[str, Any]:
    reason = "1 bed of 144 parameters" if seeds else "no seeds grow in this type"
    return {
        "name": name,
        "type": kind,
        "taken": seeds > 0,
        "reason": reason,
        "cohort": "",
        "seeds": seeds,
        "beds": int(seeds > 0),
        "added_parameters": 144 * seeds,
        "added_bytes": 576 * seeds,
    }


def tick(step: int, **run: float) -> dict[str, Any]:
    """A decision tick in the figures, with figures of the run."""
    return at("tick", step, run=run)


def at(kind: str, step: int, **content: Any) -> dict[str, Any]:
    """A line of the figures; an epoch has 40 steps, and a hundred steps take a second."""
    return {
        "kind": kind,
        "time": 1000 + step / 100,
        "tick": step // 40,
        "step": step,
        "epoch": step // 40 - 1,
    } | content


def life(rng: random.Random, layer: str, chunk: int, born: int, path: tuple[str, ...]) -> Iterable[dict[str, Any]]:
    """One seed with one of the ends that there are."""
    step, end = born, rng.choice(["FOSSILIZED", "FOSSILIZED", "CULLED", "ERROR_RECOVERY", "alive"])
    rise = rng.gauss(0.4, 0.1) if end == "FOSSILIZED" else rng.gauss(0, 0.05)
    figures = {"rise": rise, "lower": rise - rng.uniform(0.02, 0.2), "batches": 12}
    for source, target in zip(path, path[1:-1], strict=False):
        yield transition(layer, chunk, source, target, step, reason="a plateau of 5 ticks", epoch=step // 40)
        step += rng.randrange(40, 400, 40)
    if end == "alive":
        return
    reasons = {"FOSSILIZED": "proven gain", "CULLED": "no proven gain", "ERROR_RECOVERY": "its output was not finite"}
    measured = figures if end != "ERROR_RECOVERY" else {}
    yield transition(layer, chunk, path[-2], end, step, reason=reasons[end], figures=measured)
    if end != "FOSSILIZED":
        yield transition(layer, chunk, end, "DORMANT", step + 200, reason="embargo over")


def write(folder: Path, entries: Iterable[dict[str, Any]]) -> Path:
    """Lines of both files of a run, in the order of their steps."""
    for entry in sorted(entries, key=lambda entry: entry["step"]):
        append_event(folder / (EVENTS_FILE if "event" in entry else METRICS_FILE), entry)
    return folder


def write_metrics(folder: Path, steps: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "metrics.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["epoch", "step", "val_acc", "val_loss"])
        for step in range(40, steps + 1, 40):
            rows.writerow([step // 40 - 1, step - 1, 1 - 400 / (step + 500), 500 / (step + 200)])


def grown_run(folder: Path, layers: int = 3, chunks: int = 4, path: tuple[str, ...] = FULL) -> Path:
    """A run of 8,000 steps in which most chunks germinate, some of them twice."""
    rng = random.Random(0)
    names = {f"encoder.layers.{i}.mlp.fc{i % 2 + 1}": chunks for i in range(layers)}
    ticks = [tick(step, added_parameters=step // 400 * 1000, tick_seconds=0.05) for step in range(40, 8001, 40)]
    entries = [fit_start(), start(names), *ticks, at("end", 8000, outcome="finished")]
    for name in names:
        for chunk in range(chunks):
            if rng.random() < 0.9:
                entries += life(rng, name, chunk, rng.randrange(400, 5200, 400), path)
    write_metrics(folder, 8000)
    return write(folder, entries)
