"""Growth on the Trainer's progress bar, whichever it is, and lines that stand whole above it."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from tqdm import tqdm

from lightning_morpho.telemetry.events import AnyEvent, Event, Finding, Notice, Restored


class GrowthOnBar:
    """Adds two entries to the metrics of a progress bar, ``seeds`` and ``growth``, while a fit runs.

    They are short and stand last, so that what the user shows keeps its place. It goes through the bar's public
    ``get_metrics``, so it works with Rich, tqdm and bars of the user's own. Entries of the same name that the user
    shows stay.

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
            shown = original(trainer, pl_module)
            ours = {name: self.entries[name] for name in ("seeds", "growth") if name in self.entries}
            return shown | {name: text for name, text in ours.items() if name not in shown}

        self._had = bar.__dict__.get("get_metrics")
        bar.get_metrics = get_metrics

    def show(self, *, live: int, kept: int) -> None:
        """Say how many seeds grow."""
        self.entries["seeds"] = f"{live} live, {kept} kept"

    def tell(self, step: int, events: Sequence[AnyEvent]) -> None:
        """Show the last of some events.

        Args:
            step: Optimizer steps done.
            events: Events of one moment, in order.
        """
        if events:
            self.entries["growth"] = f"{in_short(events)} @{step}"

    def close(self) -> None:
        """Leave the bar as it was."""
        if self._bar is None:
            return
        if self._had is None:
            self._bar.__dict__.pop("get_metrics", None)
        else:
            self._bar.get_metrics = self._had
        self._bar = None


def in_short(events: Sequence[AnyEvent]) -> str:
    """The last of some events in two words, with the number of seeds that it happened to.

    Example:
        >>> from lightning_morpho.telemetry import Refusal
        >>> in_short([Refusal(tick=1, step=40, layer="net.2", reason="the learning rate has decayed")])
        'refused'
    """
    last = events[-1]
    if isinstance(last, Event):
        stage = last.transition.target
        return f"{sum(isinstance(e, Event) and e.transition.target is stage for e in events)} {stage.name.lower()}"
    if isinstance(last, Notice):
        return f"{sum(isinstance(e, Notice) and e.event == last.event for e in events)} {last.event}"
    if isinstance(last, Finding):
        return last.kind
    return "restored" if isinstance(last, Restored) else "refused"


@contextmanager
def above_the_bar() -> Iterator[None]:
    """What is logged, or printed through ``rich.get_console()``, stands whole above a bar that is being drawn.

    Rich takes over ``sys.stderr`` while it draws, but handlers of :mod:`logging` keep the one from before and write
    across the bar; tqdm leaves its line to be written on.
    """
    redirected = [
        (handler, handler.setStream(sys.stderr))
        for handler in _handlers(logging.getLogger("lightning.pytorch"))
        if handler.stream is getattr(sys.stderr, "rich_proxied_file", None)
    ]
    try:
        with tqdm.external_write_mode():
            yield
    finally:
        for handler, stream in redirected:
            handler.setStream(stream)


def _handlers(logger: logging.Logger | None) -> Iterator[logging.StreamHandler[Any]]:
    """Handlers that write what this logger is told to a stream."""
    while logger is not None:
        yield from (handler for handler in logger.handlers if isinstance(handler, logging.StreamHandler))
        logger = logger.parent if logger.propagate else None
