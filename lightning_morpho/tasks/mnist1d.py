"""MNIST-1D: ten digits as noisy 1-D signals of 40 points, and a small convolutional host for them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

MAX_TRAIN = 4000
NUM_CLASSES = 10
SIGNAL_LENGTH = 40
DECAY_SHARE = 0.3

Arrays = tuple[np.ndarray, np.ndarray]


@contextmanager
def _own_random_state() -> Iterator[None]:
    """Undo what the generator does to the global random state of numpy and Python: it seeds both."""
    numpy_state, python_state = np.random.get_state(), random.getstate()
    try:
        yield
    finally:
        np.random.set_state(numpy_state)
        random.setstate(python_state)


def _as_arrays(x: np.ndarray, y: np.ndarray) -> Arrays:
    return x.astype(np.float32)[:, None, :], y.astype(np.int64)


@cache
def _generate() -> tuple[Arrays, Arrays, Arrays]:
    """Generate training, validation and test arrays, once a process."""
    try:
        from mnist1d.data import get_dataset_args, make_dataset
    except ImportError as error:
        raise ImportError(
            "MNIST-1D needs the packages `mnist1d` and `requests`: "
            'pip install "lightning-morpho[mnist1d]" installs both.'
        ) from error
    held_out = get_dataset_args()
    held_out.seed, held_out.num_samples, held_out.train_split = held_out.seed + 1, 1000, 1.0
    with _own_random_state():
        standard, validation = make_dataset(), make_dataset(held_out)
    return (
        _as_arrays(standard["x"], standard["y"]),
        _as_arrays(validation["x"], validation["y"]),
        _as_arrays(standard["x_test"], standard["y_test"]),
    )


class MNIST1D(L.LightningDataModule):
    """MNIST-1D, generated in a second; nothing is downloaded.

    Training and test samples are the generator's standard ones (4000 and 1000), so that accuracies
    compare with those of others. The 1000 validation samples are drawn by the same generator from the
    next random seed: held-out measurements never touch the test set. Every process gets the same ones.

    Sam Greydanus, Dmitry Kobak, "Scaling Down Deep Learning with MNIST-1D", 2024.

    Args:
        batch_size: Samples a batch, ``>= 1``.
        num_train: Training samples, the first so many of the standard 4000, 1 to 4000.
        seed: Random seed of the order of training batches; equal seeds give equal batches,
            whatever else draws random numbers.

    Shape:
        A batch is a pair of signals ``(B, 1, 40)``, float32, and labels ``(B,)``, int64.
    """

    def __init__(self, batch_size: int = 100, num_train: int = MAX_TRAIN, seed: int = 0) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"`batch_size` must be at least 1 sample, got {batch_size}.")
        if not 1 <= num_train <= MAX_TRAIN:
            raise ValueError(f"`num_train` must be 1 to {MAX_TRAIN} samples, got {num_train}.")
        self.batch_size = batch_size
        self.num_train = num_train
        self.seed = seed

    def setup(self, stage: str | None = None) -> None:
        """Generate the samples."""
        train, validation, test = (TensorDataset(torch.from_numpy(x), torch.from_numpy(y)) for x, y in _generate())
        self.train = torch.utils.data.Subset(train, range(self.num_train))
        self.validation, self.test = validation, test

    def train_dataloader(self) -> DataLoader[Any]:
        """Shuffled training batches."""
        order = torch.Generator().manual_seed(self.seed)
        return DataLoader(self.train, batch_size=self.batch_size, shuffle=True, generator=order)

    def val_dataloader(self) -> DataLoader[Any]:
        """Validation batches, always in the same order."""
        return DataLoader(self.validation, batch_size=self.batch_size)

    def test_dataloader(self) -> DataLoader[Any]:
        """Test batches, always in the same order."""
        return DataLoader(self.test, batch_size=self.batch_size)


class ConvClassifier(L.LightningModule):
    """Three 1-D convolutions and a linear layer: a host that a few channels make too narrow.

    Logs ``train_loss``, ``val_loss``, ``val_acc``, ``test_loss`` and ``test_acc``.

    Args:
        channels: Channels of each convolution, ``>= 1``.
        lr: Adam's learning rate, ``> 0``.
        schedule: ``"constant"``, or ``"wsd"``: constant, then falling linearly to 0 in the last 30 %
            of training.

    Shape:
        ``(B, 1, 40)`` to logits ``(B, 10)``.

    Example:
        >>> ConvClassifier(channels=4)(torch.zeros(2, 1, 40)).shape
        torch.Size([2, 10])
    """

    def __init__(self, channels: int = 4, lr: float = 1e-2, schedule: str = "constant") -> None:
        super().__init__()
        if channels < 1:
            raise ValueError(f"`channels` must be at least 1, got {channels}.")
        if not lr > 0:  # also rejects NaN
            raise ValueError(f"`lr` must be positive, got {lr}.")
        if schedule not in ("constant", "wsd"):
            raise ValueError(f"`schedule` must be 'constant' or 'wsd', got {schedule!r}.")
        self.save_hyperparameters()
        self.net = nn.Sequential(
            nn.Conv1d(1, channels, 5, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv1d(channels, channels, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv1d(channels, channels, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(channels * (SIGNAL_LENGTH // 8), NUM_CLASSES),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Logits of each class."""
        return self.net(x)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Loss of a training batch."""
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("train_loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Loss of a validation batch; logs it and the accuracy."""
        return self._evaluate(batch, "val")

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Loss of a test batch; logs it and the accuracy."""
        return self._evaluate(batch, "test")

    def _evaluate(self, batch: tuple[Tensor, Tensor], stage: str) -> Tensor:
        x, y = batch
        logits = self(x)
        loss = F.cross_entropy(logits, y)
        self.log(f"{stage}_loss", loss, prog_bar=True)
        self.log(f"{stage}_acc", (logits.argmax(dim=1) == y).float().mean(), prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        """Adam, with the learning-rate schedule stepped every optimizer step."""
        optimizer = torch.optim.Adam(self.parameters(), lr=self.hparams["lr"])
        if self.hparams["schedule"] == "constant":
            return optimizer
        total = self.trainer.estimated_stepping_batches
        if total == float("inf"):
            raise ValueError(
                "`schedule='wsd'` must know when training ends, got a Trainer without a limit: "
                "set `max_epochs` or `max_steps`, or use `schedule='constant'`."
            )
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min(1.0, (total - step) / (DECAY_SHARE * total))
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
