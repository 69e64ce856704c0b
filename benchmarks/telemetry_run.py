"""What telemetry costs a real run: 4,096 seeds, a quarter live, TensorBoard and CSV loggers, a tick every 64 steps.

One Trainer run; blocks of 64 steps and one tick take turns, in an order drawn anew each round, between no telemetry
(twice) and each level. Figures are microseconds a step, ticks included, on a CPU of processor time: it does not count
what others do on the machine. ``ratio`` is the median over the rounds of a block's time by the mean of the two
without, with an interval of at least 95 % by order statistics; ``off again`` shows what of that is noise.
``inside`` is the share of a block's time that passed inside telemetry's own calls in the same blocks: what others do to
the machine's caches and clock touches both alike, so that it is steady where the ratio is not. It leaves out what
loggers write in threads of their own, which the ratio holds.
"""

from __future__ import annotations

import logging
import math
import random
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
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
        self.order = list(VARIANTS)
        self.draw = random.Random(0)
        self.name = ""
        self.reporters: dict[str, Reporter] = {}
        self.inside = dict.fromkeys(VARIANTS, 0.0)
        self.times: dict[str, list[float]] = {name: [] for name in VARIANTS}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        layers = hybrid_layers(pl_module)
        for layer in layers.values():
            layer.request_germination(range(0, layer.num_seeds, 4))
        for name, config in VARIANTS.items():
            reporter = self.reporters[name] = Reporter(trainer, layers, config, pl_module.device, sample=True)
            self._watch(name, reporter, "collect", "tell", "tell_metrics", "tell_tick")
            self._watch(name, reporter.sampler, "open", "close", "take_gradients")
            for sampler in reporter.sampler.layers.values():
                self._watch(name, sampler, "_look")

    def _watch(self, name: str, owner: Any, *methods: str) -> None:
        """Count the time that passes inside some methods."""
        for method in methods:
            setattr(owner, method, self._timed(name, getattr(owner, method)))

    def _timed(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any) -> Any:
            began = self._clock()
            try:
                return original(*args)
            finally:
                self.inside[name] += self._clock() - began

        return timed

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step % BLOCK == 0:
            self._finish()
            turn = trainer.global_step // BLOCK % len(VARIANTS)
            if turn == 0:
                self.draw.shuffle(self.order)
                if all(len(values) == 1 for values in self.times.values()):  # the first round warmed up
                    self.inside = dict.fromkeys(VARIANTS, 0.0)
            self.name = self.order[turn]
            self.morpho._run._reporter = self.reporters[self.name]
            self.began = self._now()

    def on_train_end(self, trainer: L.Trainer, *_: Any) -> None:
        self._finish()

    def _finish(self) -> None:
        if self.name:
            self.times[self.name].append((self._now() - self.began) / BLOCK)

    def _clock(self) -> float:
        return time.perf_counter() if self.cuda else time.process_time()

    def _now(self) -> float:
        if self.cuda:
            torch.cuda.synchronize()
        return self._clock()


def median_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Interval that holds the median with at least this confidence, whatever the distribution; all if too few.

    Example:
        >>> median_interval([5.0, 1.0, 4.0, 2.0, 3.0, 6.0])
        (1.0, 6.0)
    """
    ordered, count = sorted(values), len(values)
    outside, cut = 0.0, 0
    for below in range(count // 2):  # intervals from the widest: ranks `below` to `count - 1 - below`
        outside += 2 * math.comb(count, below) / 2**count
        if outside > 1 - confidence:
            break
        cut = below
    return ordered[cut], ordered[count - 1 - cut]


def run(bench: Bench) -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    width, batch = (256, 32) if bench.quick else (1024, 128)
    layers = 4
    seeds = width
    bench.rounds = 6 if bench.quick else 20
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
    bare = [(one + other) / 2 for one, other in zip(turns.times["off"][1:], turns.times["off again"][1:], strict=True)]
    for name, values in turns.times.items():
        values = values[1:]
        ratios = [mine / theirs for mine, theirs in zip(values, bare, strict=True)]
        us = 1e6 * statistics.median(values)
        row = {"name": "step with telemetry", "variant": name, "us": us, "ratio": statistics.median(ratios)}
        row["lower"], row["upper"] = median_interval(ratios)
        row["inside"] = turns.inside[name] / (BLOCK * sum(values))
        row["spread"] = 1e6 * (max(values) - min(values)) / us
        bench.add(row | facts)


if __name__ == "__main__":
    main(run)
