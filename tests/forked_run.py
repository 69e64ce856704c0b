"""Run by ``test_ddp.py`` as a script: the Trainer starts the processes itself, and the grown model comes back."""

from __future__ import annotations

import sys
from pathlib import Path

import lightning as L
import torch

from hosts import Host, linear_net, loaders, make_data, make_trainer, quick
from lightning_morpho import hybrid_layers, morph_


class LeaveOutput(L.Callback):
    """Leaves what the trained model gives, from within its process."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_fit_end(self, trainer: L.Trainer, pl_module: Host) -> None:
        if trainer.is_global_zero:
            torch.save(output(pl_module), self.path)


def output(module: Host) -> torch.Tensor:
    with torch.no_grad():
        return module.eval().net(make_data(32, seed=5).tensors[0])


def main(out: Path) -> None:
    L.seed_everything(0)
    module, morpho = Host(linear_net()), quick()
    morph_(module, morpho.config)
    trainer = make_trainer(out, morpho, LeaveOutput(out / "there.pt"), max_epochs=8, strategy="ddp_fork", devices=2)
    trainer.fit(module, **loaders())
    kept = sum(layer.get_layer_stats()["kept_seeds"] for layer in hybrid_layers(module).values())
    there = torch.load(out / "there.pt")
    torch.save({"here": output(module), "there": there, "kept": kept}, out / "forked.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
