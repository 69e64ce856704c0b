"""The governor: sees a run diverge while something grows, and takes host and fossils back to where it was sound."""

from __future__ import annotations

import copy
import logging
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_morpho.config import AUTO, GovernorConfig
from lightning_morpho.layers import HybridKasminaLayer
from lightning_morpho.layers.beds import Bed, GrownParameters, local_part

log = logging.getLogger(__name__)

_NORMAL = 1.4826
"""Standard deviation of a normal distribution in units of its median absolute deviation."""
_SETTLED = 0.1
"""Share of the median that the fluctuation of a loss is taken to be at least: a settled run has hardly any."""
_USUAL = 0.9
"""Share of the losses before that a spike must be above in any case: a loss may jump between two values."""
_SCHEDULED = {"params", "lr", "initial_lr", "max_lr", "min_lr", "momentum", "base_momentum", "max_momentum", "betas"}
"""Entries of a parameter group that belong to the learning-rate schedule, whose time goes on."""


@dataclass(frozen=True)
class Divergence:
    """Why a run is taken back.

    Attributes:
        reason: In words.
        figures: The numbers behind it.
    """

    reason: str
    figures: Mapping[str, float] = field(default_factory=dict)


class LossWatch:
    """Tells a diverging series of losses from one that fluctuates.

    A loss that is not finite is a divergence at once. So is a spike: the median of the last ``patience`` losses lies
    above the median of those before by more than ``spike`` times their fluctuation (their median absolute deviation,
    scaled to a standard deviation, but at least a tenth of their median), and above nine tenths of them. Nothing of it
    depends on the loss's scale.

    Args:
        config: Window, patience, height of a spike.
        skips: Whether a gradient scaler skips the steps of losses that overflow: then such a loss only counts as
            a very large one.
    """

    def __init__(self, config: GovernorConfig, *, skips: bool = False) -> None:
        self.config = config
        self.skips = skips
        self.history: deque[float] = deque(maxlen=config.window)
        self.recent: deque[float] = deque()

    def add(self, loss: float) -> Divergence | None:
        """Add the next loss, and say whether the run has diverged."""
        if not math.isfinite(loss) and not self.skips:
            return Divergence("the loss is not finite", {"loss": loss})
        self.recent.append(loss if math.isfinite(loss) else math.inf)
        if len(self.recent) > self.config.patience:
            leaving = self.recent.popleft()
            if math.isfinite(leaving):
                self.history.append(leaving)
        limit, now = self.limit, median(self.recent)
        if len(self.recent) < self.config.patience or not now > limit:
            return None
        figures = {"loss": now, "median": median(self.history), "limit": limit}
        return Divergence(f"the median of {self.config.patience} losses is above its limit", figures)

    @property
    def limit(self) -> float:
        """Loss above which a spike begins; infinity before enough is known."""
        if len(self.history) < self.config.window // 4:
            return math.inf
        middle = median(self.history)
        deviation = median(abs(loss - middle) for loss in self.history)
        usual = sorted(self.history)[int(_USUAL * len(self.history))]
        return max(usual, middle + self.config.spike * max(_NORMAL * deviation, _SETTLED * abs(middle)))

    @property
    def calm(self) -> bool:
        """Whether none of the last losses speaks of a divergence."""
        limit = self.limit
        return all(loss <= limit and math.isfinite(loss) for loss in self.recent)

    def forget_recent(self) -> None:
        """Drop the losses that led to a divergence."""
        self.recent.clear()


class Snapshot:
    """Host and fossils on the CPU: weights, buffers, optimizer moments and counters.

    Live seeds are left out: a rollback ends them. On a GPU the copies run in the order of its stream, and nothing
    waits for them.

    Args:
        modules: The model, and averaged copies of it.
        optimizers: Its optimizers.
        step: Optimizer steps done.
        previous: A snapshot that this one replaces; its memory is used again.
    """

    def __init__(
        self,
        modules: Sequence[nn.Module],
        optimizers: Sequence[Optimizer],
        step: int,
        previous: Snapshot | None = None,
    ) -> None:
        self.step = step
        self._memory: dict[int, Tensor] = {} if previous is None else previous._memory
        used: dict[int, Tensor] = {}
        self._tensors = [(tensor, owner, self._copy(tensor, used)) for tensor, owner in _lasting(modules)]
        lasting = {id(tensor): owner for tensor, owner, _ in self._tensors}
        self._moments = [
            {
                p: {key: self._keep(value, used) for key, value in optimizer.state.get(p, {}).items()}
                for group in optimizer.param_groups
                for p in group["params"]
                if id(p) in lasting
            }
            for optimizer in optimizers
        ]
        self._groups = [
            [{k: copy.deepcopy(v) for k, v in group.items() if k not in _SCHEDULED} for group in optimizer.param_groups]
            for optimizer in optimizers
        ]
        self._optimizers = list(optimizers)
        self._events = {id(grown): grown.event for grown in _all_grown(modules)}
        self._counters = [_counters(layer) for module in modules for layer in _hybrid(module)]
        self._memory = used

    def _copy(self, tensor: Tensor, used: dict[int, Tensor]) -> Tensor:
        source = local_part(tensor.detach())
        target = self._memory.get(id(tensor))
        if target is None or target.shape != source.shape or target.dtype != source.dtype:
            target = torch.empty(source.shape, dtype=source.dtype, pin_memory=source.is_cuda)
        used[id(tensor)] = target
        return target.copy_(source, non_blocking=True)

    def _keep(self, value: Any, used: dict[int, Tensor]) -> Any:
        return self._copy(value, used) if isinstance(value, Tensor) else copy.deepcopy(value)

    @property
    def nbytes(self) -> int:
        """Memory that it takes on the CPU, in bytes."""
        return sum(t.nbytes for t in self._memory.values())

    @torch.no_grad()
    def restore(self) -> None:
        """Put everything back in place; gradients are dropped, learning rates stay where their schedule is."""
        if any(tensor.is_cuda for tensor, _, _ in self._tensors):
            torch.cuda.synchronize()  # the copies to the CPU have arrived
        for tensor, owner, value in self._tensors:
            if self._unchanged(owner):
                local_part(tensor.detach()).copy_(value)
        owners = {id(tensor): owner for tensor, owner, _ in self._tensors}
        for optimizer, moments, groups in zip(self._optimizers, self._moments, self._groups, strict=True):
            for parameter, state in moments.items():
                if self._unchanged(owners[id(parameter)]):
                    _restore_state(optimizer, parameter, state)
            for group, saved in zip(optimizer.param_groups, groups, strict=True):
                group.update(copy.deepcopy(saved))
            optimizer.zero_grad(set_to_none=True)
        for put_back in self._counters:
            put_back(self._unchanged)

    def _unchanged(self, owner: GrownParameters | None) -> bool:
        """Whether a bed still holds what it held; the host always does."""
        return owner is None or (not owner.free and owner.event == self._events[id(owner)])


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
        self._calm_since = 0
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
            self.take(step)
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
        losses = torch.stack([torch.as_tensor(loss).float() for loss in _one_device(self._waiting)])
        self._waiting.clear()
        if _distributed():
            dist.all_reduce(losses)  # one rank's NaN is everybody's
            losses /= dist.get_world_size()
        return losses.tolist()

    def check_weights(self) -> Divergence | None:
        """Look whether all weights of host and fossils are finite, on all ranks."""
        weights = [local_part(t.detach()) for t, _ in _lasting([self.model]) if t.is_floating_point()]
        norms = torch._foreach_norm([w for w in weights if w.numel()], ord=1)
        sound = torch.stack([norm.float().isfinite() for norm in norms]).all().to(torch.int32)
        if _distributed():
            dist.all_reduce(sound, op=dist.ReduceOp.MIN)
        return None if bool(sound) else Divergence("weights are not finite")

    # ------------------------------------------------------------------ snapshots
    def _is_time(self, step: int) -> bool:
        return self.snapshot is None or step - self.snapshot.step >= self.config.every_n_steps

    def take(self, step: int) -> None:
        """Make a snapshot now."""
        if self.watching:
            self.snapshot = Snapshot([self.model, *self.averages()], self.optimizers, step, previous=self.snapshot)

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
        """What was seen of the losses, as plain values; the checkpoint itself takes the place of the snapshot."""
        return {
            "history": list(self.watch.history),
            "recent": list(self.watch.recent),
            "waiting": self.waiting,
            "steps": self._steps,
            "rollbacks": self.rollbacks,
            "stood_down": self._stood_down,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave."""
        self.watch.history.extend(state["history"])
        self.watch.recent.extend(state["recent"])
        self.waiting = state["waiting"]
        self._steps, self.rollbacks = state["steps"], state["rollbacks"]
        self._stood_down = state["stood_down"]


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _one_device(losses: Iterable[Tensor | float]) -> Iterator[Tensor | float]:
    """Losses of a resumed run are numbers, later ones lie on the device."""
    losses = list(losses)
    device = next((loss.device for loss in losses if isinstance(loss, Tensor)), None)
    for loss in losses:
        yield loss if isinstance(loss, Tensor) else torch.tensor(loss, device=device)


def _hybrid(module: nn.Module) -> list[HybridKasminaLayer]:
    return [layer for layer in module.modules() if isinstance(layer, HybridKasminaLayer)]


def _all_grown(modules: Iterable[nn.Module]) -> Iterator[GrownParameters]:
    for module in modules:
        for layer in _hybrid(module):
            yield from layer.morpho.grown()


def _lasting(modules: Iterable[nn.Module]) -> Iterator[tuple[Tensor, GrownParameters | None]]:
    """Parameters and buffers of hosts and fossils, with the bed or link that owns them."""
    modules = list(modules)
    owners = {id(t): grown for grown in _all_grown(modules) for t in (*grown.parameters(), *grown.buffers())}
    for module in modules:
        for tensor in (*module.parameters(), *module.buffers()):
            owner = owners.get(id(tensor))
            if owner is None or _lasts(owner):
                yield tensor, owner


def _lasts(grown: GrownParameters) -> bool:
    """Whether a bed holds a fossil; a link lasts as long as it is there."""
    return bool(grown.kept.any()) if isinstance(grown, Bed) else not grown.free


def _restore_state(optimizer: Optimizer, parameter: Tensor, saved: Mapping[str, Any]) -> None:
    """Put an optimizer's memory of one parameter back, into the same tensors where they exist."""
    if not saved:
        optimizer.state.pop(parameter, None)
        return
    state = optimizer.state[parameter]
    for key in [key for key in state if key not in saved]:
        del state[key]
    for key, value in saved.items():
        if isinstance(value, Tensor) and isinstance(state.get(key), Tensor):
            local_part(state[key]).copy_(value)
        else:
            state[key] = value.to(parameter.device, copy=True) if isinstance(value, Tensor) else copy.deepcopy(value)


def _counters(layer: HybridKasminaLayer) -> Callable[[Callable[[GrownParameters], bool]], None]:
    """How to put the counters of a layer and its fossils back, and which hidden units were alive."""
    seeds = layer.morpho
    steps, alive = seeds.steps, seeds.host_alive.copy()
    beds = [(bed, bed.steps, bed.alive.copy() if isinstance(bed, Bed) else None) for bed in seeds.grown()]

    def put_back(unchanged: Callable[[GrownParameters], bool]) -> None:
        seeds.steps = steps
        seeds.host_alive[:] = alive
        for bed, bed_steps, bed_alive in beds:
            if not bed.free and unchanged(bed):
                bed.steps = bed_steps
                if isinstance(bed, Bed) and isinstance(bed_alive, np.ndarray):
                    bed.alive[:] = bed_alive

    return put_back
