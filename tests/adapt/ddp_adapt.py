"""Run by ``test_ddp_adapt.py`` as a script: a frozen host adapted on two ranks."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch.utils.data import DataLoader

sys.path.insert(0, str(Path(__file__).parents[1]))

from hosts import Host, leave_processes, linear_net, make_data, make_trainer  # noqa: E402
from lightning_morpho import MorphoCallback, WarmupConfig  # noqa: E402


class Picky(Host):
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=1e-2)


def main(out: Path) -> None:
    rank = int(os.environ.get("LOCAL_RANK", 0))
    L.seed_everything(0)
    module = Picky(linear_net())
    before = {n: p.detach().clone() for n, p in module.named_parameters()}
    callback = MorphoCallback(preset="adapt_pretrained", warmup=WarmupConfig(steps=2, min_steps=2))
    trainer = make_trainer(
        out, callback, strategy=DDPStrategy(), devices=2, max_epochs=4, logger=False, num_sanity_val_steps=1
    )
    trainer.fit(module, DataLoader(make_data(320, 0), batch_size=16), DataLoader(make_data(64, 1), batch_size=16))
    torch.save((before, dict(module.state_dict())), out / f"rank-{rank}.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
    leave_processes()
