"""Run by ``test_trial.py`` as a script: try places under DDP, and leave what came of it behind."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.utils.data import DataLoader

from ddp_run import SGDHost, shard
from hosts import leave_processes, make_data, make_trainer
from lightning_morpho import MorphoCallback, Observation, TelemetryConfig, Trial, WarmupConfig, hybrid_layers

Losses = list[float]


class Remembering(Trial):
    """Remembers what came of the trials, in a list of its own."""

    def decide(self, observation: Observation) -> Any:
        if observation.trials is not None:
            SEEN.append([tried.cost for tried in observation.trials])
        return super().decide(observation)


SEEN: list[Losses] = []


def net() -> nn.Sequential:
    wide = [nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 4), nn.ReLU(), nn.Linear(4, 12), nn.ReLU(), nn.Linear(12, 3)]
    return nn.Sequential(*wide)


def run(out: Path, ranks: int, *, shared: bool = False) -> tuple[SGDHost, list[Losses], int]:
    """A run of a few epochs; one process sees the batches of two ranks together."""
    SEEN.clear()
    L.seed_everything(0)
    module = SGDHost(net())
    callback = MorphoCallback(
        tamiyo=Remembering(at=0.0, share=0.25, shared=shared),
        warmup=WarmupConfig(steps=5, min_steps=5),
        telemetry=TelemetryConfig(table=False),
    )
    strategy: Any = DDPStrategy() if ranks > 1 else "auto"
    trainer = make_trainer(out, callback, strategy=strategy, devices=ranks, max_epochs=3, use_distributed_sampler=False)
    data = [make_data(count, seed) for count, seed in ((320, 0), (128, 1))]
    parts = [shard(part, ranks) for part in data] if ranks > 1 else data
    train, held_out = (DataLoader(part, batch_size=size // ranks) for part, size in zip(parts, (32, 32), strict=True))
    trainer.fit(module, train, held_out)
    return module, [*SEEN], trainer.global_rank


def main(out: Path) -> None:
    _, shared, _ = run(out / "shared", 2, shared=True)
    module, trials, rank = run(out / "two", 2)
    weights = {name: p.detach() for name, p in module.named_parameters()}
    grown = [name for name, layer in hybrid_layers(module).items() if not layer.morpho.dormant]
    result = {"weights": weights, "trials": trials[0], "shared": shared[0], "germinated": grown}
    torch.save(result, out / f"rank{rank}.pt")


def alone(out: Path) -> None:
    """The same in one process, first of all: the ranks' processes are started later."""
    _, trials, _ = run(out / "one", 1)
    _, shared, _ = run(out / "one_shared", 1, shared=True)
    torch.save([trials[0], shared[0]], out / "alone.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    alone(folder) if sys.argv[2:] == ["alone"] else main(folder)
    leave_processes()
