"""The time that decision ticks take, and how much more they may."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator

import torch

from lightning_morpho.integrations.ranks import gather_objects


class TickClock:
    """Divides the time of a fit: inside of ticks, outside, and what is left of a limit.

    With a limit all ranks go by the clock of rank 0. What a question costs is known from the last one of its kind,
    before that it is guessed by training steps; what took longer than that is paid back by later ticks.

    Args:
        limit: Most of the fit's time that ticks may take, as a share, trials included; None: no limit.
        now: Gives seconds since some moment.
        device: Where the fit computes; what is queued there is waited for. None: nowhere yet.

    Attributes:
        inside: Seconds in ticks that are over.
        trials: Seconds in trials.
        cuts: In words, what the present tick left out for want of time.
    """

    def __init__(
        self,
        limit: float | None = None,
        now: Callable[[], float] = time.perf_counter,
        device: torch.device | None = None,
    ) -> None:
        self.limit, self._now, self._device = limit, now, device
        self.inside = self.trials = 0.0
        self.cuts: list[str] = []
        self._began = now()
        self._entered: float | None = None
        self._before = 0.0
        self._steps = 0
        self._prices: dict[str, float] = {}

    @contextlib.contextmanager
    def tick(self, steps: int) -> Iterator[None]:
        """A tick, after so many optimizer steps of this fit."""
        self._wait_for_device()  # what the steps before have left to do is no tick's
        self._steps, self._entered, self._before = steps, self._now(), self.trials
        self.cuts.clear()
        try:
            yield
        finally:
            self.inside += self._present
            self._entered = None

    @property
    def _present(self) -> float:
        """Seconds of the present tick so far."""
        return 0.0 if self._entered is None else self._now() - self._entered

    @property
    def seconds(self) -> float:
        """Seconds that the present tick has taken so far, trials apart."""
        return self._present - (self.trials - self._before)

    @property
    def share(self) -> float:
        """Share of the fit's time that ticks have taken, the present one included, trials apart."""
        inside, total = self.inside + self._present, self._now() - self._began
        return max(0.0, inside - self.trials) / max(total - self.trials, 1e-9)

    # ------------------------------------------------------------------ what may still be done
    def room(self, kind: str, steps: float) -> float:
        """How many questions of a kind the present tick may still answer; infinity without a limit.

        Args:
            kind: What is asked.
            steps: How many training steps one takes about as long as, as far as nobody knows better.
        """
        return math.inf if self.limit is None else float(gather_objects(self._room(self.limit, kind, steps))[0])

    def _room(self, limit: float, kind: str, steps: float) -> float:
        inside = self.inside + self._present
        outside = self._now() - self._began - inside
        price = self._prices.get(kind, steps * outside / max(1, self._steps))
        return max(0.0, limit / (1 - limit) * outside - inside) / max(price, 1e-9)

    @contextlib.contextmanager
    def answering(self, kind: str, count: int) -> Iterator[None]:
        """So many questions of a kind: learn what one takes."""
        began = self._now()
        try:
            yield
        finally:
            if self.limit is not None:
                self._wait_for_device()
            took = self._now() - began
            self._prices[kind] = took / count
            self.trials += took if kind == "trial" else 0.0

    def _wait_for_device(self) -> None:
        # Of a fit on the CPU no process is to start a GPU.
        if self._device is not None and self._device.type != "cpu" and torch.accelerator.is_available():
            torch.accelerator.synchronize(self._device)
