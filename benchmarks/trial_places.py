"""What trials choose: every place grown to the end, and which of them trials in turn and shared ones would have taken.

.. code-block:: bash

    python -m benchmarks.trial_places --data DIR --seeds 12 --json benchmarks/results/trial_places.json

The tasks, nets and runs are those of ``benchmarks/growth.py`` (``letter_deep``: six hidden layers of 48 units, the
third of 2; ``mnist1d_plain``: three convolutions of 4 channels), one rate each, paired by seed. For each seed every
layer is grown in a run of its own, so that a choice is worth what that run gave, and chance the mean of all: choices
differ, not runs. Nothing is charged: what a trial costs is told in steps. DIR holds the data as for
``benchmarks/growth.py``.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch

sys.path.append(str(Path(__file__).parent))

import growth_run
from growth_arms import Arm
from growth_lab import interval
from growth_tasks import TASKS, Task
from lightning_morpho import Observation, Tamiyo, Trial, Uniform
from lightning_morpho.tamiyo import Decision, Germinate, Try

SETTINGS = {"letter_deep": (0.01, 24, 2), "mnist1d_plain": (0.03, 12, 4)}
"""Rate, new units, and units of the host."""
SHARES = (0.005, 0.02, 0.06)
AT = 0.15
Row = dict[str, Any]


class Asked(Exception):
    """What came of the trials that a run was made for."""


@dataclass(frozen=True, kw_only=True)
class Ask(Trial):
    """Tries all places, and ends the run."""

    def grow(self, observation: Observation) -> Sequence[Decision]:
        if observation.trials is not None:
            raise Asked({tried.place[0]: tried.cost for tried in observation.trials})
        if observation.step < AT * (observation.total_steps or 0):
            return []
        places = tuple((layer.name,) for layer in observation.layers if layer.growable)
        return [Try(places=places, steps=self._steps(observation), shared=self.shared)]


@dataclass(frozen=True, kw_only=True)
class Grow(Tamiyo):
    """One round in one layer."""

    place: str

    def grow(self, observation: Observation) -> Sequence[Decision]:
        if observation.germinations or observation.step < AT * (observation.total_steps or 0):
            return []
        return [Germinate(layer=self.place, reason="in turn")]


def train(name: str, task: Task, policy: Tamiyo, units: int, seed: int) -> float:
    """Test points of a run with a policy."""
    plan = json.loads((Path(__file__).parent / "growth_plan.json").read_text(encoding="utf-8"))
    rate, _, host = SETTINGS[name]
    job = {"task": name, "arm": f"trial{units}", "rate": rate, "seed": seed, "host": host}
    with mock.patch.object(Arm, "policy", lambda *_: policy):
        return float(growth_run.run(job, task, plan, Path("hosts"))["test"])


def costs(name: str, task: Task, share: float, shared: bool, seed: int) -> dict[str, float]:
    """What a trial compares the places by."""
    try:
        train(name, task, Ask(share=share, shared=shared), SETTINGS[name][1], seed)
    except Asked as found:
        return dict(found.args[0])
    raise RuntimeError("the run has tried nothing")


def row(name: str, task: Task, seed: int) -> Row:
    """All runs of one seed."""
    found = {
        f"{('turn', 'shared')[both]} {share}": costs(name, task, share, both, seed)
        for share in SHARES
        for both in (False, True)
    }
    places = list(found["turn 0.02"])
    units = SETTINGS[name][1]
    points = {place: train(name, task, Grow(place=place), units, seed) for place in places}
    uniform = train(name, task, Uniform(at=AT, reopen=None), units // len(places), seed)
    return {"task": name, "seed": seed, "points": points, "uniform": uniform, "costs": found}


def chosen(one: Row, rule: str) -> float:
    """Points of what a rule chooses."""
    points: dict[str, float] = one["points"]
    if rule == "uniform":
        return float(one["uniform"])
    if rule == "chance":
        return statistics.mean(points.values())
    if rule == "best":
        return max(points.values())
    if rule == "narrowest":  # ties go to the earliest
        return points["net.6" if one["task"] == "letter_deep" else next(iter(points))]
    return points[min(one["costs"][rule], key=one["costs"][rule].get)]


def told(rows: Sequence[Row], rule: str, other: str) -> str:
    """Mean paired difference and its 95 % interval."""
    differences = [chosen(one, rule) - chosen(one, other) for one in rows]
    found = interval(differences)
    return f"{found['mean']:+.2f} ± {found['half_width']:.2f}"


def report(rows: Sequence[Row]) -> None:
    """The table of one task."""
    places = len(rows[0]["points"])
    print(f"\n| {rows[0]['task']}, {len(rows)} seeds | steps | points | − chance | − turn 0.02 | − narrowest |")
    print("|---|---|---|---|---|---|")
    for rule in ("uniform", "best", "narrowest", "chance", *rows[0]["costs"]):
        share = float(rule.split()[1]) if " " in rule else 0.0
        steps = f"{share * (places if rule.startswith('turn') else 1):.1%}"
        against = [told(rows, rule, other) for other in ("chance", "turn 0.02", "narrowest")]
        print(
            f"| {rule} | {steps} | {statistics.mean(chosen(one, rule) for one in rows):.2f} | {' | '.join(against)} |"
        )


def main() -> None:
    """Run all seeds of both tasks and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=12)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    rows: list[Row] = []
    for name in SETTINGS:
        task = TASKS[name](options.data)
        rows += [row(name, task, seed) for seed in range(options.seeds)]
        report([one for one in rows if one["task"] == name])
    if options.json:
        options.json.write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n", encoding="utf-8")


if __name__ == "__main__":
    main()
