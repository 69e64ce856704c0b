"""Tabular data, and no size given: a net of 4 hidden units finds its own width on Letter Recognition.

curl -O https://archive.ics.uci.edu/ml/machine-learning-databases/letter-recognition/letter-recognition.data
python examples/tabular_letter.py --data letter-recognition.data

Printed, among other lines, in 20 seconds on one core:

morpho: step 218: net.2: 32 new units would explain 4.09% ± 0.25% of the residual, learning 14.65%
morpho: step 218: net.2: 1 seed DORMANT -> LOADING (to the budget, to be sized later)
morpho: step 1090: net.2: 260 of 469 hidden units kept (held-out error 7.533 -> 7.767 points, 0.2 s)
test accuracy: 0.972
Sequential(
  (0): Linear(in_features=16, out_features=260, bias=True)
  (1): ReLU()
  (2): Linear(in_features=260, out_features=26, bias=True)
)

How often that is as good as the best width of a sweep: docs/evidence.
"""

import argparse
import csv

import lightning as L
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_morpho import AutoSize, BudgetConfig, MorphoCallback, export


def read(path: str) -> list[TensorDataset]:
    """Training, validation and test samples; a line is a letter and 16 numbers, a heading is left out."""
    with open(path, newline="") as file:
        rows = [row for row in csv.reader(file) if len(row[0]) == 1]
    x = torch.tensor([[float(value) for value in row[1:]] for row in rows])
    y = torch.tensor([ord(row[0]) - ord("A") for row in rows])
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    train, end = int(0.7 * len(x)), int(0.85 * len(x))
    x, y = x[order], y[order]
    x = (x - x[:train].mean(0)) / x[:train].std(0)
    return [TensorDataset(x[part], y[part]) for part in (slice(train), slice(train, end), slice(end, None))]


class Net(L.LightningModule):
    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(16, hidden), nn.ReLU(), nn.Linear(hidden, 26))

    def loss(self, batch: list[Tensor], name: str) -> Tensor:
        x, y = batch
        scores = self.net(x)
        loss = nn.functional.cross_entropy(scores, y)
        self.log_dict({f"{name}_loss": loss, f"{name}_acc": (scores.argmax(1) == y).float().mean()}, on_epoch=True)
        return loss

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self.loss(batch, "train")

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self.loss(batch, "val")

    def test_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self.loss(batch, "test")

    def configure_optimizers(self) -> dict:
        optimizer = torch.optim.Adam(self.parameters(), lr=0.03)
        steps = self.trainer.estimated_stepping_batches
        # Constant, then falling in the last 30 %: growth is refused once the rate is below half its peak.
        falling = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (steps - step) / (0.3 * steps)))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": falling, "interval": "step"}}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", required=True)
    parser.add_argument("--epochs", type=int, default=20)
    arguments = parser.parse_args(argv)
    L.seed_everything(0)
    train, val, test = read(arguments.data)
    model = Net(hidden=4)
    trainer = L.Trainer(
        max_epochs=arguments.epochs,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=CSVLogger("runs/letter"),
        # At most 20,000 parameters more, a decision twenty times in the run.
        callbacks=[MorphoCallback(tamiyo=AutoSize(), budget=BudgetConfig(parameters=20_000), every_n_steps=0.05)],
    )
    trainer.fit(model, DataLoader(train, 128, shuffle=True, drop_last=True), DataLoader(val, 1000))
    trainer.test(model, DataLoader(test, 1000), verbose=False)
    print(f"test accuracy: {trainer.callback_metrics['test_acc']:.3f}")
    print(export(model).net)


if __name__ == "__main__":
    main()
