"""What the governor's verdict does to a run: snapshots at risky moments, and the way back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor

from lightning_morpho.divergence import Divergence
from lightning_morpho.governor import Governor
from lightning_morpho.layers import HybridKasminaLayer
from lightning_morpho.optim import OptimizerLink
from lightning_morpho.telemetry.events import Restored
from lightning_morpho.views import live_chunks


class Recovery:
    """Shows the governor what it must see, and takes the run back when it says so.

    Args:
        layers: The hybrid layers by name.
        optimizers: Link to the run's optimizers.
        governor: Takes a run that diverges back; None: nothing does.
        on_event: Receives an event for each rollback.

    Attributes:
        step: Optimizer steps done, as far as known here.
        tick: Decision ticks so far, likewise.
        risky: Whether something has happened that calls for a snapshot: a germination, a start of grafting, a
            fossilization (the host has not moved since before it), or a resizing (the units that it removed are not to
            come back).
    """

    def __init__(
        self,
        layers: Mapping[str, HybridKasminaLayer],
        optimizers: OptimizerLink,
        governor: Governor | None,
        on_event: Callable[[Restored], None],
    ) -> None:
        self.layers, self.optimizers, self.governor, self.on_event = layers, optimizers, governor, on_event
        self.step = self.tick = 0
        self.risky = False
        self._last_rollback = self._in_a_row = 0
        self.tell_live()

    def tell_live(self) -> None:
        """Let the governor know whether any seed lives."""
        if self.governor is not None:
            self.governor.set_live(any(live_chunks(layer) for layer in self.layers.values()))

    @property
    def waiting(self) -> list[float]:
        """Losses of this process that the governor has not read yet; to ask for them waits for the device."""
        return [] if self.governor is None else self.governor.waiting

    @waiting.setter
    def waiting(self, losses: Iterable[float]) -> None:
        if self.governor is not None:
            self.governor.waiting = losses

    def watch(self, loss: Tensor | float | None, *, thoroughly: bool = False) -> bool:
        """Show the governor the loss of a training step; if the run has diverged, take it back.

        Args:
            loss: Loss of the step; None to look at what it was shown before, at once.
            thoroughly: Whether to look at the weights too, which waits for the device.

        Returns:
            Whether the run was taken back.
        """
        if self.governor is None:
            return False
        if self.risky:
            self.settle()
        found = self.governor.check() if loss is None else self.governor.observe(loss, self.step)
        if found is None and thoroughly and self.governor.watching:
            found = self.governor.check_weights()
        if found is not None:
            self._roll_back(self.governor, found)
        return found is not None

    def snapshot(self, step: int) -> None:
        """Hold host and fossils as they are now, unless the last losses speak against it; before a checkpoint."""
        if self.governor is not None and self.governor.watch.calm:
            self.governor.take(step, mark=False)

    def settle(self) -> None:
        """Tell the governor what lives, and let it hold the state if that is due."""
        self.tell_live()
        if self.governor is not None and self.risky:
            self.risky = False
            self._take_snapshot(self.governor)

    def _take_snapshot(self, governor: Governor) -> None:
        if not governor.watching:
            return
        found = governor.check_weights()
        if found is None:
            governor.take(self.step)
        elif governor.snapshot is not None:
            self._roll_back(governor, found)

    def _roll_back(self, governor: Governor, found: Divergence) -> None:
        """End the live seeds, put host and fossils back, and say so."""
        for layer in self.layers.values():
            layer.morpho.roll_back(figures=found.figures)
        self.optimizers.drop_stale_state()
        snapshot = governor.restore()
        again = governor.rollbacks > 1 and self.step - self._last_rollback < governor.config.window
        self._in_a_row = self._in_a_row + 1 if again else 1
        self._last_rollback = self.step
        self.on_event(
            Restored(
                tick=self.tick,
                step=self.step,
                snapshot_step=None if snapshot is None else snapshot.step,
                reason=found.reason,
                figures=found.figures,
            )
        )
        if self._in_a_row >= governor.config.max_rollbacks:
            governor.stand_down()
        self.risky = False
        governor.set_live(False)

    def state_dict(self) -> dict[str, Any]:
        """Rollbacks, and what was seen of the losses, as plain values."""
        return {
            "rollbacks": [self._last_rollback, self._in_a_row],
            "governor": None if self.governor is None else self.governor.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave."""
        self._last_rollback, self._in_a_row = state.get("rollbacks", (0, 0))
        if self.governor is not None and state.get("governor") is not None:
            self.tell_live()  # a sharded model is restored after the engine is made
            self.governor.load_state_dict(state["governor"])
