"""What telemetry costs a real run: 4,096 seeds, a quarter live, TensorBoard and CSV loggers, a tick every 64 steps.

One Trainer run; blocks of 64 steps and one tick take turns between no telemetry (twice) and each level. Figures are
microseconds a step, ticks included, on a CPU of processor time: it does not count what others do on the machine. A
ratio is the median of the rounds' own ratios to the block without.
"""

from __future__ import annotations

import logging
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.harness import Bench, main
from lightning_morpho import BlueprintConfig, LayersConfig, LifecycleConfig, MorphoCallback, Never, TelemetryConfig
from lightning_morpho.integrations import Reporter
from lightning_morpho.surgery import hybrid_layers

BLOCK = 64
OFF = TelemetryConfig(every_n_steps=0, log=False, events=False, table=False)
VARIANTS = {"off": OFF, "off again": OFF} | {
    level: TelemetryConfig(level=level, table=False) for level in ("minimal", "standard", "full")
}


class Net(L.LightningModule):
    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        parts = [part for _ in range(layers) for part in (nn.Linear(width, width), nn.ReLU())]
        self.net = nn.Sequential(*parts, nn.Linear(width, 10))

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-3)


class Turns(L.Callback):
    """Gives each block of steps its telemetry, and times it. Stands before the callback that it steers."""

    def __init__(self, morpho: MorphoCallback, cuda: bool) -> None:
        self.morpho = morpho
        self.cuda = cuda
        self.reporters: dict[str, Reporter] = {}
        self.times: dict[str, list[float]] = {name: [] for name in VARIANTS}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        layers = hybrid_layers(pl_module)
        for layer in layers.values():
            layer.request_germination(range(0, layer.num_seeds, 4))
        for name, config in VARIANTS.items():
            self.reporters[name] = Reporter(trainer, layers, config, pl_module.device, sample=True)

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step % BLOCK == 0:
            self._finish()
            self.name = list(VARIANTS)[trainer.global_step // BLOCK % len(VARIANTS)]
            self.morpho._reporter = self.reporters[self.name]
            self.began = self._now()

    def on_train_end(self, trainer: L.Trainer, *_: Any) -> None:
        self._finish()

    def _finish(self) -> None:
        if self.reporters and hasattr(self, "began"):
            self.times[self.name].append((self._now() - self.began) / BLOCK)

    def _now(self) -> float:
        if not self.cuda:
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()


def run(bench: Bench) -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    width, batch = (256, 32) if bench.quick else (1024, 128)
    layers = 4
    seeds = width
    rounds = bench.rounds + 1  # the first one warms up
    steps = BLOCK * len(VARIANTS) * rounds
    morpho = MorphoCallback(
        layers=LayersConfig(num_seeds=seeds, exclude=[f"net.{2 * layers}"]),
        blueprint=BlueprintConfig(kind="mlp"),
        lifecycle=LifecycleConfig(active_ticks=10_000, timeout_ticks=100_000),
        tamiyo=Never(),
        telemetry=OFF,
        every_n_steps=BLOCK,
    )
    turns = Turns(morpho, bench.device.type == "cuda")
    data = TensorDataset(torch.randn(batch * 8, width), torch.randint(10, (batch * 8,)))
    with tempfile.TemporaryDirectory() as folder:
        loggers = [CSVLogger(folder), TensorBoardLogger(folder)]
        trainer = L.Trainer(
            max_steps=steps,
            accelerator="gpu" if bench.device.type == "cuda" else "cpu",
            devices=1,
            logger=loggers,
            callbacks=[turns, morpho],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            log_every_n_steps=BLOCK,
        )
        trainer.fit(Net(width, layers), DataLoader(data, batch_size=batch))
        written = Path(loggers[0].log_dir, "metrics.csv").read_text().splitlines()[0].split(",")
    facts = {"seeds": layers * seeds, "live": layers * seeds // 4, "D": width, "M": batch, "tick_every": BLOCK}
    facts["series_at_full"] = sum(name.startswith("morpho/") for name in written)
    bare = turns.times["off"][1:]
    for name, values in turns.times.items():
        values = values[1:]
        ratios = sorted(mine / theirs for mine, theirs in zip(values, bare, strict=True))
        us = 1e6 * statistics.median(values)
        row = {"name": "step with telemetry", "variant": name, "us": us, "ratio": statistics.median(ratios)}
        row |= {"spread": 1e6 * (max(values) - min(values)) / us, "lowest": ratios[0], "highest": ratios[-1]}
        bench.add(row | facts)


if __name__ == "__main__":
    main(run)
