"""Growth on the Trainer's progress bar, whichever it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lightning.pytorch import LightningModule, Trainer


class GrowthOnBar:
    """Adds two entries to the metrics of a progress bar, ``seeds`` and ``growth``, while a fit runs.

    It goes through the bar's public ``get_metrics``, so it works with Rich, tqdm and bars of the user's own. Entries
    of the same name that the user shows stay.

    Args:
        trainer: The Trainer.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.entries: dict[str, str] = {}
        bar: Any = trainer.progress_bar_callback
        self._bar = bar
        if bar is None:
            return
        original: Callable[..., dict[str, Any]] = bar.get_metrics

        def get_metrics(trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
            return self.entries | original(trainer, pl_module)

        self._had = bar.__dict__.get("get_metrics")
        bar.get_metrics = get_metrics

    def show(self, *, live: int, kept: int, seeds: int) -> None:
        """Say how many seeds grow."""
        self.entries["seeds"] = f"{live} live, {kept} kept of {seeds}"

    def tell(self, step: int, line: str) -> None:
        """Show the last event, shortened."""
        text = line.split(" (")[0]
        self.entries["growth"] = f"{text if len(text) <= 44 else text[:43] + '…'} @{step}"

    def close(self) -> None:
        """Leave the bar as it was."""
        if self._bar is None:
            return
        if self._had is None:
            self._bar.__dict__.pop("get_metrics", None)
        else:
            self._bar.get_metrics = self._had
        self._bar = None
