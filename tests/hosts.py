"""Small Lightning hosts and data for the tests of the callback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

from lightning_morpho import MorphoCallback
from lightning_morpho.telemetry import EVENTS_FILE, read_events


def linear_net(hidden: int = 6) -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, hidden), nn.ReLU(), nn.Linear(hidden, 3))


def conv_net() -> nn.Sequential:
    return nn.Sequential(
        nn.Unflatten(1, (2, 4)),
        nn.Conv1d(2, 4, 3, padding=1),
        nn.BatchNorm1d(4),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Conv1d(4, 3, 4),
        nn.Flatten(),
    )


class Host(L.LightningModule):
    """A classifier whose validation step does what users' steps do: log, update metrics, fill a list."""

    def __init__(self, net: nn.Module, lr: float = 1e-2) -> None:
        super().__init__()
        self.net = net
        self.lr = lr
        self.accuracy = MulticlassAccuracy(3)
        self.validation_losses: list[Tensor] = []
        self.losses: list[float] = []

    def loss(self, batch: Any) -> Tensor:
        x, y = batch
        return nn.functional.cross_entropy(self.net(x), y)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self.losses.append(loss.item())
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self.accuracy.update(self.net(batch[0]), batch[1])
        self.validation_losses.append(loss)
        self.log("val_loss", loss)
        self.log("val_acc", self.accuracy)
        return loss

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test_loss", self.loss(batch))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.lr)


def make_data(count: int, seed: int) -> TensorDataset:
    """A teacher that a six-unit host can't copy: growth has something to gain."""
    g = torch.Generator().manual_seed(seed)
    teacher = torch.Generator().manual_seed(99)
    w1, w2 = torch.randn(8, 32, generator=teacher), torch.randn(32, 3, generator=teacher)
    x = torch.randn(count, 8, generator=g)
    return TensorDataset(x, (torch.relu(x @ w1) @ w2).argmax(1))


def loaders(shuffle: bool = False) -> dict[str, DataLoader]:
    generator = torch.Generator().manual_seed(5)
    return {
        "train_dataloaders": DataLoader(make_data(320, 0), batch_size=32, shuffle=shuffle, generator=generator),
        "val_dataloaders": DataLoader(make_data(128, 1), batch_size=16),
    }


def make_trainer(root: Any, *callbacks: L.Callback, **options: Any) -> L.Trainer:
    defaults: dict[str, Any] = {
        "max_epochs": 5,
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "default_root_dir": root,
    }
    return L.Trainer(callbacks=list(callbacks), **(defaults | options))


def events(root: Any) -> list[dict[str, Any]]:
    """Transitions in the event log of a run without a logger."""
    return [entry for entry in read_events(root / EVENTS_FILE) if entry["event"] == "transition"]


def moves(root: Any) -> list[tuple[int, str, str, str]]:
    return [(e["tick"], e["layer"], e["from"], e["to"]) for e in events(root)]


class Record(L.Callback):
    """What a run went through, to compare two of them."""

    def __init__(self) -> None:
        self.trace: list[Any] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        self.trace.append(torch.get_rng_state().clone())


def optimizer_state(trainer: L.Trainer, module: L.LightningModule) -> dict[str, dict[str, Any]]:
    """State of the first optimizer by parameter name."""
    state = trainer.optimizers[0].state
    return {name: state[p] for name, p in module.named_parameters() if p in state}


def assert_equal(a: Any, b: Any, where: str = "") -> None:
    """Bit-equality of nested values; of tensors, shape, dtype and every element."""
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_equal(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_equal(x, y, f"{where}[{i}]")
    elif isinstance(a, Tensor):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True, msg=where)
    else:
        assert a == b, where


def quick(**options: Any) -> MorphoCallback:
    """A callback that germinates at the first tick and judges two ticks later."""
    from lightning_morpho import BlueprintConfig, LifecycleConfig, TelemetryConfig, Uniform, WarmupConfig

    defaults: dict[str, Any] = {
        "blueprint": BlueprintConfig(kind="neurons"),
        "tamiyo": Uniform(at=0.0),
        "lifecycle": LifecycleConfig(active_ticks=1, embargo_ticks=1, alpha_step=0.5),
        "warmup": WarmupConfig(steps=5, min_steps=5),
        "telemetry": TelemetryConfig(table=False),
    }
    return MorphoCallback(**(defaults | options))


def run_script(script: Path, *arguments: str, folder: Path | None = None, **environment: str) -> str:
    """What a Python script prints, in a process of its own that sees the modules that this one does.

    It may take as long as a test may: on a busy machine another limit would end what is right.
    """
    done = subprocess.run(
        [sys.executable, str(script), *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    return done.stdout


def leave_processes() -> None:
    """End a process whose results are saved, once all ranks are here.

    A plain torch script (a small net under DistributedDataParallel over gloo, nothing of ours) on a busy machine aborts
    at its exit in one of ten to twenty processes, "terminate called without an active exception", after
    `destroy_process_group` as well. A thread of gloo still holds the last collective, whose saved thread-local state
    holds a Python object: letting go of it takes the interpreter's lock, and where that is ending Python ends the
    thread, inside of a destructor. Results are written by then; only the exit status is lost.
    """
    if dist.is_initialized():
        dist.barrier()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
