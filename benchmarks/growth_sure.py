"""Should the cull be surer of what narrowing costs? Rules that ask the held-out batches, or samples new to the fold.

python benchmarks/growth_sure.py --data DIR [--tasks vowel,satellite] [--seeds 12]

Nets of one hidden layer as in `growth_widths.py`, computed on one CPU core at the rate that is best for `AutoSize`,
from random seeds that no other experiment has. Results: `results/growth_sure.json`. What the rule of two standard
errors does through a Trainer, by the plan's seeds and rates, stands in `results/growth_sure.jsonl`, as in
`growth.jsonl` but without curves (rule 4, for as long as it was in the library). They become the tables of
`docs/evidence/sizing.md` by `growth_widths.py --report`.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from growth_batched import BATCH, STEPS, Lab, Nets, folded, greedy_orders, random_nets
from growth_lab import interval, tasks_in, write_tasks
from growth_plan import current
from growth_results import Results, Run, mean, shown, table
from growth_tables import passes
from growth_tasks import TASKS, Task
from growth_widths import HOST, PATH, WIDEST, bisected, holds, parameters

SEED, BATCHES = 300, 8
# Step of growth, rate; best and reference width with the rates of these.
COURSES: dict[str, tuple[int, float, dict[int, float]]] = {
    "letter": (40, 0.03, {512: 0.03, 256: 0.03}),
    "letter8": (40, 0.01, {512: 0.01, 128: 0.01}),
    "letter3": (20, 0.01, {128: 0.003, 8: 0.03}),
    "satellite": (40, 0.01, {256: 0.01, 128: 0.01}),
    "vowel": (20, 0.01, {512: 0.03, 256: 0.03}),
    "shuttle": (80, 0.03, {512: 0.01, 8: 0.03}),
    "teacher": (40, 0.01, {16: 0.01}),
    "fashion": (40, 0.001, {512: 0.001, 128: 0.003}),
}
FOLDS = {"own": [[]], "half": [[0, 2, 4, 6], [1, 3, 5, 7]], "others": [[i] for i in range(BATCHES)]}
"""Held-out batches that a fold has not seen, when it is judged by them; ``own``: all have been seen."""

HERE = Path(__file__).parent
RESULTS, RUNS, BEFORE = (HERE / "results" / name for name in ("growth_sure.json", "growth_sure.jsonl", "growth.jsonl"))

Gains = Mapping[str, Tensor]
"""By fold: what each batch gains in points and in loss, ``(2, nets, batches)``."""
Rule = Callable[[Gains], tuple[Tensor, Tensor]]
"""What a width costs in points and in loss, surely, of each net."""


def surely(fold: str, points: float = 0.0, loss: float = 0.0) -> Rule:
    """The means over the batches, and so many standard errors."""

    def cost(gains: Gains) -> tuple[Tensor, Tensor]:
        error = gains[fold].std(2) / BATCHES**0.5
        centre = gains[fold].mean(2)
        return points * error[0] - centre[0], centre[1] + loss * error[1]

    return cost


def median(fold: str, errors: int) -> Rule:
    """Of the loss the median over the batches, or the order statistic that lies so many standard errors above it."""

    def cost(gains: Gains) -> tuple[Tensor, Tensor]:
        ordered = gains[fold][1].sort(1).values
        place = math.ceil(BATCHES / 2 + errors * BATCHES**0.5 / 2)
        middle = ordered[:, BATCHES // 2 - 1 : BATCHES // 2 + 1].mean(1)
        return -gains[fold][0].mean(1), ordered[:, place - 1] if errors else middle

    return cost


RULES: dict[str, tuple[Rule, float]] = {
    "**means within the tolerance: the rule**": (surely("own"), 1.0),
    "half of both tolerances": (surely("own"), 0.5),
    "loss and 1 standard error": (surely("own", loss=1), 1.0),
    "loss and 2 standard errors": (surely("own", loss=2), 1.0),
    "points and loss and 1 standard error": (surely("own", 1, 1), 1.0),
    "points and loss and 2 standard errors": (surely("own", 2, 2), 1.0),
    "the loss's median": (median("own", 0), 1.0),
    "the loss's median and 1 standard error": (median("own", 1), 1.0),
    "the loss's median and 2 standard errors": (median("own", 2), 1.0),
    "folded by the other half of the batches": (surely("half"), 1.0),
    "... loss and 1 standard error": (surely("half", loss=1), 1.0),
    "... the loss's median and 1 standard error": (median("half", 1), 1.0),
    "folded by the other seven batches": (surely("others"), 1.0),
    "... loss and 1 standard error too": (surely("others", loss=1), 1.0),
    "... the loss's median and 1 standard error too": (median("others", 1), 1.0),
}


class Apart(Lab):
    """Nets and batches of random seeds apart from those of other experiments."""

    def __init__(self, task: Task, rate: float, seeds: int) -> None:
        super().__init__(task, [rate], seeds, "cpu")
        draw = torch.Generator().manual_seed(5 + SEED)
        self.batches = torch.randint(len(self.splits[0][1]), (STEPS, seeds, BATCH), generator=draw)

    def nets(self, units: int, offset: int = 0) -> Nets:
        """New nets."""
        first = SEED + offset
        return random_nets(range(first, first + self.seeds), 1, (self.inputs, units, self.outputs), self.device)

    def by_batch(self, nets: Nets) -> list[tuple[Tensor, Tensor]]:
        """Points and loss, and the units' values, of each held-out batch."""
        x, y = self.splits[1]
        size = -(-len(x) // BATCHES)
        seen = (self.look(nets, pair) for pair in zip(x.split(size), y.split(size), strict=True))
        return [(figures[:2].mean(2), units) for figures, units in seen]


def moments(seen: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Mean and covariance of the units over some batches."""
    rows = torch.cat([units for _, units in seen], 1).double()
    centre = rows.mean(1)
    return centre, torch.bmm(rows.mT, rows) / rows.shape[1] - centre[:, :, None] * centre[:, None]


def figures(seen: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Points and loss, ``(2, nets, batches)``."""
    return torch.stack([means for means, _ in seen], 2)


@torch.no_grad()
def examine(name: str, data: Path, seeds: int) -> dict[str, Any]:
    """All rules on one task: minus the best static width on test and validation samples, and the size."""
    task, (grow, rate, widths) = TASKS[name](data), COURSES[name]
    static = {}
    for width, own in widths.items():
        lab = Apart(task, own, seeds)
        nets = lab.nets(width)
        lab.train(nets, 0, STEPS)
        static[width] = [lab.points(nets, part) for part in (1, 2)]
    lab = Apart(task, rate, seeds)
    best, reference = max(static.values(), key=lambda points: float(points[1].mean())), min(static)
    found = walk(lab, grow)
    cells = {}
    for rule, (cost, share) in RULES.items():
        chosen = smallest(found, cost, share, lab.classes)
        ends = [torch.stack([found[w][1][part][net] for net, w in enumerate(chosen)]) for part in (0, 1)]
        validation, test = (interval((end - top).tolist()) for end, top in zip(ends, best, strict=True))
        size = sum(parameters(lab, width) for width in chosen) / seeds / parameters(lab, reference)
        cells[rule] = test | {"size": size, "validation": validation}
    return {"reference": reference, "seeds": seeds, "rules": cells}


def walk(lab: Apart, grow: int) -> dict[int, tuple[Gains, list[Tensor]]]:
    """Grow; of every width of the cull's path the gains at the cull, and validation and test points at the end."""
    nets = lab.nets(HOST)
    lab.train(nets, 0, grow)
    nets.widen(lab.nets(WIDEST - HOST, offset=7000), grow)
    lab.train(nets, grow, STEPS // 2, 0.01)
    seen = lab.by_batch(nets)
    before, (centre, covariance) = figures(seen), moments(seen)
    order = greedy_orders(covariance, nets.values["w2"], HOST)
    parts = {
        kind: [(new, moments([batch for i, batch in enumerate(seen) if i not in new])) for new in folds]
        for kind, folds in FOLDS.items()
    }
    del seen
    found = {}
    for width in PATH:
        gains = {}
        for kind, folds in parts.items():
            gains[kind] = torch.zeros_like(before)
            for new, known in folds:
                after = figures(lab.by_batch(folded(nets, order, width, *known)))
                for batch in new or range(BATCHES):
                    gains[kind][:, :, batch] = (after - before)[:, :, batch]
        narrow = folded(nets, order, width, centre, covariance)
        lab.train(narrow, STEPS // 2, STEPS)
        found[width] = gains, [lab.points(narrow, part) for part in (1, 2)]
    return found


def smallest(found: Mapping[int, tuple[Gains, list[Tensor]]], cost: Rule, share: float, classes: bool) -> list[int]:
    """The width that bisection comes to, of each net."""
    allowed = {}
    for width, (gains, _) in found.items():
        points, loss = cost(gains)
        fits = loss <= 0.01 * share + 1e-12
        allowed[width] = fits & (points <= 0.5 * share + 1e-9) if classes else fits
    return bisected(allowed)


def section(found: Mapping[str, Any]) -> str:
    """The tables of the page."""
    tasks = found["tasks"]
    rows = []
    for rule in RULES:
        cells = [tasks[task]["rules"][rule] for task in tasks]
        text = [f"{c['mean']:+.2f} ± {c['half_width']:.2f}, {c['size']:.1f} ×" for c in cells]
        rows.append([rule, *text, str(sum(map(holds, cells)))])
    return table(["rule", *tasks, "holds"], rows)


def through_a_trainer() -> str:
    """The rule before and that of two standard errors, by the plan's rates and seeds."""
    before, after = ([json.loads(line) for line in path.read_text().splitlines()] for path in (BEFORE, RUNS))
    before = list(filter(current, before))
    static = [run for run in before if run["arm"].isdigit()]
    made = {(run["task"], run["arm"]) for run in after}
    ways = [Results([*static, *runs]) for runs in (before, after)]
    rows = []
    for task in ways[1].tasks:
        for arm in ("auto", "shrink"):
            if (task, arm) in made and ways[0].widths(task):
                rows.append([task, arm, *(cell for results in ways for cell in _cells(results, task, arm))])
    head = ("task", "arm", "the rule: minus best", "size", "holds", "2 standard errors: minus best", "size", "holds")
    return table(head, rows)


def _cells(results: Results, task: str, arm: str) -> list[str]:
    best, reference = results.reference(task)
    runs: list[Run] = results.arm(task, arm)
    against = results.compare(results.widths(task)[best], runs)
    needed = mean(results.widths(task)[reference], "parameters")
    verdict = passes(against, mean(runs, "parameters"), needed)
    seeds = f" ({against.pairs})"
    return [shown(against) + seeds, f"{mean(runs, 'parameters') / needed:.2f} ×", "yes" if verdict else "**no**"]


def main() -> None:
    """Run the tasks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=HERE / "data")
    parser.add_argument("--tasks", default=",".join(COURSES))
    parser.add_argument("--seeds", type=int, default=12, help="of Fashion-MNIST half as many")
    parser.add_argument("--json", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    start = time.perf_counter()
    done = tasks_in(options.json)
    for name in options.tasks.split(","):
        done[name] = examine(name, options.data, options.seeds // 2 if name == "fashion" else options.seeds)
        write_tasks(options.json, done, start)
        print(name, f"{time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
