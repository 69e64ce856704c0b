"""Images: a small ResNet on Fashion-MNIST whose blocks become wider inside.

pip install lightning-morpho torchvision     # which downloads the images; or --data FOLDER with the four *-ubyte.gz
python examples/fashion_resnet.py

Printed, among other lines, in half a minute on one core:

MorphoCallback: 4 of 21 modules grow: 2 seeds; their beds hold 6,960 parameters (budget 100,000), 27.2 KiB.
morpho: step 168: blocks.0.conv2: 1 seed DORMANT -> LOADING (one round at 15% of training)
morpho: step 378: blocks.0.conv2: 1 seed ACTIVE -> FOSSILIZED (proven gain of the group, judged with ...)
test accuracy: 0.845
"""

import argparse
import gzip
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset, random_split

from lightning_morpho import BlueprintConfig, LayersConfig, MorphoCallback


def read(folder: Path | None, part: str) -> TensorDataset:
    if folder is None:
        from torchvision.datasets import FashionMNIST

        made = FashionMNIST("data", train=part == "train", download=True)
        return TensorDataset(made.data[:, None] / 255, made.targets)
    images = gzip.decompress((folder / f"{part}-images-idx3-ubyte.gz").read_bytes())[16:]
    labels = gzip.decompress((folder / f"{part}-labels-idx1-ubyte.gz").read_bytes())[8:]
    x = torch.frombuffer(bytearray(images), dtype=torch.uint8).view(-1, 1, 28, 28) / 255
    return TensorDataset(x, torch.frombuffer(bytearray(labels), dtype=torch.uint8).long())


class Block(nn.Module):
    """The sum keeps its channels; between its convolutions the block may become as wide as it pays."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(channels, inner, 3, padding=1, bias=False), nn.BatchNorm2d(inner)
        self.conv2, self.norm2 = nn.Conv2d(inner, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x))))))


class ResNet(L.LightningModule):
    def __init__(self, channels: int = 16, inner: int = 4) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, channels, 3, stride=2, padding=1), nn.BatchNorm2d(channels), nn.ReLU())
        self.blocks = nn.Sequential(Block(channels, inner), nn.MaxPool2d(2), Block(channels, inner))
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))

    def loss(self, batch: list[Tensor], name: str) -> Tensor:
        scores = self.head(self.blocks(self.stem(batch[0])))
        loss = nn.functional.cross_entropy(scores, batch[1])
        self.log_dict({f"{name}_loss": loss, f"{name}_acc": (scores.argmax(1) == batch[1]).float().mean()})
        return loss

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self.loss(batch, "train")

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self.loss(batch, "val")

    def test_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self.loss(batch, "test")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, help="folder of the files; without it torchvision downloads them")
    parser.add_argument("--epochs", type=int, default=2)
    arguments = parser.parse_args(argv)
    L.seed_everything(0)
    known, test = read(arguments.data, "train"), read(arguments.data, "t10k")
    train, val = random_split(known, [0.9, 0.1])
    model = ResNet()
    callback = MorphoCallback(
        layers=LayersConfig(include=["blocks.*"]), blueprint=BlueprintConfig(hidden=12), every_n_steps=0.05
    )
    trainer = L.Trainer(
        max_epochs=arguments.epochs,
        val_check_interval=0.25,
        limit_val_batches=10,
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=CSVLogger("runs/fashion"),
        callbacks=[callback],
    )
    trainer.fit(model, DataLoader(train, 128, shuffle=True, drop_last=True), DataLoader(val, 256))
    trainer.test(model, DataLoader(test, 256), verbose=False)
    print(f"test accuracy: {trainer.callback_metrics['test_acc']:.3f}")


if __name__ == "__main__":
    main()
