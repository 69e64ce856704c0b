"""How long a training is, in optimizer steps."""

from __future__ import annotations

import math

from lightning.pytorch import Trainer

FEWEST = 4
"""Ticks that a seed needs from the first that can start it to its judgement, warm-up between."""


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


def epochs_in_all(trainer: Trainer) -> float | None:
    """Epochs of the whole training; infinity if it goes on for ever, None if the length of one is not known."""
    steps = trainer.num_training_batches / trainer.accumulate_grad_batches
    limits = [] if trainer.max_epochs in (None, -1) else [float(trainer.max_epochs or 0)]
    if math.isfinite(steps):
        limits += [math.ceil(trainer.max_steps / max(steps, 1)) if trainer.max_steps > 0 else math.inf]
    return min(limits, default=None)


def few_ticks(trainer: Trainer) -> str | None:
    """What to say of a training that has hardly any epoch's end to tick at; None if it has enough."""
    epochs = epochs_in_all(trainer)
    if epochs is not None and epochs >= FEWEST:
        return None
    known = total_steps(trainer) is not None
    way_out = (
        "`every_n_steps=0.05` ticks every 5 % of training" if known else "Give a number of steps as `every_n_steps`"
    )
    return (
        "decision ticks are at epochs' ends, and this training "
        + ("may have none, as the length of an epoch is not known" if epochs is None else f"has {epochs:.0f} of them")
        + f": what germinates is hardly judged, or too late. {way_out}."
    )
