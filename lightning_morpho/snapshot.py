"""Snapshots: host and fossils as they were, to go back to."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_morpho.layers import HybridKasminaLayer
from lightning_morpho.layers.beds import Bed, GrownParameters, local_part

_SCHEDULED = {"params", "lr", "initial_lr", "max_lr", "min_lr", "momentum", "base_momentum", "max_momentum", "betas"}
"""Entries of a parameter group that belong to the learning-rate schedule, whose time goes on."""


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
        self._tensors = [(tensor, owner, self._copy(tensor, used)) for tensor, owner in lasting_tensors(modules)]
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


def _hybrid(module: nn.Module) -> list[HybridKasminaLayer]:
    return [layer for layer in module.modules() if isinstance(layer, HybridKasminaLayer)]


def _all_grown(modules: Iterable[nn.Module]) -> Iterator[GrownParameters]:
    for module in modules:
        for layer in _hybrid(module):
            yield from layer.morpho.grown()


def lasting_tensors(modules: Iterable[nn.Module]) -> Iterator[tuple[Tensor, GrownParameters | None]]:
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
