"""Errors of seeds: kept away from the host in every pass, at no device sync, and looked for once a tick."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from lightning_morpho.blueprints import Blueprint
from lightning_morpho.layers.beds import Bed, GrownParameters, local_part

if TYPE_CHECKING:
    from lightning_morpho.layers.seeds import SeedBeds

log = logging.getLogger(__name__)


class _Guard(torch.autograd.Function):
    """A seed's source as it is; what is not finite in the gradient that the seed sends back is left out."""

    generate_vmap_rule = True

    @staticmethod
    def forward(source: Tensor) -> Tensor:
        return source.view_as(source)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return torch.nan_to_num(grad, 0.0, 0.0, 0.0)


class _AddContained(torch.autograd.Function):
    """The sum; torch's own gradient of ``nan_to_num`` takes five more passes and keeps what was cleaned."""

    generate_vmap_rule = True

    @staticmethod
    def forward(y: Tensor, delta: Tensor) -> Tensor:
        return y + contained(delta)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        return grad, grad


def guarded(source: Tensor) -> Tensor:
    """What a seed reads; the host gets a finite gradient back through it, whatever the seed computes.

    Example:
        >>> x = torch.ones(2, requires_grad=True)
        >>> (guarded(x) * torch.tensor([2.0, torch.inf])).sum().backward()
        >>> x.grad
        tensor([2., 0.])
    """
    if not (source.requires_grad and torch.is_grad_enabled()):
        return source
    result: Tensor = _Guard.apply(source)
    return result


def contained(delta: Tensor) -> Tensor:
    """What a seed changes, without what is not finite.

    Example:
        >>> contained(torch.tensor([1.0, torch.nan, -torch.inf]))
        tensor([1., 0., 0.])
    """
    return torch.nan_to_num(delta, 0.0, 0.0, 0.0)


def add_contained(y: Tensor, delta: Tensor) -> Tensor:
    """What a seed adds to ``y``, without what is not finite.

    The gradient of ``delta`` is passed on as it is: it reaches the seed's own parameters and, by :func:`guarded`, its
    source, where what is not finite is left out.

    Example:
        >>> add_contained(torch.ones(2), torch.tensor([1.0, torch.nan]))
        tensor([2., 1.])
    """
    if not torch.is_grad_enabled():
        return y + contained(delta)
    result: Tensor = _AddContained.apply(y, delta)
    return result


def contain_gradients_(bed: GrownParameters) -> None:
    """Leave out what is not finite in a bed's gradients: it would spoil the norm that clipping takes over all."""
    for parameter in bed.parameters():
        if parameter.grad is not None:
            local_part(parameter.grad).nan_to_num_(0.0, 0.0, 0.0)


def is_seeds_own(error: Exception) -> bool:
    """Whether an exception is a blueprint's error: out of memory and a device in trouble are not."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or type(error).__name__ == "AcceleratorError":
        return False
    return not any(text in str(error) for text in ("allocate memory", "not enough memory", "CUDA error"))


class FaultWatch:
    """Which seeds of a layer erred since the last tick.

    Args:
        blueprint: Kind of network and geometry of the layer.
    """

    def __init__(self, blueprint: Blueprint) -> None:
        self.blueprint = blueprint
        self.looked = False
        self._raised: set[int] = set()
        self._found: dict[int, Tensor] = {}

    def note_raised(self, index: int, error: Exception) -> None:
        """A bed's networks raised an exception."""
        if index not in self._raised:
            log.warning("Blueprint `%s` raised, it is left out until the next tick: %r", self.blueprint.kind, error)
        self._raised.add(index)

    def raised(self, index: int) -> bool:
        """Whether a bed's networks raised since the last tick."""
        return index in self._raised

    @torch.no_grad()
    def look(self, index: int, source: Tensor, delta: Tensor) -> None:
        """Note, on the device, which chunks of a bed give something that is not finite though their source is.

        Args:
            index: The bed.
            source: What its networks read.
            delta: What they gave, in the layer's output layout.
        """
        chunks = self.blueprint.site.chunks
        sums = self.blueprint.site.to_columns(delta).float().reshape(-1, chunks.num_features).sum(0)
        broken = chunks.reduce_mean((~sums.isfinite()).float()) > 0
        self._found[index] = broken & source.float().sum().isfinite()

    @torch.no_grad()
    def take(self, beds: Mapping[int, Bed]) -> dict[int, list[int]]:
        """Chunks at fault by bed, over all ranks; non-finite parameters are set to zero on the way.

        One read from the device; where nothing lives, none.
        """
        self.looked = False
        if not beds:
            return {}
        rows = torch.stack([self._fault(index, bed) for index, bed in beds.items()]).int()
        self._raised.clear()
        self._found.clear()
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(rows, dist.ReduceOp.MAX)
        found = {index: row for index, row in zip(beds, rows.tolist(), strict=True) if any(row)}
        for index in found:
            for parameter in beds[index].parameters():
                local_part(parameter).nan_to_num_(0.0, 0.0, 0.0)
            beds[index].stale = True
        return {index: [c for c, broken in enumerate(row) if broken] for index, row in found.items()}

    def _fault(self, index: int, bed: Bed) -> Tensor:
        parts = [local_part(p).float().sum() for p in bed.parameters()]
        broken = ~torch.stack(parts).sum().isfinite() | (index in self._raised)
        rows = broken.expand(self.blueprint.site.chunks.num_chunks)
        found = self._found.get(index)
        return rows if found is None else rows | found.to(rows.device)

    def state_dict(self) -> dict[str, Any]:
        """What was found since the last tick on this rank, as plain values; waits for the device if there is any."""
        found = [[index, broken.tolist()] for index, broken in self._found.items()]
        return {"looked": self.looked, "raised": sorted(self._raised), "found": found}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave."""
        self.looked = state["looked"]
        self._raised = set(state["raised"])
        self._found = {index: torch.tensor(broken) for index, broken in state["found"]}


def count_faults_(seeds: SeedBeds) -> None:
    """Count the errors since the last tick against their seeds; at a tick, on all ranks."""
    for index, chunks in seeds.faults.take(seeds.live_beds()).items():
        own = [c for c in chunks if seeds.state.bed[c] == index]
        kept = [c for c in chunks if seeds.bed_at(index).kept[c]]
        if kept:
            log.warning("Layer `%s`: kept seeds of chunks %s gave what is not finite; contained.", seeds.name, kept)
        seeds.starvation.forget(index)  # it erred: that it gave no gradient is no wonder
        seeds.record_errors(own, reason="gave what is not finite, or raised")
