"""When does `AutoSize` say yes? What new units would explain of the residual, and what the host's own still could.

python benchmarks/growth_whether.py --data DIR [--tasks linear,python_gpt] [--seeds 4]

Hosts of the experiments are trained without growth for a fifth of a training, and asked after every 2 % of it.
Results: `results/growth_whether.json`; `growth_widths.py --report` puts the table into `docs/evidence/sizing.md`.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from growth_lab import tasks_in, write_tasks
from growth_tasks import TASKS, Task
from lightning_morpho import AutoSize, MorphoConfig, Observation, confirm_pairs_, hybrid_layers, morph_
from lightning_morpho.sizing import assess
from lightning_morpho.tamiyo import Assessment, Germinate, LayerView

STEPS, BATCH, EVERY = 1000, 128, 20
ALL = (
    *("linear", "letter", "letter8", "letter3", "letter2", "satellite", "shuttle", "vowel", "teacher", "mnist1d"),
    *("fashion", "python_gpt"),
)
HOSTS = {"linear": 8, "mnist1d": 3}
RATES: Mapping[str, Sequence[float]] = {"fashion": (0.003, 0.01)}
RESULTS = Path(__file__).parent / "results" / "growth_whether.json"


def asked(task: Task, host: nn.Module, step: int, seed: int) -> list[Assessment]:
    """What a host would be told, on the validation samples."""
    model = copy.deepcopy(host).eval()
    x, y = task.splits[1]
    morph_(model, MorphoConfig())
    confirm_pairs_(model, (x[:4],))
    parts = list(zip(x.split(-(-len(x) // 8)), y.split(-(-len(y) // 8)), strict=True))

    def losses() -> Iterator[Tensor]:
        yield from (task.measure.loss(model(x), y) for x, y in parts)

    return [replace(found, step=step) for found in assess(hybrid_layers(model).values(), losses, seed=seed)]


def course(task: Task, width: int, rate: float, seed: int) -> list[Assessment]:
    """The answers of one host in training, from 2 % on until 20 %."""
    torch.manual_seed(seed)
    net = task.net(width)
    optimizer = torch.optim.Adam(net.parameters(), lr=rate)
    draw = torch.Generator().manual_seed(1000 + seed)
    x, y = task.splits[0]
    answers = []
    for step in range(1, STEPS // 5 + 1):
        chosen = torch.randint(len(x), (BATCH,), generator=draw)
        optimizer.zero_grad()
        task.measure.loss(net(x[chosen]), y[chosen]).backward()
        optimizer.step()
        if step % EVERY == 0:
            answers += asked(task, net, step, seed)
    return answers


def rounded(answer: Assessment) -> dict[str, Any]:
    """An answer as plain values, to five digits."""
    return {key: float(f"{v:.5g}") if isinstance(v, float) else v for key, v in asdict(answer).items()}


def grown_at(answers: Sequence[Assessment]) -> int | None:
    """The step at which the default policy would grow, None if it would not."""
    view = LayerView(
        name="any",
        position=0,
        kind="span",
        features=1,
        width=1,
        bed_parameters=1,
        free_beds=1,
        germinations=0,
        dormant=(0,),
        seeds=(),
        statistics={},
    )
    for step in sorted({answer.step for answer in answers}):
        known = tuple(answer for answer in answers if answer.step <= step)
        tick = Observation(
            tick=1, step=step, total_steps=STEPS, losses=(None,), layers=(view,), assessments=known, can_size=True
        )
        if any(isinstance(decision, Germinate) for decision in AutoSize().decide(tick)):
            return step
    return None


def examine(name: str, data: Path, seeds: int) -> list[dict[str, Any]]:
    """All rates of a task: the answers of each host."""
    task = TASKS[name](data)
    return [
        {"rate": rate, "seed": seed, "answers": [rounded(a) for a in course(task, HOSTS.get(name, 4), rate, seed)]}
        for rate in RATES.get(name, (0.01, 0.03))
        for seed in range(seeds)
    ]


def section(tasks: Mapping[str, Any]) -> str:
    """The table, in Markdown."""
    lines = ["| task | rate | at 2 %: new, own | at 10 %: new, own | grown at |", "| --- | --- | --- | --- | --- |"]
    for name in ALL:
        for rate in sorted({run["rate"] for run in tasks.get(name, ())}):
            runs = [[Assessment(**a) for a in run["answers"]] for run in tasks[name] if run["rate"] == rate]
            cells = [_median(runs, step) for step in (STEPS // 50, STEPS // 10)]
            lines.append(f"| {' | '.join([name, str(rate), *cells, _moments(runs)])} |")
    return "\n".join(lines)


def _median(runs: Sequence[Sequence[Assessment]], step: int) -> str:
    """Median shares of the first pair, in percent of the residual."""
    first = [next(a for a in run if a.step == step) for run in runs]
    new, own = (statistics.median(100 * getattr(a, name) for a in first) for name in ("share", "own"))
    return f"{new:.2g}, {own:.2g} %"


def _moments(runs: Sequence[Sequence[Assessment]]) -> str:
    steps = [grown_at(run) for run in runs]
    found = sorted(100 * step // STEPS for step in steps if step)
    never = [f"never ({steps.count(None)} of {len(steps)})"] if None in steps else []
    return ", ".join([*(f"{share} %" for share in dict.fromkeys(found)), *never])


def main() -> None:
    """Run the tasks; what stands in the results already is not run again."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(__file__).parent / "data")
    parser.add_argument("--tasks", default=",".join(ALL))
    parser.add_argument("--seeds", type=int, default=4, help="of the linear task three times as many")
    parser.add_argument("--json", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    start = time.perf_counter()
    done = tasks_in(options.json)
    for name in options.tasks.split(","):
        if name in done:
            continue
        done[name] = examine(name, options.data, options.seeds * (3 if name == "linear" else 1))
        write_tasks(options.json, done, start)
        print(name, flush=True)
    print(section(done))


if __name__ == "__main__":
    main()
