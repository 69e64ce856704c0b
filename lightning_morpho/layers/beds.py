"""A bed: the pre-allocated parameters of one germination event, and who lies in it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from lightning_morpho.blueprints import Blueprint


def derived_generator(*identity: object) -> torch.Generator:
    """CPU generator that depends on the identity alone: equal on every rank, no global state touched.

    Example:
        >>> a, b = derived_generator(0, "net.0", 1), derived_generator(0, "net.0", 1)
        >>> torch.equal(torch.rand(3, generator=a), torch.rand(3, generator=b))
        True
    """
    digest = hashlib.sha256(repr(identity).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def local_part(tensor: Tensor) -> Tensor:
    """The part of a sharded tensor that lies on this rank, sharing its memory; any other tensor as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def write_(parameter: Tensor, value: Tensor) -> None:
    """Set a parameter, sharded or not, to a full value that every rank has."""
    with torch.no_grad():
        if isinstance(parameter, DTensor):
            mesh, placements = parameter.device_mesh, parameter.placements
            value = distribute_tensor(value.to(parameter.device), mesh, placements, src_data_rank=None).to_local()
        local_part(parameter).copy_(value)


class GrownParameters(nn.Module):
    """Parameters that are allocated when the layer is swapped and lie ready until a germination takes them.

    While free they are zero and have ``requires_grad=False``.

    Attributes:
        event: Number of the layer's germination event that took them, -1 while free.
        steps: Optimizer steps since then.
        warmup: Optimizer steps of the newborn warm-up.
        stale: Whether optimizers may still hold state of an earlier use.
        paused: Whether its layer is switched off: then nothing may move it.
        resting: Whether it waits: taken, but not trained yet.
        rate: Share of the optimizer's update that it makes after its warm-up.
        lent: Whether it takes part in compiled graphs although it is free: it adds exactly zero.
        waiting: Whether it was loaded before its first step and waits for the optimizers' state to be loaded.
    """

    def __init__(self) -> None:
        super().__init__()
        self.event = -1
        self.steps = 0
        self.warmup = 0
        self.stale = False
        self.paused = False
        self.resting = False
        self.rate = 1.0
        self.lent = False
        self._trained = False
        self.waiting = False

    def allocate(self, shapes: Mapping[str, tuple[int, ...]], like: Tensor) -> None:
        """Register zero parameters of these shapes."""
        for name, shape in shapes.items():
            value = torch.zeros(shape, device=like.device, dtype=like.dtype)
            self.register_parameter(name, nn.Parameter(value, requires_grad=False))

    @property
    def free(self) -> bool:
        """Whether no germination has taken them."""
        return self.event < 0

    @property
    def newborn(self) -> bool:
        """Whether the warm-up still runs."""
        return not self.free and self.steps < self.warmup

    @property
    def moving(self) -> bool:
        """Whether optimizers may move them."""
        return not (self.free or self.paused or self.resting)

    @property
    def share(self) -> float:
        """Share of the optimizer's update that the next step makes, in (0, 1]."""
        return min(self.rate, (self.steps + 1) / self.warmup) if self.newborn else self.rate

    @property
    def numel(self) -> int:
        """Number of parameters."""
        return sum(p.numel() for p in self.parameters())

    def values(self) -> dict[str, Tensor]:
        """Parameters by name."""
        return dict(self.named_parameters(recurse=False))

    def count_step(self) -> None:
        """One optimizer step was made."""
        self.steps += 1

    def take(self, event: int, warmup: int) -> None:
        """Start to train: fresh, and without optimizer state."""
        self._set_trainable(True)
        self.event, self.steps, self.warmup, self.stale, self.lent = event, 0, warmup, True, False
        self.resting, self.rate = False, 1.0

    def rest(self, on: bool) -> None:
        """Wait, or start to train; no optimizer moves what waits."""
        if on != self.resting:
            self.resting = on
            self._set_trainable(not on)

    def lend(self, on: bool) -> None:
        """Look like a live one to a compiled graph, or no longer. Its gradients are to be dropped."""
        self.lent = on and self.free
        if self.free:
            self._set_trainable(self.lent)

    def show(self) -> None:
        """Look trainable while optimizers are made, that they take it."""
        self._trained = any(p.requires_grad for p in self.parameters())
        self.requires_grad_(True)

    def hide(self) -> None:
        """Look as before :meth:`show`; a free one never trains."""
        self.requires_grad_(self._trained and not self.free)

    def give_back(self) -> None:
        """Become free again."""
        with torch.no_grad():
            for parameter in self.parameters():
                local_part(parameter).zero_()
        self._set_trainable(False)
        self.event, self.steps, self.warmup, self.stale = -1, 0, 0, True
        self.resting, self.rate = False, 1.0

    def _set_trainable(self, trainable: bool) -> None:
        for parameter in self.parameters():
            parameter.requires_grad_(trainable)
            parameter.grad = None

    def to_dict(self) -> dict[str, Any]:
        """Everything but the parameters, as plain values."""
        return {
            "event": self.event,
            "steps": self.steps,
            "warmup": self.warmup,
            "stale": self.stale,
            "resting": self.resting,
            "trainable": not self.free and (self.waiting or any(p.requires_grad for p in self.parameters())),
        }

    def load_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`to_dict` gave."""
        self.event, self.steps, self.warmup = state["event"], state["steps"], state["warmup"]
        self.stale, self.resting = state["stale"], state.get("resting", False)
        # A sharded checkpoint must hold optimizer state for all that is trainable, and has none of a newborn yet.
        sharded = any(isinstance(p, DTensor) for p in self.parameters())
        self.waiting = sharded and state["trainable"] and self.steps == 0
        self._set_trainable(state["trainable"] and not self.waiting)

    def wake(self) -> None:
        """The optimizers' state is loaded: train on."""
        if self.waiting:
            self.waiting = False
            self._set_trainable(True)


class Bed(GrownParameters):
    """Parameters of one germination event, and who lies in it.

    Args:
        blueprint: Kind of network.
        like: Tensor whose device and dtype the parameters take: the base layer's weight.

    Attributes:
        norms: Norms of its own, one for each norm of the host that new hidden units pass.
        occupied: Which chunks have a seed here, bool ``(N,)``.
        kept: Which of them are fossils, bool ``(N,)``.
        generation: Generation of each of these seeds, ``(N,)``.
        kept_alpha: Blend weight of each fossil, ``(N,)``.
        alive: Which of its hidden units are not dead, bool; all of them, until the sizing rule removes some.
        revivals: How often its seeds starved and it got new parameters.
    """

    _FIELDS = ("occupied", "kept", "generation", "kept_alpha", "alive")

    def __init__(self, blueprint: Blueprint, like: Tensor) -> None:
        super().__init__()
        self.allocate(blueprint.shapes(), like)
        self.norms = nn.ModuleList(norm.to(like.device, like.dtype) for norm in blueprint.norms())
        self.norms.requires_grad_(False)
        chunks = blueprint.site.chunks.num_chunks
        self.occupied = np.zeros(chunks, dtype=np.bool_)
        self.kept = np.zeros(chunks, dtype=np.bool_)
        self.generation = np.zeros(chunks, dtype=np.int32)
        self.kept_alpha = np.zeros(chunks, dtype=np.float32)
        self.alive = np.ones(blueprint.units, dtype=np.bool_)
        self.revivals = 0
        self._held: dict[str, Tensor] = {}

    def hold(self, name: str, value: Tensor) -> Tensor:
        """Put what a plan needs besides parameters on their device, always into the same memory.

        Compiled code takes it for something that never moves; so a captured CUDA graph reads the new value.
        """
        device = next(self.parameters()).device
        held = self._held.get(name)
        if held is None or held.device != device or held.shape != value.shape:
            # `to` would give a caller's tensor back on its own device.
            held = self._held[name] = torch.empty_like(value, device=device)
        return held.copy_(value)

    @property
    def free(self) -> bool:
        """Whether no chunk has a seed here."""
        return not np.count_nonzero(self.occupied)

    def open(
        self,
        blueprint: Blueprint,
        chunks: Sequence[int],
        generations: Sequence[int],
        event: int,
        warmup: int,
        generator: torch.Generator,
    ) -> None:
        """Take the bed for one germination event: new parameters, trainable, no optimizer state."""
        self.occupied[list(chunks)] = True
        self.fill(blueprint, generator)
        self.generation[list(chunks)] = generations
        self.alive[:] = True
        self.revivals = 0
        self.take(event, warmup)

    def fill(self, blueprint: Blueprint, generator: torch.Generator) -> None:
        """Draw new parameters, whose output is exactly zero."""
        values = {name: torch.zeros(shape) for name, shape in blueprint.shapes().items()}
        blueprint.reset_(values, generator)
        for name, parameter in self.values().items():
            if blueprint.source == "chunk":  # rows without a seed stay zero: weight decay has nothing to move
                values[name][torch.from_numpy(~self.occupied)] = 0
            write_(parameter, values[name])
        for norm in self._batch_norms():
            norm.reset_parameters()

    def count_step(self) -> None:
        """One optimizer step was made; after the first, norms forget their initial statistics."""
        if self.steps == 0:
            for norm in self._batch_norms():
                _forget_initial_statistics_(norm)
        super().count_step()

    def _batch_norms(self) -> Iterator[nn.modules.batchnorm._BatchNorm]:
        for norm in self.norms:
            assert isinstance(norm, nn.modules.batchnorm._BatchNorm)
            yield norm

    def release(self, chunk: int, train_fossils: bool) -> None:
        """Remove one seed; the last one to leave frees the bed."""
        self.occupied[chunk] = False
        self.kept[chunk] = False
        self.kept_alpha[chunk] = 0
        if self.free:
            self.give_back()
        else:
            self._settle(train_fossils)

    def keep(self, chunk: int, alpha: float, train_fossils: bool) -> None:
        """Make one seed a fossil; a bed of fossils alone stops training unless ``train_fossils``."""
        self.kept[chunk] = True
        self.kept_alpha[chunk] = alpha
        self._settle(train_fossils)

    def _settle(self, train_fossils: bool) -> None:
        if not train_fossils and not (self.occupied & ~self.kept).any():
            self._set_trainable(False)

    def pause(self, paused: bool) -> None:
        """Stand still, or go on; gradients of before are dropped."""
        self.paused = paused
        if paused:
            for parameter in self.parameters():
                parameter.grad = None

    def to_dict(self) -> dict[str, Any]:
        """Everything but the parameters, as plain values."""
        state: dict[str, Any] = {name: getattr(self, name).tolist() for name in self._FIELDS}
        return state | {"revivals": self.revivals} | super().to_dict()

    def load_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`to_dict` gave."""
        for name in self._FIELDS:
            getattr(self, name)[:] = state.get(name, True)  # beds of older checkpoints have no dead units
        self.revivals = state.get("revivals", 0)
        super().load_dict(state)


@torch.no_grad()
def _forget_initial_statistics_(norm: nn.modules.batchnorm._BatchNorm) -> None:
    """Make running statistics the weighted mean of the batches seen, as if they had no initial value.

    They start at mean 0 and variance 1, which after n updates with momentum m still weigh (1 - m)^n:
    held-out measurements of a newborn would be wrong by that.
    """
    if norm.running_mean is None or norm.running_var is None or norm.momentum is None:
        return
    assert norm.num_batches_tracked is not None
    rest = (1 - norm.momentum) ** int(norm.num_batches_tracked)
    if rest < 1:
        norm.running_mean /= 1 - rest
        norm.running_var.sub_(rest).div_(1 - rest).clamp_(min=0)
