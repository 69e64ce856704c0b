"""Beside gromo: one hidden layer grown in three rounds, by gromo's TINY and GradMax and by this library.

gromo needs a virtual environment of its own (Python 3.11 or newer):

python -m venv .venv-gromo
.venv-gromo/bin/pip install -c constraints.txt gromo -e .
.venv-gromo/bin/python benchmarks/growth_gromo.py --data DIR --json benchmarks/results/gromo.json
python benchmarks/growth_gromo.py --table benchmarks/results/gromo.json

Two tasks of its kind: Letter Recognition (the table of `growth_tasks.py`) and a regression on a teacher of 10 units.
Nets of 8 hidden units (GELU, as GradMax needs a slope at zero) get 8 more at steps 150, 300 and 500 of 1000: at the end
all have 32, as `static` has from the start. One plain loop, the same batches, Adam, a rate that falls in the last 30 %,
swept for each arm and chosen on validation, 12 random seeds. gromo's growth is what its user writes: statistics over 16
batches, the optimal update, for TINY the best of five scaling factors on these batches, for GradMax (whose units change
nothing at first) its own normalization, the change, a new optimizer. This library's units are kept without being
judged: gromo has no judgement to compare.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from growth_lab import context, interval, wsd
from growth_tasks import TASKS, Split, Task
from lightning_morpho import (
    BlueprintConfig,
    GrowthEngine,
    LayersConfig,
    MorphoConfig,
    OptimizerLink,
    Scripted,
    confirm_pairs_,
    export,
    hybrid_layers,
    morph_,
)

SEEDS, RATES = range(12), (0.01, 0.03, 0.1)
STEPS, BATCH, TICK, GROWTHS = 1000, 128, 25, (150, 300, 500)
HOST, MORE, SAMPLED = 8, 8, 16
FACTORS = (0.1, 0.3, 1.0, 3.0, 10.0)
COMMON = {"compute_delta": False, "omega_zero": False, "statistical_threshold": 0.0}
METHODS: dict[str, dict[str, Any]] = {
    "gromo: TINY": {"use_covariance": True, "alpha_zero": False, "use_projection": True},
    "gromo: GradMax": {
        "use_covariance": False,
        "alpha_zero": True,
        "use_projection": False,
        "ignore_singular_values": True,
    },
}
ARMS = ("static", "morpho", *METHODS)


class Static:
    """A net that is never grown, and its optimizer.

    Attributes:
        rebuilt: How many optimizers the user has to make after the first.
    """

    def __init__(self, task: Task, rate: float, width: int = HOST + MORE * len(GROWTHS)) -> None:
        self.task, self.rate, self.rebuilt = task, rate, 0
        self.net = self.build(*ends(task), width)
        self.optimizer = self.new_optimizer()

    def build(self, inputs: int, outputs: int, width: int) -> nn.Module:
        return nn.Sequential(nn.Linear(inputs, width), nn.GELU(), nn.Linear(width, outputs))

    def new_optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.net.parameters(), lr=self.rate)

    def tick(self, step: int, batches: Sequence[Split]) -> None:
        """Called every 25 steps."""


class Morpho(Static):
    """Grown by this library in a plain loop: a script says when, the optimizer stays."""

    def __init__(self, task: Task, rate: float, seed: int) -> None:
        super().__init__(task, rate, HOST)
        morph_(
            self.net,
            MorphoConfig(
                layers=LayersConfig(beds=len(GROWTHS), num_seeds=1), blueprint=BlueprintConfig(hidden=MORE), seed=seed
            ),
        )
        refused = confirm_pairs_(self.net, (task.splits[0][0][:8],))
        assert not refused, refused
        self.optimizer = self.new_optimizer()
        layers = hybrid_layers(self.net)
        events = [
            {"tick": step // TICK, "layer": name} for step in GROWTHS for name in layers if layers[name].morpho.beds
        ]
        self.engine = GrowthEngine(layers, Scripted(events=events), OptimizerLink(layers, [self.optimizer]))

    def tick(self, step: int, batches: Sequence[Split]) -> None:
        self.engine.tick(step=step, total_steps=STEPS, loss=None, measure=None)


class Gromo(Static):
    """Grown by gromo."""

    def __init__(self, task: Task, rate: float, method: str) -> None:
        super().__init__(task, rate, HOST)
        self.method = method

    def build(self, inputs: int, outputs: int, width: int) -> nn.Module:
        from gromo.containers.growing_mlp import GrowingMLP

        return GrowingMLP(inputs, outputs, width, 1, activation=nn.GELU())

    def tick(self, step: int, batches: Sequence[Split]) -> None:
        if step not in GROWTHS:
            return
        self.net.init_computation()
        for x, y in batches:
            self.net.zero_grad()
            self.task.measure.loss(self.net(x), y).backward()
            self.net.update_computation()
        self.net.compute_optimal_updates(maximum_added_neurons=MORE, **COMMON, **METHODS[self.method])
        self.net.reset_computation()
        self.net.select_update(0)
        if self.method == "gromo: GradMax":
            self.net.currently_updated_layer.normalize_optimal_updates(normalization_type="gradmax_normalization")
            self.net.set_scaling_factor(1.0)
        else:
            self.net.set_scaling_factor(min(FACTORS, key=lambda factor: self.extended_loss(factor, batches)))
        self.net.apply_change()
        self.optimizer = self.new_optimizer()
        self.rebuilt += 1

    @torch.no_grad()
    def extended_loss(self, factor: float, batches: Sequence[Split]) -> float:
        """Loss with the new units, scaled."""
        self.net.set_scaling_factor(factor)
        return sum(float(self.task.measure.loss(self.net.extended_forward(x), y)) for x, y in batches)


def ends(task: Task) -> tuple[int, int]:
    """Inputs and outputs of a task's net."""
    layers = [m for m in task.net(1).modules() if isinstance(m, nn.Linear)]
    return layers[0].in_features, layers[-1].out_features


def start(arm: str, task: Task, rate: float, seed: int) -> Static:
    """The net of an arm before training."""
    torch.manual_seed(seed)
    if arm == "static":
        return Static(task, rate)
    return Morpho(task, rate, seed) if arm == "morpho" else Gromo(task, rate, arm)


def run(arm: str, task: Task, rate: float, seed: int) -> dict[str, Any]:
    """Train one net."""
    subject = start(arm, task, rate, seed)
    draw = torch.Generator().manual_seed(1000 + seed)
    (x, y), validation, test = task.splits

    def batch() -> Split:
        chosen = torch.randint(len(x), (BATCH,), generator=draw)
        return x[chosen], y[chosen]

    growing, began = [], time.process_time()
    for step in range(1, STEPS + 1):
        subject.optimizer.param_groups[0]["lr"] = rate * wsd(step - 1, STEPS)
        inputs, targets = batch()
        subject.optimizer.zero_grad()
        task.measure.loss(subject.net(inputs), targets).backward()
        subject.optimizer.step()
        if step % TICK == 0:
            batches = [batch() for _ in range(SAMPLED)] if step in GROWTHS else []
            tick = time.process_time()
            subject.tick(step, batches)
            if step in GROWTHS:
                growing.append(time.process_time() - tick)
    plain = export(subject.net) if arm == "morpho" else subject.net
    return {
        "val": score(plain, validation, task),
        "test": score(plain, test, task),
        "parameters": sum(p.numel() for p in plain.parameters()),
        "seconds": round(time.process_time() - began, 3),
        "growth_ms": [round(1000 * seconds, 2) for seconds in growing],
        "optimizers_rebuilt": subject.rebuilt,
    }


@torch.no_grad()
def score(net: nn.Module, data: Split, task: Task) -> float:
    """Points of all samples."""
    net.eval()
    return round(task.measure.points(net(data[0]), data[1]), 4)


def table(runs: dict[str, list[dict[str, Any]]]) -> str:
    """Each arm at its best rate, against this library, paired."""
    lines = [
        "| task | arm | rate | parameters | points | minus morpho | ms a growth | optimizers rebuilt |",
        "|---" * 8 + "|",
    ]
    for task in dict.fromkeys(key.split("/")[0] for key in runs):
        chosen = {}
        for arm in ARMS:
            rates = {rate: runs[f"{task}/{arm}/{rate:g}"] for rate in RATES}
            rate = max(rates, key=lambda rate: statistics.fmean(run["val"] for run in rates[rate]))
            chosen[arm] = rate, rates[rate]
        for arm, (rate, made) in chosen.items():
            bounds = interval([a["test"] - b["test"] for a, b in zip(made, chosen["morpho"][1], strict=True)])
            difference = "" if arm == "morpho" else f"{bounds['mean']:+.2f} ± {bounds['half_width']:.2f}"
            spent = [ms for run in made for ms in run["growth_ms"]]
            growth = "" if arm == "static" else f"{statistics.median(spent):.1f}"
            points = f"{statistics.fmean(run['test'] for run in made):.2f}"
            row = [task, arm, f"{rate:g}", f"{made[0]['parameters']}", points, difference, growth]
            lines.append("| " + " | ".join([*row, str(made[0]["optimizers_rebuilt"])]) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run what is missing, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("benchmarks/data"))
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/gromo.json"))
    parser.add_argument("--seeds", type=int, default=len(SEEDS))
    parser.add_argument("--table", type=Path, help="print the table of a finished file")
    options = parser.parse_args()
    if options.table:
        print(table(json.loads(options.table.read_text())["runs"]))
        return
    torch.set_num_threads(1)
    began = time.perf_counter()
    tasks = {name: TASKS[name](options.data) for name in ("letter", "teacher")}
    runs = {f"{task}/{arm}/{rate:g}": [] for task in tasks for arm in ARMS for rate in RATES}
    for seed in range(options.seeds):
        for key, made in runs.items():
            task, arm, rate = key.split("/")
            made.append(run(arm, tasks[task], float(rate), seed))
        print(f"seed {seed}: {time.perf_counter() - began:.0f} s", flush=True)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(context(began) | {"gromo": version("gromo"), "runs": runs}, indent=1) + "\n")
    print(table(runs))


if __name__ == "__main__":
    main()
