"""Run by ``test_runs.py`` as a script: grow linked spans in two processes, and leave each rank's weights behind."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch import nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader

sys.path.insert(0, str(Path(__file__).parent.parent))
from hosts import Host, leave_processes, make_data, make_trainer, quick  # noqa: E402
from lightning_morpho import BlueprintConfig, LayersConfig, LifecycleConfig, Scripted, hybrid_layers  # noqa: E402

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "static_graph": {"static_graph": True},
    "accumulation": {"accumulate_grad_batches": 2},
    "fsdp2": {},
}


def chain() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3))


def callback(**options: Any) -> L.Callback:
    """The two pairs of a chain germinate at different steps, the later one first; then their successors."""
    script = [{"tick": 1, "layer": "net.4"}, {"tick": 2, "layer": "net.2"}]
    defaults = {
        "blueprint": BlueprintConfig(hidden=6),
        "layers": LayersConfig(beds=2),
        "lifecycle": LifecycleConfig(active_ticks=90),
        "tamiyo": Scripted(events=script),
    }
    return quick(**(defaults | options))


class ShardedHost(Host):
    def configure_model(self) -> None:
        if not isinstance(self.net, FSDPModule):
            fully_shard(self.net, mesh=self.device_mesh["data_parallel"])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def full(value: torch.Tensor) -> torch.Tensor:
    return (value.full_tensor() if isinstance(value, DTensor) else value).detach().clone()


def main(out: Path, variant: str) -> None:
    L.seed_everything(0)
    options = dict(VARIANTS[variant])
    sharded = variant == "fsdp2"
    strategy: Any = (
        ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1, process_group_backend="gloo")
        if sharded
        else DDPStrategy(process_group_backend="gloo", static_graph=options.pop("static_graph", False))
    )
    module = (ShardedHost if sharded else Host)(chain())
    trainer = make_trainer(out, callback(), strategy=strategy, devices=2, max_epochs=4, **options)
    data = {"train_dataloaders": DataLoader(make_data(320, 0), batch_size=16)}
    trainer.fit(module, **data, val_dataloaders=DataLoader(make_data(64, 1), batch_size=16))
    state = {name: full(value) for name, value in module.named_parameters()}
    events = {name: layer.morpho.events for name, layer in hybrid_layers(module).items()}
    torch.save({"state": state, "events": events}, out / f"{variant}-{trainer.global_rank}.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    main(Path(sys.argv[1]), sys.argv[2])
    leave_processes()
