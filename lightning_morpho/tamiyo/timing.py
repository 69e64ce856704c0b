"""When to grow: plateaus, and changes of the data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lightning_morpho.checks import check, is_count, is_fraction, is_number
from lightning_morpho.tamiyo.observation import Observation

Losses = Sequence[float | None]
"""Loss at each tick, None where there was none."""


def stalled(losses: Losses, patience: int, min_delta: float) -> bool:
    """Whether the loss fell by less than the share ``min_delta`` over the last ``patience`` ticks.

    Example:
        >>> stalled([1.0, 0.5, 0.49, 0.495], 2, 0.05), stalled([1.0, 0.5, 0.4], 2, 0.05)
        (True, False)
    """
    if len(losses) <= patience:
        return False
    before, now = losses[-1 - patience], losses[-1]
    return before is not None and now is not None and before - now < min_delta * abs(before)


def risen(losses: Losses, patience: int, rise: float) -> bool:
    """Whether each of the last ``patience`` losses lies above the best before them by the share ``rise``.

    Example:
        >>> risen([1.0, 0.5, 0.8, 0.7], 2, 0.2), risen([1.0, 0.5, 0.8, 0.55], 2, 0.2), risen([0.5, None, 0.8], 2, 0.2)
        (True, False, False)
    """
    before = [loss for loss in losses[:-patience] if loss is not None]
    last = losses[-patience:]
    if not before or len(last) < patience:
        return False
    best = min(before)
    return all(loss is not None and loss - best > rise * abs(best) for loss in last)


def data_changed(observation: Observation, patience: int, rise: float) -> bool:
    """Whether the data are others than those at the last round: validation and training loss have both risen.

    Over the last ``patience`` ticks both lie above their best since that round by the share ``rise``. A validation
    loss that rises while the training loss falls is overfitting, which more capacity makes worse.
    """
    since = observation.last_round or 0
    pair = observation.losses[since:], observation.training_losses[since:]
    return all(risen(losses, patience, rise) for losses in pair)


@dataclass(frozen=True, kw_only=True)
class Moment:
    """The moment of an early round, and of another one.

    Args:
        at: When, as a fraction of the training's optimizer steps, in [0, 1].
        patience: Where training has no known length, or may be stopped early: ticks over which the validation loss
            is compared, ``>= 1``.
        min_delta: ... and the relative fall below which the round starts, ``>= 0``.
        reopen: Rise of validation *and* training loss over their best since the last round, as a share of it, that
            shows that the data have changed and opens another round, ``> 0``; None: one round for good.
        reopen_ticks: Ticks in a row that must show it, ``>= 1``.
    """

    at: float = 0.15
    patience: int = 3
    min_delta: float = 0.02
    reopen: float | None = 0.25
    reopen_ticks: int = 3

    def __post_init__(self) -> None:
        check(is_fraction(self.at), "tamiyo.at", "a fraction of training in [0, 1]", self.at)
        check(is_count(self.patience), "tamiyo.patience", "at least 1 tick", self.patience)
        check(is_number(self.min_delta) and self.min_delta >= 0, "tamiyo.min_delta", "non-negative", self.min_delta)
        positive = self.reopen is None or (is_number(self.reopen) and self.reopen > 0)
        check(positive, "tamiyo.reopen", "a positive share, or null", self.reopen)
        check(is_count(self.reopen_ticks), "tamiyo.reopen_ticks", "at least 1 tick", self.reopen_ticks)

    def opens(self, observation: Observation) -> str | None:
        """Why a round opens at this tick, None if none does."""
        if observation.germinations:
            if self.reopen is not None and data_changed(observation, self.reopen_ticks, self.reopen):
                return f"another round: the losses stand {self.reopen:.0%} above their best, the data have changed"
            return None
        total, stop = observation.total_steps, observation.stop_patience
        if total is not None and observation.step >= self.at * total:
            return f"one round at {self.at:.0%} of training"
        if total is None or stop is not None:
            # An early stop must not come first; its patience counts the tick that is still to come.
            patience = self.patience if stop is None else max(1, min(self.patience, stop - 1))
            if stalled(observation.losses, patience, self.min_delta):
                return f"validation loss fell by less than {self.min_delta:.0%}"
        return None
