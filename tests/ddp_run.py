"""Run by ``test_ddp.py`` as a script: grow under DDP, and leave each rank's weights and moves behind."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader, Subset, TensorDataset

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.random_events import RandomEvents
from hosts import Host, leave_processes, linear_net, make_data, make_trainer, quick
from lightning_morpho import (
    GuardConfig,
    LayersConfig,
    LifecycleConfig,
    Never,
    RampConfig,
    RolloutConfig,
    StarvationConfig,
    TelemetryConfig,
    WarmupConfig,
    hybrid_layers,
)
from lightning_morpho.integrations import reshard_

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "static_graph": {"static_graph": True},
    "accumulation": {"accumulate_grad_batches": 2},
    "random_events": {},
    "rolled_back": {},
    "uneven": {},
    "between": {},
    "between_resumed": {},
    "between_alone": {},
    "scaled": {},
    "fsdp2": {},
    "fsdp2_resumed": {},
    "fsdp2_newborn": {},
    "fsdp2_ramp": {},
    "fsdp2_ramp_resumed": {},
    "full": {},
    "full_idle": {},
    "fsdp2_full": {},
    "starved": {},
    "fsdp2_starved": {},
    "one_process": {},
}


CHECKPOINTS = ("newborn.ckpt", "later.ckpt")
RESUMED = {
    "fsdp2_newborn": CHECKPOINTS[0],
    "fsdp2_resumed": CHECKPOINTS[1],
    "fsdp2_ramp_resumed": CHECKPOINTS[1],
    "between_resumed": CHECKPOINTS[1],
    "between_alone": CHECKPOINTS[1],
}


ALONE = ("one_process", "between_alone")


RANDOM = RandomEvents(germinate=0.7, end=0.5, keep=0.03)


class SGDHost(Host):
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class ShardedHost(SGDHost):
    def configure_model(self) -> None:
        if not isinstance(self.net, FSDPModule):
            fully_shard(self.net, mesh=self.device_mesh["data_parallel"])


class BreaksOnOneRank(L.Callback):
    """Gives the last rank alone an infinite weight while seeds live: all must go back together."""

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if trainer.global_step == 45 and trainer.global_rank == trainer.world_size - 1:
            with torch.no_grad():
                pl_module.get_submodule("net.0").get_parameter("weight").fill_(torch.inf)


class Overflows(L.Callback):
    """Gives one rank alone a bed's gradient that its scaler finds too large, four steps in a row."""

    def on_after_backward(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        beds = hybrid_layers(pl_module)["net.0"].morpho.live_beds()
        if beds and 12 <= trainer.fit_loop.epoch_loop.total_batch_idx < 16 and trainer.global_rank == 0:
            gradient = beds[0].get_parameter("w_out").grad
            assert gradient is not None
            gradient.fill_(torch.inf)


class Kill(L.Callback):
    """Puts all hidden units of a newborn bed out of reach, unless it starts anew."""

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        reshard_(pl_module)
        for bed in hybrid_layers(pl_module)["net.0"].morpho.live_beds().values():
            if bed.steps == 0 and not bed.revivals:
                with torch.no_grad():
                    bed.get_parameter("b_in").fill_(-1e4)


class Weights(L.Callback):
    """Remembers the whole weights after each epoch, and what each chunk's activations were found to be.

    Saves a checkpoint after the first epoch, at whose end seeds may be just born, and after the second."""

    def __init__(self, save: bool) -> None:
        self.save = save
        self.states: list[dict[str, Any]] = []
        self.statistics: list[dict[str, Any]] = []

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        reshard_(pl_module)
        weights = {k: p.detach() for k, p in pl_module.named_parameters()}
        self.states.append({k: p.full_tensor() if isinstance(p, DTensor) else p.clone() for k, p in weights.items()})
        self.statistics.append({n: dict(layer.morpho.health) for n, layer in hybrid_layers(pl_module).items()})
        if self.save and trainer.current_epoch < 2:
            trainer.save_checkpoint(Path(trainer.default_root_dir).parent / CHECKPOINTS[trainer.current_epoch])


class LogsItsOwn(SGDHost):
    """Returns no loss, and logs its own on each rank: an infinite one on the last."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
        last = self.global_rank == self.trainer.world_size - 1
        self.log("val_loss", self.loss(batch) * (torch.inf if last else 1))


def shard(data: TensorDataset, ranks: int) -> Subset:
    """Every rank's part, such that the ranks' batches together are those of one process."""
    return Subset(data, range(int(os.environ.get("LOCAL_RANK", 0)), len(data), ranks))


def some(data: TensorDataset, ranks: int) -> Subset:
    """A single example for the last rank, all for the others."""
    return Subset(data, range(1 if int(os.environ.get("LOCAL_RANK", 0)) == ranks - 1 else len(data)))


def run(variant: str, out: Path) -> None:
    options = dict(VARIANTS[variant])
    single = variant in ALONE
    ranks, batch = (1, 32) if single else (int(os.environ.get("MORPHO_TEST_RANKS", 2)), 16)
    sharded = variant.startswith("fsdp2")
    if sharded:
        strategy: Any = ModelParallelStrategy(data_parallel_size=ranks, tensor_parallel_size=1)
    else:
        strategy = "auto" if single else DDPStrategy(static_graph=options.pop("static_graph", False))
    L.seed_everything(0)
    module = (ShardedHost if sharded else LogsItsOwn if variant == "uneven" else SGDHost)(linear_net())
    callback = quick(layers=LayersConfig(num_seeds=2))
    if variant == "random_events":
        layers, warmup = LayersConfig(num_seeds=3, beds=4), WarmupConfig(steps=2, min_steps=2)
        callback = quick(layers=layers, warmup=warmup, tamiyo=RANDOM, every_n_steps=2)
    if variant == "rolled_back":
        callback = quick(layers=LayersConfig(num_seeds=2), lifecycle=LifecycleConfig(active_ticks=9))
    if "full" in variant:  # ticks at 5 (germinated), 10 (incubation), 20 (grafting), ...
        lifecycle = LifecycleConfig(
            kind="full", incubation="boosting", active_ticks=1, training_ticks=2, alpha_step=0.5, embargo_ticks=1
        )
        idle = {"tamiyo": Never()} if variant == "full_idle" else {}
        callback = quick(layers=LayersConfig(num_seeds=2), lifecycle=lifecycle, every_n_steps=5, **idle)
    if "starved" in variant:
        lifecycle, starvation = LifecycleConfig(active_ticks=9), StarvationConfig(every_n_steps=4)
        callback = quick(layers=LayersConfig(num_seeds=2), lifecycle=lifecycle, starvation=starvation)
    if "ramp" in variant:
        ramp = RampConfig(schedule={0: 1, 1: 100}, guard=GuardConfig(val_loss=None))
        callback = quick(layers=LayersConfig(num_seeds=2), rollout=RolloutConfig(ramp=ramp))
    if variant.startswith("between"):  # the checkpoint is written five steps after a tick, ten before the next
        telemetry = TelemetryConfig(every_n_steps=2, table=False)
        starvation = StarvationConfig(every_n_steps=2, looks=5)
        callback = quick(layers=LayersConfig(num_seeds=2), every_n_steps=15, telemetry=telemetry, starvation=starvation)
    if variant == "scaled":
        options["plugins"] = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**8))
    states = Weights(save=sharded or variant == "between")
    trainer = make_trainer(
        out / variant,
        callback,
        states,
        *([BreaksOnOneRank()] if variant == "rolled_back" else []),
        *([Kill()] if "starved" in variant else []),
        *([Overflows()] if variant == "scaled" else []),
        strategy=strategy,
        devices=ranks,
        max_epochs=7 * ranks if variant == "random_events" else 6,
        use_distributed_sampler=False,
        **options,
    )
    train = shard(make_data(309 if variant == "uneven" else 320, 0), ranks)
    held_out = (some if variant == "uneven" else shard)(make_data(120, 1), ranks)
    ckpt = out / RESUMED[variant] if variant in RESUMED else None
    trainer.fit(module, DataLoader(train, batch_size=batch), DataLoader(held_out, batch_size=batch), ckpt_path=ckpt)
    rank = trainer.global_rank
    torch.save(
        {
            "states": states.states,
            "statistics": states.statistics,
            "callback": callback.state_dict(),
            "losses": module.losses,
            "revivals": {n: layer.morpho.bed_at(0).revivals for n, layer in hybrid_layers(module).items()},
            "germinations": sum(layer.morpho.events for layer in hybrid_layers(module).values()),
        },
        out / f"{variant}-{rank}.pt",
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    for name in sys.argv[2:]:
        if name not in ALONE or int(os.environ.get("LOCAL_RANK", 0)) == 0:
            run(name, folder)
    leave_processes()
