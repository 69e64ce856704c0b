"""How long a training is, in optimizer steps."""

from __future__ import annotations

import math

from lightning.pytorch import Trainer


def total_steps(trainer: Trainer) -> int | None:
    """Optimizer steps of the whole training, None if nobody knows."""
    steps = trainer.estimated_stepping_batches
    return int(steps) if math.isfinite(steps) and steps >= 0 else None  # of a stream Lightning says -1


def tick_steps(trainer: Trainer, wanted: int | float | None) -> int | None:
    """Optimizer steps between two ticks, None for a tick at each epoch's end.

    Args:
        trainer: The Trainer, once its optimizers are made.
        wanted: That number, or a fraction of the training; of one without a known end: None.
    """
    if wanted is None or isinstance(wanted, int):
        return wanted
    total = total_steps(trainer)
    return None if total is None else max(1, round(wanted * total))
