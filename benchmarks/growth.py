"""Does growing pay? Every arm through a Lightning Trainer, each at its best learning rate, paired random seeds.

python benchmarks/growth.py --suite quick
python benchmarks/growth.py --suite full --data DIR [--shard 0/4] [--workers 16] [--minutes 9]
python benchmarks/growth.py --report

`growth_plan.json` says which arm runs on which task, with which widths, rates and seeds. Each run is one line of
`--json`; a line that is there is not run again, so a suite that was stopped goes on. Arms:

- a number: a static net of that width;
- auto: starts at the plan's `host` width, `AutoSize()`, the budget that of the widest static net;
- tolerance0.25, tolerance0.1: as auto, with that tolerance instead of 0.5 points;
- shrink: starts at the widest width, `AutoSize(sizing="shrink")`;
- uniform, random, periodic: as auto, filled to the budget in one round at 15 %, or in four parts at random ticks and
  layers, or in four parts in turn, without sizing.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import torch
from growth_tasks import TASKS, Split, Task
from torch import Tensor, nn

from lightning_morpho import (
    AutoSize,
    BlueprintConfig,
    BudgetConfig,
    LayersConfig,
    MorphoCallback,
    Periodic,
    RandomPlace,
    TelemetryConfig,
    Uniform,
    export,
)

HERE = Path(__file__).parent
PLAN: dict[str, Any] = json.loads((HERE / "growth_plan.json").read_text())
STEPS, BATCH, TICK = PLAN["steps"], PLAN["batch"], PLAN["tick"]
RESULTS = HERE / "results" / "growth.jsonl"


class Batches:
    """A loader without overhead: random training batches, or all samples in order."""

    def __init__(self, data: Split, batch: int, steps: int | None = None, seed: int = 0) -> None:
        self.data, self.batch, self.steps, self.seed = data, batch, steps, seed

    def __len__(self) -> int:
        return self.steps or -(-len(self.data[0]) // self.batch)

    def __iter__(self) -> Iterator[Split]:
        x, y = self.data
        if self.steps is None:
            yield from zip(x.split(self.batch), y.split(self.batch), strict=True)
            return
        draw = torch.Generator().manual_seed(1000 + self.seed)
        for _ in range(self.steps):
            chosen = torch.randint(len(x), (self.batch,), generator=draw)
            yield x[chosen], y[chosen]


class Module(L.LightningModule):
    """Adam, a constant rate that falls linearly in the last 30 %."""

    def __init__(self, net: nn.Module, rate: float, classes: bool) -> None:
        super().__init__()
        self.net, self.rate, self.classes = net, rate, classes

    def loss(self, batch: Split) -> tuple[Tensor, Tensor]:
        out = self.net(batch[0])
        cost = nn.functional.cross_entropy if self.classes else nn.functional.mse_loss
        return cost(out, batch[1]), out

    def training_step(self, batch: Split, batch_idx: int) -> Tensor:
        return self.loss(batch)[0]

    def validation_step(self, batch: Split, batch_idx: int) -> Tensor:
        loss, out = self.loss(batch)
        self.log("val_loss", loss)
        if self.classes:
            self.log("val_acc", (out.argmax(1) == batch[1]).float().mean())
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=self.rate)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (STEPS - step) / (0.3 * STEPS)))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Timed(MorphoCallback):
    """Counts the seconds in ticks, and the parameters that each step trains."""

    seconds, trained = 0.0, 0

    def _tick(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        start = time.perf_counter()
        super()._tick(trainer, pl_module)
        self.seconds += time.perf_counter() - start

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        super().on_train_batch_end(trainer, pl_module, *args)
        self.trained += 0 if self.engine is None else self.engine.live_parameters


def callback(arm: str, budget: int, layers: int, seed: int) -> Timed:
    """The callback of an arm that grows or shrinks."""
    parts = 4 if arm in ("random", "periodic") else 1
    policies = {
        "auto": AutoSize(),
        "shrink": AutoSize(sizing="shrink"),
        "uniform": Uniform(reopen=None),
        "random": RandomPlace(rate=0.5, seed=seed),
        "periodic": Periodic(start=2, every=3, events=layers),
    }
    if arm.startswith("tolerance"):
        policies[arm] = AutoSize(tolerance=float(arm.removeprefix("tolerance")))
    return Timed(
        tamiyo=policies[arm],
        layers=LayersConfig(beds=parts, num_seeds=1),
        blueprint=BlueprintConfig(hidden="budget" if arm in ("uniform", "random", "periodic") else "auto"),
        budget=BudgetConfig(parameters=budget),
        every_n_steps=TICK,
        telemetry=TelemetryConfig(every_n_steps=0, events=False, table=False, log=False),
        seed=seed,
    )


@torch.no_grad()
def points(net: nn.Module, data: Split, classes: bool) -> float:
    """Accuracy in percent, or 100 R²."""
    out = torch.cat([net(x) for x in data[0].split(4096)])
    if classes:
        return 100 * (out.argmax(1) == data[1]).double().mean().item()
    return 100 * (1 - float((out - data[1]).square().mean() / data[1].var(0, correction=0).mean()))


def size(net: nn.Module) -> int:
    """Parameters of a net."""
    return sum(p.numel() for p in net.parameters())


def run(job: dict[str, Any], task: Task) -> dict[str, Any]:
    """Train one net."""
    arm, seed = job["arm"], job["seed"]
    static = arm.isdigit()
    width = int(arm) if static else job["widest"] if arm == "shrink" else job["host"]
    torch.manual_seed(seed)
    net = task.net(width)
    depth = sum(isinstance(m, (nn.Linear, nn.Conv1d)) for m in net) - 1  # type: ignore[attr-defined]
    host, module = size(net), Module(net, job["rate"], task.classes)
    morpho = None if static else callback(arm, size(task.net(job["widest"])), depth, seed)
    training, validation, test = task.splits
    batch = -(-len(validation[0]) // 8)
    trainer = L.Trainer(
        max_steps=STEPS,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[] if morpho is None else [morpho],
        val_check_interval=TICK,
        limit_val_batches=0 if static else None,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
    )
    start = time.perf_counter()
    trainer.fit(module, Batches(training, BATCH, STEPS, seed), Batches(validation, batch))
    seconds = time.perf_counter() - start
    plain = export(module).eval()
    result = {
        "val": points(plain.net, validation, task.classes),  # type: ignore[arg-type]
        "test": points(plain.net, test, task.classes),  # type: ignore[arg-type]
        "parameters": size(plain),
        "shapes": [list(p.shape) for p in plain.parameters() if p.ndim > 1],
        "seconds": round(seconds, 2),
        "trained": host,
    }
    if morpho is not None:
        state = morpho.state_dict()["engine"]
        result |= {
            "tick_seconds": round(morpho.seconds, 2),
            "trained": round(host + morpho.trained / STEPS),
            "germinations": len(state["records"]),
            "assessments": state["assessments"],
            "resizings": state["resizings"],
        }
    return job | result


def jobs(suite: str) -> list[dict[str, Any]]:
    """All runs of a suite; within an entry all arms of one random seed come before the next."""
    found: dict[str, dict[str, Any]] = {}
    for entry in PLAN["suites"][suite]:
        widths = entry.get("widths", [512])
        arms = [*entry["arms"], *([str(w) for w in widths] if len(widths) > 1 else [])]
        common = {"host": entry["host"], "widest": widths[-1]}
        for seed in range(entry["seeds"]):
            for task in entry["tasks"]:
                for rate in entry["rates"]:
                    for arm in arms:
                        job = {"task": task, "arm": arm, "rate": rate, "seed": seed, **common}
                        found.setdefault(key(job), job)
    return list(found.values())


def key(job: dict[str, Any]) -> str:
    """What makes a run the same."""
    return " ".join(str(job[name]) for name in ("task", "arm", "rate", "seed"))


def _start(tasks: dict[str, Task]) -> None:
    torch.set_num_threads(1)
    _TASKS.update(tasks)


_TASKS: dict[str, Task] = {}


def _work(job: dict[str, Any]) -> dict[str, Any]:
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "lightning.fabric", "lightning_morpho"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return run(job, _TASKS[job["task"]])


def read(path: Path) -> list[dict[str, Any]]:
    """The runs that are done."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def main() -> None:
    """Run what is missing of a suite, or write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", choices=[*PLAN["suites"]], default="quick")
    parser.add_argument("--data", type=Path, default=HERE / "data")
    parser.add_argument("--shard", default="0/1", help="i/n: every n-th run, from the i-th on")
    parser.add_argument("--json", type=Path, default=RESULTS, help="where runs are written and looked for")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start no further run after that")
    parser.add_argument("--report", action="store_true", help="write docs/evidence from the runs that are there")
    options = parser.parse_args()
    if options.report:
        from growth_report import write_report

        write_report(read(options.json), HERE.parent / "docs" / "evidence")
        return
    end = time.monotonic() + 60 * options.minutes
    shard, of = map(int, options.shard.split("/"))
    done = {key(entry) for entry in read(options.json)}
    missing = [job for i, job in enumerate(jobs(options.suite)) if i % of == shard and key(job) not in done]
    names = {job["task"] for job in missing}
    tasks, absent = {}, {}
    for name in names:
        try:
            tasks[name] = TASKS[name](options.data)
        except (FileNotFoundError, ImportError) as error:
            absent[name] = str(error)
    for name, why in absent.items():
        print(f"{name}: not run, its data are missing ({why})")
    waiting = iter([job for job in missing if job["task"] in tasks])

    def until_the_end() -> Iterator[dict[str, Any]]:
        for job in waiting:
            if time.monotonic() > end:
                return
            yield job

    options.json.parent.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("fork")
    with options.json.open("a") as file, context.Pool(options.workers, _start, (tasks,)) as pool:
        busy: list[Any] = []
        source = until_the_end()
        while True:
            busy = [handle for handle in busy if not _settle(handle, file)]
            while len(busy) < options.workers and (job := next(source, None)) is not None:
                busy.append(pool.apply_async(_work, (job,)))
            if not busy:
                break
            time.sleep(0.01)


def _settle(handle: Any, file: Any) -> bool:
    if not handle.ready():
        return False
    try:
        result = handle.get()
    except Exception as error:  # one run's failure is said; the next start tries it again
        print(f"failed: {error!r}", flush=True)
        return True
    file.write(json.dumps(result) + "\n")
    file.flush()
    print(
        key(result), f"val {result['val']:.2f} test {result['test']:.2f} {result['parameters']} parameters", flush=True
    )
    return True


if __name__ == "__main__":
    main()
