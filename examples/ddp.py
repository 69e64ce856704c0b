"""Two processes, one model: growth under DDP, on the CPU (``--accelerator gpu`` where there are two).

pip install "lightning-morpho[mnist1d]"
python examples/ddp.py

Printed, among other lines, in half a minute on two cores:

distributed_backend=gloo
All distributed processes registered. Starting with 2 processes
morpho: step 240: net.2: 1 seed DORMANT -> LOADING (one round at 15% of training)
2 ranks, 3 germinations, weights equal on all of them: True
"""

import argparse

import lightning as L
import torch

from lightning_morpho import MorphoCallback, hybrid_layers
from lightning_morpho.tasks import MNIST1D, ConvClassifier


class Compare(L.Callback):
    """All ranks hold the same weights in the end, grown ones included."""

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        own = torch.cat([p.detach().flatten() for p in pl_module.parameters()])
        of_all = trainer.strategy.all_gather(own)
        grown = sum(layer.morpho.events for layer in hybrid_layers(pl_module).values())
        if trainer.is_global_zero:
            equal = bool((of_all == of_all[0]).all())
            print(f"{len(of_all)} ranks, {grown} germinations, weights equal on all of them: {equal}")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--accelerator", default="cpu")
    arguments = parser.parse_args(argv)
    L.seed_everything(0)
    trainer = L.Trainer(
        max_epochs=arguments.epochs,
        accelerator=arguments.accelerator,
        devices=2,
        strategy="ddp",
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[MorphoCallback(), Compare()],
    )
    trainer.fit(ConvClassifier(channels=4), datamodule=MNIST1D(batch_size=50))


if __name__ == "__main__":
    main()
