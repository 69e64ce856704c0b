"""A net that goes on growing when its data change: five digits at first, all ten of them from half-time on.

pip install "lightning-morpho[mnist1d]"
python examples/growing_on.py

Printed, among other lines, in half a minute on one core:

morpho: step 240: net.2: 1 seed DORMANT -> LOADING (one round at 15% of training)
morpho: step 360: net.2: 1 seed ACTIVE -> FOSSILIZED (proven gain of the group, judged with ...)
morpho: step 920: net.2: 1 seed DORMANT -> LOADING (another round: the losses stand 25% above their best, the data ...)
morpho: step 1240: net.7: 1 seed ACTIVE -> FOSSILIZED (proven gain)
test accuracy on all digits: 0.897
"""

import argparse

import lightning as L
from torch.utils.data import DataLoader, Subset

from lightning_morpho import LayersConfig, MorphoCallback
from lightning_morpho.tasks import MNIST1D, ConvClassifier


class MoreDigits(MNIST1D):
    """Digits 0 to 4 until an epoch, all of them from then on."""

    def __init__(self, change: int) -> None:
        super().__init__(batch_size=100)
        self.change = change

    def some(self, loader: DataLoader, shuffle: bool) -> DataLoader:
        data = loader.dataset
        limit = 5 if self.trainer.current_epoch < self.change else 10
        chosen = [index for index in range(len(data)) if data[index][1] < limit]
        return DataLoader(Subset(data, chosen), batch_size=100, shuffle=shuffle)

    def train_dataloader(self) -> DataLoader:
        return self.some(super().train_dataloader(), shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return self.some(super().val_dataloader(), shuffle=False)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=80)
    epochs = parser.parse_args(argv).epochs
    L.seed_everything(0)
    data, model = MoreDigits(change=epochs // 2), ConvClassifier(channels=4)
    trainer = L.Trainer(
        max_epochs=epochs,
        reload_dataloaders_every_n_epochs=1,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        # Two beds a layer: one for the round at the start, one for the round when the data change.
        callbacks=[MorphoCallback(layers=LayersConfig(beds=2))],
    )
    trainer.fit(model, datamodule=data)
    trainer.test(model, datamodule=data, verbose=False)
    print(f"test accuracy on all digits: {trainer.callback_metrics['test_acc']:.3f}")


if __name__ == "__main__":
    main()
