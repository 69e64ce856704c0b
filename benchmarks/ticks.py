"""What decision ticks cost: their share of the time of whole runs at default settings, trials apart.

.. code-block:: bash

    python -m benchmarks.ticks --device cpu --json ticks.json

Each run is a fit under a Trainer with its default logger, events written, one tick an epoch; random seeds differ, the
shares are means with 95 % intervals over the runs (Student's t). On a CPU seconds are processor time, which does not
count what others do on the machine. A tick is all that passes in it, from the statistics to the loggers; its parts:
``statistics`` of the samples, ``credit`` and ``sizing`` on held-out data, ``telling`` (event log, loggers, field
reports), and what is left, ``deciding`` and carrying out. What the samples take between ticks is in
``benchmarks.telemetry_run``.
"""

from __future__ import annotations

import contextlib
import logging
import math
import statistics
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import lightning as L
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.harness import Bench, main
from lightning_morpho import AutoSize, MorphoCallback, Tamiyo, TelemetryConfig, Uniform
from lightning_morpho.evidence import student_t_quantile
from lightning_morpho.integrations.journal import Journal
from lightning_morpho.integrations.reporting import Reporter
from lightning_morpho.integrations.run import GrowthRun
from lightning_morpho.integrations.sizing import HeldOutSizer
from lightning_morpho.integrations.validation import HeldOutCredit

EPOCHS = 20
PARTS: dict[str, tuple[tuple[type, str], ...]] = {
    "statistics": ((Reporter, "collect"),),
    "credit": ((HeldOutCredit, "__call__"),),
    "sizing": ((HeldOutSizer, "assess"), (HeldOutSizer, "resize")),
    "telling": ((Reporter, "tell"), (Reporter, "tell_tick"), (Journal, "tell"), (Journal, "_decided")),
}


class Classifier(L.LightningModule):
    """A net that learns what a wider one of fixed weights says."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> Tensor:
        logits = self.net(batch[0])
        loss = F.cross_entropy(logits, batch[1])
        self.log("val_loss", loss)
        self.log("val_acc", (logits.argmax(1) == batch[1]).float().mean())
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def dense(*widths: int) -> nn.Sequential:
    """Linear layers with ReLU between them."""
    parts = [p for i, o in zip(widths, widths[1:], strict=False) for p in (nn.Linear(i, o), nn.ReLU())]
    return nn.Sequential(*parts[:-1])


def convolutions(channels: int) -> nn.Sequential:
    """Three 1-D convolutions and a linear layer."""
    return nn.Sequential(
        *(nn.Unflatten(1, (1, 40)), nn.Conv1d(1, channels, 5, stride=2, padding=1), nn.ReLU()),
        *(nn.Conv1d(channels, channels, 3, stride=2, padding=1), nn.ReLU()),
        *(nn.Conv1d(channels, channels, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(5 * channels, 10)),
    )


NETS: dict[str, Callable[[], nn.Module]] = {
    "one hidden layer of 16": lambda: dense(40, 16, 10),
    "six layers of 20": lambda: dense(40, *[20] * 5, 10),
    "three convolutions of 4": lambda: convolutions(4),
    "three layers of 512": lambda: dense(40, 512, 512, 512, 10),
}
POLICIES: dict[str, Callable[[], Tamiyo]] = {"default": Uniform, "AutoSize": AutoSize}


def data(count: int, seed: int) -> TensorDataset:
    """Points, and the classes that a random net of two wide hidden layers gives them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        teacher = dense(40, 64, 64, 10)
        torch.manual_seed(seed)
        x = torch.randn(count, 40)
        with torch.no_grad():
            scores = teacher(x)
            return TensorDataset(x, (scores - scores.mean(0)).argmax(1))


class Clock(L.Callback):
    """Seconds in each part of the ticks, and in the whole fit. Stands before the callback that it watches."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = defaultdict(float)
        self.ticks: list[float] = []

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
            return time.perf_counter()
        return time.process_time()

    def on_train_start(self, *_: Any) -> None:
        self.began = self.now()

    def on_train_end(self, *_: Any) -> None:
        self.seconds["fit"] = self.now() - self.began

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Count the seconds of ticks and their parts."""
        with contextlib.ExitStack() as stack:
            for part, methods in {"tick": ((GrowthRun, "tick"),), **PARTS}.items():
                for owner, name in methods:
                    timed = self.timed(part, getattr(owner, name))
                    stack.enter_context(mock.patch.object(owner, name, timed))
            yield

    def timed(self, part: str, method: Callable[..., Any]) -> Callable[..., Any]:
        """A method whose time counts for a part."""

        def wrapper(*arguments: Any, **named: Any) -> Any:
            began = self.now()
            try:
                return method(*arguments, **named)
            finally:
                took = self.now() - began
                self.seconds[part] += took
                if part == "tick":
                    self.ticks.append(took)

        return wrapper


def fit(net: str, policy: str, seed: int, bench: Bench) -> Clock:
    """One run; what its ticks took."""
    clock = Clock(bench.device)
    torch.manual_seed(seed)
    module = Classifier(NETS[net]())
    morpho = MorphoCallback(tamiyo=POLICIES[policy](), seed=seed, telemetry=TelemetryConfig(table=False))
    loaders = DataLoader(data(8192, seed), 64, shuffle=True), DataLoader(data(2048, 10_000), 128)
    with tempfile.TemporaryDirectory() as folder, clock.watching():
        trainer = L.Trainer(
            default_root_dir=folder,
            max_epochs=8 if bench.quick else EPOCHS,
            accelerator="gpu" if bench.device.type == "cuda" else "cpu",
            devices=1,
            callbacks=[clock, morpho],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
        trainer.fit(module, *loaders)
    return clock


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and half the width of its 95 % interval.

    Example:
        >>> mean_interval([1.0, 1.0, 1.0])
        (1.0, 0.0)
    """
    margin = student_t_quantile(0.975, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return statistics.fmean(values), margin


def run(bench: Bench) -> None:
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    fit(next(iter(NETS)), "AutoSize", 0, bench)  # what is imported or compiled once
    for net in NETS:
        for policy in POLICIES:
            clocks = [fit(net, policy, seed, bench) for seed in range(3 if bench.quick else 8)]
            share, margin = mean_interval([100 * c.seconds["tick"] / c.seconds["fit"] for c in clocks])
            ticks = [tick for clock in clocks for tick in clock.ticks]
            row: dict[str, Any] = {"name": net, "variant": policy, "us": 1e6 * statistics.median(ticks)}
            row |= {"percent": share, "lower": share - margin, "upper": share + margin}
            for part in PARTS:
                row[part] = statistics.fmean(100 * c.seconds[part] / c.seconds["fit"] for c in clocks)
            row["deciding"] = share - sum(row[part] for part in PARTS)
            row["worst_ms"] = 1e3 * max(ticks)
            row["fit_s"] = statistics.fmean(c.seconds["fit"] for c in clocks)
            row["spread"] = (max(ticks) - min(ticks)) / statistics.median(ticks)
            bench.add(row)


if __name__ == "__main__":
    main(run)
