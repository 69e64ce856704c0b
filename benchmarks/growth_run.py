"""One run of the growth experiments: one net, one arm, through a Lightning Trainer, with all that is recorded of it.

An arm is a name, a width where it needs one, and `@steps` where it trains for another number of steps than the plan's:

- `64`, `64@680`: a static net of that width;
- `auto`: starts at the plan's `host` width, `AutoSize()`, the budget that of the widest static net;
- `tolerance0.25`: as auto, with that tolerance instead of 0.5 points;
- `shrink`: starts at the widest width, `AutoSize(sizing="shrink")`;
- `uniform`, `random`, `periodic`: as auto, filled to the budget in one round at 15 %, or in four parts at random ticks
  and layers, or in four parts in turn, without sizing;
- `round25`: starts at `host`, one round at 35 % to that width;
- `onward12@330`: a net of `host` units that was trained before goes on for that many steps, grown to that width at the
  first tick, after 5 % of them.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from growth_tasks import Split, Task
from lightning_morpho import (
    AllAtStart,
    AutoSize,
    BlueprintConfig,
    BudgetConfig,
    LayersConfig,
    MorphoCallback,
    Periodic,
    RandomPlace,
    Tamiyo,
    TelemetryConfig,
    Uniform,
    WarmupConfig,
    export,
)

LOOKS = 20  # at validation and test points, and decision ticks, in a run
Job = dict[str, Any]


@dataclass(frozen=True)
class Arm:
    """What is done with a net.

    Attributes:
        kind: ``"static"`` or one of the words above.
        number: The width, or the tolerance.
        steps: Training steps, if not the plan's.
    """

    kind: str
    number: float | None
    steps: int | None

    @classmethod
    def parse(cls, name: str) -> Arm:
        """Read an arm's name.

        Example:
            >>> Arm.parse("onward12@330")
            Arm(kind='onward', number=12.0, steps=330)
        """
        found = re.fullmatch(r"([a-z]*)([\d.]*)(?:@(\d+))?", name)
        if found is None:
            raise ValueError(f"`arm` must be a word, a number and `@steps`, some of them left out, got {name!r}.")
        word, number, steps = found.groups()
        return cls(word or "static", float(number) if number else None, int(steps) if steps else None)

    def width(self, job: Job) -> int:
        """Units of each hidden layer when the run starts."""
        if self.kind == "static":
            assert self.number is not None
            return int(self.number)
        return job["widest"] if self.kind == "shrink" else job["host"]

    def policy(self, job: Job, layers: int) -> Tamiyo:
        """The controller."""
        if self.kind == "tolerance":
            assert self.number is not None
            return AutoSize(tolerance=self.number)
        policies = {
            "auto": AutoSize(),
            "shrink": AutoSize(sizing="shrink"),
            "uniform": Uniform(reopen=None),
            "random": RandomPlace(rate=0.5, seed=job["seed"]),
            "periodic": Periodic(start=2, every=3, events=layers),
            "round": Uniform(at=0.35, reopen=None),
            "onward": AllAtStart(),
        }
        return policies[self.kind]

    def options(self, job: Job, task: Task, steps: int) -> dict[str, Any]:
        """The callback's arguments that differ from arm to arm."""
        if self.kind in ("round", "onward"):
            assert self.number is not None
            # A trained host has steps behind it that the Trainer of this run knows nothing of.
            warmup = WarmupConfig(steps=steps // 5, min_steps=steps // 5) if self.kind == "onward" else None
            return {"blueprint": BlueprintConfig(hidden=int(self.number) - job["host"]), "warmup": warmup}
        fills = self.kind in ("uniform", "random", "periodic")
        return {
            "layers": LayersConfig(beds=4 if self.kind in ("random", "periodic") else 1, num_seeds=1),
            "blueprint": BlueprintConfig(hidden="budget" if fills else "auto"),
            "budget": BudgetConfig(parameters=size(task.net(job["widest"]))),
        }


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
            chosen = torch.randint(len(x), (self.batch,), generator=draw).to(x.device)
            yield x[chosen], y[chosen]


class Module(L.LightningModule):
    """Adam, a constant rate that falls linearly in the last 30 %.

    Attributes:
        recorder: Told of the training steps' forward passes.
    """

    def __init__(self, task: Task, net: nn.Module, rate: float, steps: int) -> None:
        super().__init__()
        self.net, self.rate, self.steps, self.measure = net, rate, steps, task.measure
        self.recorder = Recorder(net, task, steps)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Split, batch_idx: int) -> Tensor:
        with self.recorder.step():
            return self.measure.loss(self.net(batch[0]), batch[1])

    def validation_step(self, batch: Split, batch_idx: int) -> Tensor:
        out = self.net(batch[0])
        loss = self.measure.loss(out, batch[1])
        self.log("val_loss", loss)
        if self.measure.share:
            self.log(self.measure.share, self.measure.points(out, batch[1]) / 100)
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=self.rate)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min(1.0, (self.steps - step) / (0.3 * self.steps))
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Recorder(L.Callback):
    """What a run costs, and what it has for it, at 20 moments.

    FLOPs are three times those of a training step's forward pass, counted by torch whenever the size has changed.
    Memory is that of parameters, gradients, Adam's two moments, and of what the forward pass keeps for the backward
    one, at the largest moment; dormant parameters count once.

    Attributes:
        curve: Training FLOPs in units of 1e9, seconds, validation and test points, at every other moment.
        best: Validation and test points where the validation points are best.
        jumps: By how much the validation loss rises in ticks that grow or cut the net.
    """

    def __init__(self, net: nn.Module, task: Task, steps: int) -> None:
        self.net, self.task, self.every = net, task, max(1, steps // LOOKS)
        self.curve: list[list[float]] = []
        self.best = [-math.inf, -math.inf]
        self._looks = 0
        self.jumps: dict[str, list[float]] = {"growth": [], "cut": []}
        self.flops = self.memory = self.trained = self.seconds = self.loss = 0.0
        self.live = -1
        self._step_flops = self._began = 0.0

    def live_parameters(self) -> int:
        """Parameters in training beside the host's."""
        return 0

    @contextmanager
    def step(self) -> Iterator[None]:
        """Around the forward pass of a training step."""
        live = self.live_parameters()
        if live != self.live:
            self.live = live
            with self._counted():
                yield
        else:
            yield
        self.flops += self._step_flops
        self.trained += live

    @contextmanager
    def _counted(self) -> Iterator[None]:
        kept: dict[int, int] = {}

        def note(tensor: Tensor) -> Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with ExitStack() as stack:
            counter = stack.enter_context(FlopCounterMode(display=False))
            stack.enter_context(saved_tensors_hooks(note, lambda tensor: tensor))
            yield
        self._step_flops = 3 * counter.get_total_flops()
        parameters = {p.untyped_storage().data_ptr(): p for p in self.net.parameters()}
        copies = [p.untyped_storage().nbytes() * (4 if p.requires_grad else 1) for p in parameters.values()]
        self.memory = max(self.memory, sum(copies) + sum(n for at, n in kept.items() if at not in parameters))

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._began = time.perf_counter()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        if trainer.global_step % self.every == 0:
            self.seconds += time.perf_counter() - self._began
            self.look()
            self._began = time.perf_counter()

    def look(self) -> None:
        """Note validation and test points; their time does not count."""
        out, y = outputs(self.net, self.task.splits[1])
        self.loss = float(self.task.measure.loss(out, y))
        test = self.task.measure.points(*outputs(self.net, self.task.splits[2]))
        points = [round(self.task.measure.points(out, y), 2), round(test, 2)]
        self.best = max(self.best, points, key=lambda found: found[0])
        self._looks += 1
        if self._looks % 2 == 0:
            self.curve.append([*(float(f"{spent:.4g}") for spent in (self.flops / 1e9, self.seconds)), *points])

    def jumped(self, kind: str) -> None:
        """Note by how much the validation loss has risen since the last look."""
        out, y = outputs(self.net, self.task.splits[1])
        self.jumps[kind].append(round(float(self.task.measure.loss(out, y)) - self.loss, 6))


class Timed(MorphoCallback):
    """Counts the seconds in ticks, and has the recorder look again where a tick has changed the net."""

    seconds = 0.0

    def bind(self, recorder: Recorder) -> Timed:
        """Tell the recorder how much is in training."""
        self.recorder = recorder
        recorder.live_parameters = lambda: 0 if self.engine is None else self.engine.live_parameters  # type: ignore[method-assign]
        return self

    def _tick(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert self.engine is not None
        seeds, sized = len(self.engine.records), self.engine.state_dict()["resizings"]
        start = time.perf_counter()
        super()._tick(trainer, pl_module)
        spent = time.perf_counter() - start
        self.seconds += spent
        pause = time.perf_counter()
        if len(self.engine.records) > seeds:
            self.recorder.jumped("growth")
        if self.engine.state_dict()["resizings"] != sized:
            self.recorder.jumped("cut")
        self.recorder._began += time.perf_counter() - pause


@torch.no_grad()
def outputs(net: nn.Module, data: Split) -> tuple[Tensor, Tensor]:
    """What a net says of all samples, in evaluation mode, and the targets."""
    training = net.training
    net.eval()
    out = torch.cat([net(x) for x in data[0].split(4096)])
    net.train(training)
    return out, data[1]


def size(net: nn.Module) -> int:
    """Parameters of a net."""
    return sum(p.numel() for p in net.parameters())


def host_path(job: Job, folder: Path) -> Path:
    """Where the weights of the trained host of a job lie."""
    return folder / f"{job['host_task']}-{job['host']}-{job['host_steps']}-{job['seed']}.pt"


def run(job: Job, task: Task, plan: dict[str, Any], hosts: Path, device: str = "cpu") -> Job:
    """Train one net, and say what came of it.

    Args:
        job: Task, arm, rate, seed; widths of host and widest net; for `onward` what the host has learnt.
        task: Data and nets.
        plan: The plan, for steps and batch.
        hosts: Where weights of trained hosts lie, and are written if the job says `keep`.
        device: ``"cpu"`` or ``"cuda"``.
    """
    arm, seed = Arm.parse(job["arm"]), job["seed"]
    steps = arm.steps or plan["steps"]
    task = task.to(device)
    torch.manual_seed(seed)
    net = task.net(arm.width(job)).to(device)
    host = size(net)
    if arm.kind == "onward":
        net.load_state_dict(torch.load(host_path(job, hosts)))
    module = Module(task, net, job["rate"], steps)
    grows = arm.kind != "static" and arm.number != job["host"]
    morpho = callback(arm, job, task, steps).bind(module.recorder) if grows else None
    fit(module, task, morpho, plan["batch"], steps, seed, device)
    if job.get("keep"):
        hosts.mkdir(parents=True, exist_ok=True)
        torch.save(net.state_dict(), host_path(job, hosts))
    given = {name: value for name, value in job.items() if name != "keep"}
    return given | results(module, task, device, host, steps) | (grown(morpho) if morpho else {})


def callback(arm: Arm, job: Job, task: Task, steps: int) -> Timed:
    """The callback of an arm that grows or shrinks."""
    return Timed(
        tamiyo=arm.policy(job, task.layers),
        every_n_steps=max(1, steps // LOOKS),
        telemetry=TelemetryConfig(every_n_steps=0, events=False, table=False, log=False),
        seed=job["seed"],
        **arm.options(job, task, steps),
    )


def fit(module: Module, task: Task, morpho: Timed | None, batch: int, steps: int, seed: int, device: str) -> None:
    """Train."""
    training, validation, _ = task.splits
    held_out = -(-len(validation[0]) // 8)
    trainer = L.Trainer(
        max_steps=steps,
        accelerator="cpu" if device == "cpu" else "gpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[module.recorder] if morpho is None else [module.recorder, morpho],
        val_check_interval=max(1, steps // LOOKS),
        limit_val_batches=0 if morpho is None else None,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
    )
    trainer.fit(module, Batches(training, batch, steps, seed), Batches(validation, held_out))


def results(module: Module, task: Task, device: str, host: int, steps: int) -> Job:
    """What is recorded of every run."""
    plain = export(module.net).to(device)
    recorder = module.recorder
    points = [task.measure.points(*outputs(plain, data)) for data in task.splits[1:]]
    return {
        "val": round(points[0], 4),
        "test": round(points[1], 4),
        "parameters": size(plain),
        "shapes": [list(p.shape) for p in plain.parameters() if p.ndim > 1],
        "seconds": round(recorder.seconds, 3),
        "trained": round(host + recorder.trained / steps),
        "gflops": float(f"{recorder.flops / 1e9:.6g}"),
        "memory": int(recorder.memory),
        "best": recorder.best,
        "curve": recorder.curve,
    }


def grown(morpho: Timed) -> Job:
    """What is recorded of runs that grow."""
    state = morpho.state_dict()["engine"]
    return {
        "tick_seconds": round(morpho.seconds, 3),
        "germinations": len(state["records"]),
        "culled": sum(record["stage"] == "CULLED" for record in state["records"]),
        "assessments": state["assessments"],
        "resizings": state["resizings"],
        "jumps": morpho.recorder.jumps,
    }
