"""The governor: sees a run diverge while something grows, and takes host and fossils back to where it was sound."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_morpho.config import AUTO, GovernorConfig
from lightning_morpho.divergence import Divergence, LossWatch
from lightning_morpho.layers.beds import local_part
from lightning_morpho.snapshot import Snapshot, lasting_tensors


class Governor:
    """Watches the losses of a run and holds the snapshot to go back to.

    It knows nothing of seeds' stages: :class:`~lightning_morpho.GrowthEngine` ends the live seeds, asks for snapshots
    at risky moments and tells it when something lives.

    Args:
        config: Rhythm, limits.
        model: The model.
        optimizers: Its optimizers.
        averages: Gives averaged copies of the model, which are saved and restored with it.
        skips: Whether a gradient scaler skips steps that overflow.

    Attributes:
        snapshot: What a rollback would restore, None while nothing is watched.
        rollbacks: Rollbacks so far.

    Example:
        >>> model = nn.Linear(2, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> governor = Governor(GovernorConfig(always=True), model, [optimizer])
        >>> before = model.weight.clone()
        >>> governor.take(step=0)
        >>> with torch.no_grad():
        ...     _ = model.weight.fill_(torch.inf)
        >>> governor.observe(torch.tensor(torch.inf), step=1).reason
        'the loss is not finite'
        >>> governor.restore().step, torch.equal(model.weight, before)
        (0, True)
    """

    def __init__(
        self,
        config: GovernorConfig,
        model: nn.Module,
        optimizers: Sequence[Optimizer],
        *,
        averages: Callable[[], Iterable[nn.Module]] = lambda: (),
        skips: bool = False,
    ) -> None:
        self.config = config
        self.model, self.optimizers, self.averages = model, tuple(optimizers), averages
        self.watch = LossWatch(config, skips=skips)
        self.snapshot: Snapshot | None = None
        self.rollbacks = 0
        self._live = False
        self._stood_down = False
        self._waiting: deque[Tensor | float] = deque(maxlen=config.window + config.patience)
        self._steps = 0
        self._every = self._check_rhythm(next(model.parameters()).device)

    def _check_rhythm(self, device: torch.device) -> int:
        if self.config.check_every != AUTO:
            return self.config.check_every
        return 1 if device.type == "cpu" and not _distributed() else 16

    @property
    def watching(self) -> bool:
        """Whether losses are read and snapshots taken: while seeds live, or always if so configured."""
        return (self._live or self.config.always) and not self._stood_down

    def set_live(self, live: bool) -> None:
        """Learn whether any seed lives; once none does, the snapshot is dropped."""
        self._live = live
        if not self.watching:
            self.snapshot = None
            self.watch.level = -math.inf

    # ------------------------------------------------------------------ losses
    def observe(self, loss: Tensor | float | None, step: int) -> Divergence | None:
        """Take the loss of one training step; every few of them, read what came in and take a snapshot if it is time.

        While nothing is watched a loss is only remembered, and nothing waits for the device.

        Args:
            loss: Loss of the step, a scalar; None if it gave none.
            step: Optimizer steps done.

        Returns:
            What went wrong, equal on every rank; None if nothing did.
        """
        if loss is not None:
            self._waiting.append(loss.detach().reshape(()) if isinstance(loss, Tensor) else float(loss))
        if not self.watching:
            return None
        self._steps += 1
        found = self.check() if self._steps % self._every == 0 else None
        if found is None and self._is_time(step) and self.watch.calm:
            # A resumed run has no snapshot yet, but knows the loss at the last one.
            self.take(step, mark=self.snapshot is not None or not math.isfinite(self.watch.level))
        return found

    @property
    def waiting(self) -> list[float]:
        """Losses of this rank that were not read yet; to ask for them waits for the device."""
        return [float(loss) for loss in self._waiting]

    @waiting.setter
    def waiting(self, losses: Iterable[float]) -> None:
        self._waiting.clear()
        self._waiting.extend(losses)

    def check(self) -> Divergence | None:
        """Read the losses that came in since the last time: one wait for the device, one exchange of the ranks."""
        if not (self.watching and self._waiting):
            return None
        for loss in self._read():
            found = self.watch.add(loss)
            if found is not None:
                return found
        return None

    def _read(self) -> list[float]:
        losses = self._averaged()
        self._waiting.clear()
        return losses

    def _averaged(self) -> list[float]:
        # Losses of a resumed run are numbers; NCCL adds up nothing that does not lie on the device.
        device = next(self.model.parameters()).device
        losses = torch.stack([torch.as_tensor(loss, device=device).float() for loss in self._waiting])
        if _distributed():
            dist.all_reduce(losses)  # one rank's NaN is everybody's
            losses /= dist.get_world_size()
        return losses.tolist()

    def check_weights(self) -> Divergence | None:
        """Look whether all weights of host and fossils are finite, on all ranks."""
        weights = [local_part(t.detach()) for t, _ in lasting_tensors([self.model]) if t.is_floating_point()]
        norms = torch._foreach_norm([w for w in weights if w.numel()], ord=1)
        sound = torch.stack([norm.float().isfinite() for norm in norms]).all().to(torch.int32)
        if _distributed():
            dist.all_reduce(sound, op=dist.ReduceOp.MIN)
        return None if bool(sound) else Divergence("weights are not finite")

    # ------------------------------------------------------------------ snapshots
    def _is_time(self, step: int) -> bool:
        return self.snapshot is None or step - self.snapshot.step >= self.config.every_n_steps

    def take(self, step: int, *, mark: bool = True) -> None:
        """Make a snapshot now.

        Args:
            step: Optimizer steps done.
            mark: Whether later losses are compared with those of now, too; what is taken for a checkpoint alone
                must change no decision of the run.
        """
        if self.watching:
            self.snapshot = Snapshot([self.model, *self.averages()], self.optimizers, step, previous=self.snapshot)
            if mark:
                self.watch.mark(self._averaged() if self._waiting else ())

    def restore(self) -> Snapshot | None:
        """Go back to the snapshot and forget the losses that led away from it.

        Returns:
            The snapshot, None if there is none: then nothing changed.
        """
        self.rollbacks += 1
        self._waiting.clear()
        self.watch.forget_recent()
        if self.snapshot is not None:
            self.snapshot.restore()
        return self.snapshot

    def stand_down(self) -> None:
        """Watch no more in this run: rolling back has not helped."""
        self._stood_down, self.snapshot = True, None

    # ------------------------------------------------------------------ persistence
    def state_dict(self) -> dict[str, Any]:
        """What was read of the losses, as plain values; the checkpoint itself takes the place of the snapshot."""
        return {
            "history": list(self.watch.history),
            "recent": list(self.watch.recent),
            "level": self.watch.level,
            "steps": self._steps,
            "rollbacks": self.rollbacks,
            "stood_down": self._stood_down,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave."""
        self.watch.history.extend(state["history"])
        self.watch.recent.extend(state["recent"])
        self.watch.level = state.get("level", -math.inf)
        self._steps, self.rollbacks = state["steps"], state["rollbacks"]
        self._stood_down = state["stood_down"]


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
