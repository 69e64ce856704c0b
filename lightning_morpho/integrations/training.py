"""What a Trainer knows of the course of training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EarlyStopping
from torch import Tensor


class TrainingLoss:
    """Mean training loss of sampled batches, of one at least; nothing waits for the device before :meth:`take`."""

    def __init__(self) -> None:
        self._sum: Tensor | float = 0.0
        self._count = 0

    @property
    def empty(self) -> bool:
        """Whether there was no loss since the last :meth:`take`."""
        return not self._count

    def add(self, outputs: Any) -> None:
        """Add what a training step gave, if it has a loss."""
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if isinstance(loss, Tensor) and loss.numel() == 1:
            self._sum = self._sum + loss.detach().float().reshape(())
            self._count += 1

    def take(self, trainer: Trainer) -> float | None:
        """Mean over all ranks since the last call; None if there was no loss, or one that is not finite."""
        own = float(self._sum) / self._count if self._count else math.nan
        self._sum, self._count = 0.0, 0
        agreed = float(
            trainer.strategy.reduce(torch.tensor(own, device=trainer.strategy.root_device), reduce_op="mean")
        )
        return agreed if math.isfinite(agreed) else None

    def state_dict(self) -> dict[str, float]:
        """What was added since the last :meth:`take`."""
        return {"sum": float(self._sum), "count": self._count}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Restore what :meth:`state_dict` gave."""
        self._sum, self._count = state["sum"], int(state["count"])


def stop_patience(trainer: Trainer) -> int | None:
    """Validations without progress after which EarlyStopping ends the training; None if nothing does."""
    return min((stopping.patience for stopping in _early_stopping(trainer)), default=None)


def restart_patience(trainer: Trainer) -> None:
    """Let the next validation without progress end nothing: the model that early stopping judged is still growing."""
    for stopping in _early_stopping(trainer):
        stopping.wait_count = min(0, stopping.patience - 2)


def _early_stopping(trainer: Trainer) -> list[EarlyStopping]:
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    return [callback for callback in callbacks if isinstance(callback, EarlyStopping)]


class ValidationLoss:
    """The latest validation loss, and whether seeds can be judged by one at all.

    Attributes:
        value: The loss, the mean over all ranks; None if there is none.
        measurable: Whether one can be measured, on every rank that validates; None while nothing was validated.
    """

    def __init__(self) -> None:
        self.value: float | None = None
        self.measurable: bool | None = None

    def see(self, found: bool) -> None:
        """Learn whether a batch gave a loss."""
        self.measurable = bool(self.measurable) or found

    def note(self, trainer: Trainer, monitor: str) -> None:
        """Take what a validation logged under a name, on every rank: a rank without a batch knows of no loss.

        Of a sanity check the loss is no news, but what it is that can be measured.
        """
        metrics = trainer.callback_metrics
        logged = metrics.get(monitor, metrics.get(f"{monitor}/dataloader_idx_0"))  # the first of several loaders
        if logged is not None:
            self.measurable = True
        loss, known = (0.0, 0.0) if logged is None else (float(logged), 1.0)
        own = [loss, known, float(self.measurable is True), float(self.measurable is False)]
        agreed = trainer.strategy.reduce(torch.tensor(own, device=trainer.strategy.root_device), reduce_op="sum")
        total, count, able, unable = agreed.tolist()
        self.measurable = able > 0 and not unable
        if not trainer.sanity_checking:
            self.value = None if not count or math.isnan(total) else total / count
