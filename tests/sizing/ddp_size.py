"""Run by ``test_ddp_size.py`` as a script: size a net under DDP, and leave each rank's weights behind."""

from __future__ import annotations

import sys
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch.utils.data import DataLoader

from ddp_run import shard
from hosts import Host, leave_processes, linear_net, make_data, make_trainer
from lightning_morpho import AutoSize, BudgetConfig, LifecycleConfig, MorphoCallback, WarmupConfig, export


def main(out: Path) -> None:
    L.seed_everything(0)
    module = Host(linear_net(3), lr=0.02)
    morpho = MorphoCallback(
        tamiyo=AutoSize(sizing="both", tolerance=2.0),
        budget=BudgetConfig(parameters=400),
        warmup=WarmupConfig(steps=5, min_steps=5),
        lifecycle=LifecycleConfig(active_ticks=1),
    )
    trainer = make_trainer(out, morpho, strategy=DDPStrategy(), devices=2, max_epochs=12, use_distributed_sampler=False)
    train, held_out = (DataLoader(shard(make_data(count, i), 2), batch_size=16) for i, count in enumerate((320, 120)))
    trainer.fit(module, train, held_out)
    weights = {name: p.detach() for name, p in module.named_parameters()}
    shapes = [list(p.shape) for p in export(module).parameters()]
    torch.save({"weights": weights, "shapes": shapes}, out / f"rank{trainer.global_rank}.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
    leave_processes()
