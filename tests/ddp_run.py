"""Run by ``test_ddp.py`` as a script: grow under DDP, and leave each rank's weights and moves behind."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hosts import Host, linear_net, make_data, make_trainer, quick
from lightning.pytorch.strategies import DDPStrategy
from torch.utils.data import DataLoader, Subset, TensorDataset

from lightning_morpho import LayersConfig

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "static_graph": {"static_graph": True},
    "accumulation": {"accumulate_grad_batches": 2},
    "one_process": {},
}


class SGDHost(Host):
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class RankLosses(L.Callback):
    """Remembers the weights after each tick."""

    def __init__(self) -> None:
        self.states: list[dict[str, Any]] = []

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.states.append({k: v.clone() for k, v in pl_module.state_dict().items() if isinstance(v, torch.Tensor)})


def shard(data: TensorDataset, ranks: int) -> Subset:
    """Every rank's part, such that the ranks' batches together are those of one process."""
    return Subset(data, range(int(os.environ.get("LOCAL_RANK", 0)), len(data), ranks))


def run(variant: str, out: Path) -> None:
    options = dict(VARIANTS[variant])
    single = variant == "one_process"
    strategy: Any = "auto" if single else DDPStrategy(static_graph=options.pop("static_graph", False))
    L.seed_everything(0)
    module = SGDHost(linear_net())
    states = RankLosses()
    trainer = make_trainer(
        out / variant,
        quick(layers=LayersConfig(num_seeds=2)),
        states,
        strategy=strategy,
        devices=1 if single else 2,
        max_epochs=6,
        use_distributed_sampler=False,
        **options,
    )
    ranks, batch = (1, 32) if single else (2, 16)
    train, held_out = (shard(make_data(count, seed), ranks) for count, seed in ((320, 0), (120, 1)))
    trainer.fit(module, DataLoader(train, batch_size=batch), DataLoader(held_out, batch_size=batch))
    rank = trainer.global_rank
    torch.save(
        {"states": states.states, "callback": trainer.callbacks[0].state_dict(), "losses": module.losses},
        out / f"{variant}-{rank}.pt",
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    for name in sys.argv[2:]:
        if name != "one_process" or int(os.environ.get("LOCAL_RANK", 0)) == 0:
            run(name, folder)
