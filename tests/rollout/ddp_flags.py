"""Run by ``test_ddp_flags.py`` as a script: a flag file that only rank 0 can see, read by a DDP run."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch.utils.data import DataLoader, Subset

sys.path.insert(0, str(Path(__file__).parents[1]))

from hosts import Host, leave_processes, linear_net, make_data, make_trainer, quick  # noqa: E402
from lightning_morpho import GuardConfig, LifecycleConfig, RampConfig, RolloutConfig, hybrid_layers  # noqa: E402

ERRORS_ONLY = RampConfig(schedule={0: 100}, guard=GuardConfig(val_loss=None))


class AdamWHost(Host):
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-2, weight_decay=0.1)


class Watch(L.Callback):
    """Rank 0 writes the flags; every rank remembers each step; late, a seed of rank 1 alone has an error."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.implementations = "none"
        self.steps: list[tuple[str, dict[str, torch.Tensor]]] = []

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: object, idx: int) -> None:
        names = {layer.implementation for layer in hybrid_layers(pl_module).values()}
        self.steps.append(("/".join(names), {n: p.detach().clone() for n, p in pl_module.named_parameters()}))
        script = {13: "enabled: false", 22: "enabled: true"}
        if trainer.is_global_zero and trainer.global_step in script:
            self.path.write_text(script[trainer.global_step])
        if trainer.global_step == 32 and not trainer.is_global_zero:
            next(iter(hybrid_layers(pl_module).values())).morpho.state.update(0, errors=1)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.implementations = "/".join({layer.implementation for layer in hybrid_layers(pl_module).values()})


def main(out: Path) -> None:
    rank = int(os.environ.get("LOCAL_RANK", 0))
    L.seed_everything(0)
    # Ranks on other machines may see neither the file nor the variables of rank 0.
    path = out / f"flags-{rank}.yaml"
    if rank:
        os.environ["MORPHO_FEATURE_CHUNKED_LAYERS"] = "off"
        path.write_text("enabled: false")
    watch = Watch(path)
    callback = quick(
        rollout=RolloutConfig(flag_file=str(path), flag_every_n_steps=3, ramp=ERRORS_ONLY),
        lifecycle=LifecycleConfig(active_ticks=50, timeout_ticks=90),
    )
    trainer = make_trainer(out, callback, watch, strategy=DDPStrategy(), devices=2, max_epochs=7)
    train = Subset(make_data(320, 0), range(rank, 320, 2))
    trainer.fit(AdamWHost(linear_net()), DataLoader(train, batch_size=16), DataLoader(make_data(64, 1), batch_size=16))
    torch.save(watch.steps, out / f"steps-{rank}.pt")
    (out / f"end-{rank}.txt").write_text(watch.implementations)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
    leave_processes()
