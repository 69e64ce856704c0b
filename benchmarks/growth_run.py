"""One run of the growth experiments: one net, one arm, through a Lightning Trainer, with all that is recorded of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler

from growth_arms import Arm, Job, size
from growth_recorder import LOOKS, Recorder, outputs
from growth_results import Run
from growth_tasks import Split, Task
from lightning_morpho import MorphoCallback, TelemetryConfig, Trial, export

ASKS = 50  # validations and decision ticks of the policy that asks whether to grow; all others have LOOKS


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


class Samples(Dataset[Split]):
    """Samples that a DataLoader reads by the batch."""

    def __init__(self, data: Split) -> None:
        self.data = data

    def __getitem__(self, chosen: Any) -> Split:
        return self.data[0][chosen], self.data[1][chosen]

    __getitems__ = __getitem__


class Draws(Sampler[list[int]]):
    """The choices of ``Batches``, for policies that must read the training data a second time."""

    def __init__(self, batches: Batches) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Any]:
        numbers = torch.arange(len(self.batches.data[0]))
        chosen = Batches((numbers, numbers), self.batches.batch, self.batches.steps, self.batches.seed)
        yield from (indices for indices, _ in chosen)

    def __len__(self) -> int:
        return len(self.batches)


def rereadable(batches: Batches) -> DataLoader[Split]:
    """The same batches from a DataLoader."""
    return DataLoader(Samples(batches.data), batch_sampler=Draws(batches), collate_fn=lambda batch: batch)


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


class Timed(MorphoCallback):
    """Counts the seconds in ticks, and by how much the validation loss rises in those that change the net."""

    seconds = 0.0

    def bind(self, recorder: Recorder) -> Timed:
        """Tell the recorder how much is in training."""
        self.recorder = recorder
        recorder.live_parameters = lambda: 0 if self.engine is None else self.engine.live_parameters  # type: ignore[method-assign]
        return self

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        assert self.engine is not None
        if trainer.global_step % self.run_config.every_n_steps:  # type: ignore[operator]
            super().on_train_batch_end(trainer, pl_module, *args)
            return
        clock, before = self.recorder.clock, self.changes()
        begin, loss, start = clock(), self.recorder.validation_loss(), clock()
        super().on_train_batch_end(trainer, pl_module, *args)
        end = clock()
        self.seconds += end - start
        for kind, change in self.changes().items():
            if change != before[kind]:
                self.recorder.jumps[kind].append(round(self.recorder.validation_loss() - loss, 6))
        self.recorder.pause(clock() - end + start - begin)

    def changes(self) -> dict[str, Any]:
        """What a tick may change of the net: seeds, and sizes."""
        assert self.engine is not None
        return {"growth": len(self.engine.records), "cut": self.engine.state_dict()["resizings"]}


def host_path(job: Job, folder: Path) -> Path:
    """Where the weights of the trained host of a job lie."""
    return folder / f"{job['host_task']}-{job['host']}-{job['host_steps']}-{job['seed']}.pt"


def run(job: Job, task: Task, plan: dict[str, Any], hosts: Path, device: str = "cpu") -> Run:
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
    grows = arm.kind != "static" and (arm.kind, arm.number) != ("onward", job["host"])
    morpho = callback(arm, job, task, steps).bind(module.recorder) if grows else None
    fit(module, task, morpho, plan["batch"], steps, seed, device)
    if job.get("keep"):
        hosts.mkdir(parents=True, exist_ok=True)
        part = host_path(job, hosts).with_suffix(".part")
        torch.save(net.state_dict(), part)
        part.replace(host_path(job, hosts))
    given = {name: job[name] for name in ("task", "arm", "rate", "seed", "host", "rule") if name in job}
    plain = export(module.net).to(device)
    return given | results(module, plain, task, host, steps) | (grown(morpho, plain) if morpho else {})


def callback(arm: Arm, job: Job, task: Task, steps: int) -> Timed:
    """The callback of an arm that grows or shrinks."""
    return Timed(
        tamiyo=arm.policy(job, task.layers),
        every_n_steps=max(1, steps // (ASKS if arm.kind == "auto" else LOOKS)),
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
        val_check_interval=max(1, steps // LOOKS) if morpho is None else morpho.run_config.every_n_steps,
        limit_val_batches=0 if morpho is None else None,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
    )
    batches = Batches(training, batch, steps, seed)
    tried = morpho is not None and isinstance(morpho.tamiyo, Trial)
    trainer.fit(module, rereadable(batches) if tried else batches, Batches(validation, held_out))


def results(module: Module, plain: nn.Module, task: Task, host: int, steps: int) -> Run:
    """What is recorded of every run."""
    recorder = module.recorder
    points = [task.measure.points(*outputs(plain, data)) for data in task.splits[1:]]
    return {
        "val": round(points[0], 4),
        "test": round(points[1], 4),
        "parameters": size(plain),
        "seconds": round(recorder.seconds, 3),
        "trained": round(host + recorder.trained / steps),
        "gflops": float(f"{recorder.flops / 1e9:.6g}"),
        "memory": int(recorder.memory),
        "best": recorder.best,
        "curve": recorder.curve,
    }


def grown(morpho: Timed, plain: nn.Module) -> Run:
    """What is recorded of runs that grow."""
    state = morpho.state_dict()["engine"]
    return {
        "tick_seconds": round(morpho.seconds, 3),
        "germinations": len(state["records"]),
        "culled": sum(record["stage"] == "CULLED" for record in state["records"]),
        "jumps": morpho.recorder.jumps,
        "widths": [len(p) for p in plain.parameters() if p.ndim > 1][:-1],
    }
