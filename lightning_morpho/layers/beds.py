"""A bed: the pre-allocated parameters of one germination event, and who lies in it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
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


class Bed(nn.Module):
    """Parameters of one germination event, allocated when the layer is swapped, free until it is used.

    A free bed has ``requires_grad=False`` and zero parameters.

    Args:
        blueprint: Kind of network.
        like: Tensor whose device and dtype the parameters take: the base layer's weight.

    Attributes:
        occupied: Which chunks have a seed here, bool ``(N,)``.
        kept: Which of them are fossils, bool ``(N,)``.
        generation: Generation of each of these seeds, ``(N,)``.
        kept_alpha: Blend weight of each fossil, ``(N,)``.
        event: Number of the layer's germination event that took it, -1 while free.
        steps: Optimizer steps since the germination.
        warmup: Optimizer steps of the newborn warm-up.
        stale: Whether optimizers may still hold state of an earlier use.
        paused: Whether its layer is switched off: then nothing may move it.
    """

    _FIELDS = ("occupied", "kept", "generation", "kept_alpha")

    def __init__(self, blueprint: Blueprint, like: Tensor) -> None:
        super().__init__()
        for name, shape in blueprint.shapes().items():
            value = torch.zeros(shape, device=like.device, dtype=like.dtype)
            self.register_parameter(name, nn.Parameter(value, requires_grad=False))
        chunks = blueprint.site.chunks.num_chunks
        self.occupied = np.zeros(chunks, dtype=np.bool_)
        self.kept = np.zeros(chunks, dtype=np.bool_)
        self.generation = np.zeros(chunks, dtype=np.int32)
        self.kept_alpha = np.zeros(chunks, dtype=np.float32)
        self.event = -1
        self.steps = 0
        self.warmup = 0
        self.stale = False
        self.paused = False

    @property
    def free(self) -> bool:
        """Whether no chunk has a seed here."""
        return not self.occupied.any()

    @property
    def newborn(self) -> bool:
        """Whether the warm-up still runs."""
        return not self.free and self.steps < self.warmup

    @property
    def numel(self) -> int:
        """Number of parameters."""
        return sum(p.numel() for p in self.parameters())

    def values(self) -> dict[str, Tensor]:
        """Parameters by name."""
        return dict(self.named_parameters(recurse=False))

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
        values = {name: torch.zeros(shape) for name, shape in blueprint.shapes().items()}
        blueprint.reset_(values, generator)
        for name, parameter in self.named_parameters():
            if blueprint.source == "chunk":  # rows without a seed stay zero: weight decay has nothing to move
                values[name][torch.from_numpy(~self.occupied)] = 0
            write_(parameter, values[name])
        self._set_trainable(True)
        self.generation[list(chunks)] = generations
        self.event, self.steps, self.warmup, self.stale = event, 0, warmup, True

    def release(self, chunk: int, train_fossils: bool) -> None:
        """Remove one seed; the last one to leave frees the bed."""
        self.occupied[chunk] = False
        self.kept[chunk] = False
        self.kept_alpha[chunk] = 0
        if not self.free:
            self._settle(train_fossils)
            return
        with torch.no_grad():
            for parameter in self.parameters():
                local_part(parameter).zero_()
        self._set_trainable(False)
        self.event, self.steps, self.warmup, self.stale = -1, 0, 0, True

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

    def _set_trainable(self, trainable: bool) -> None:
        for parameter in self.parameters():
            parameter.requires_grad_(trainable)
            parameter.grad = None

    def to_dict(self) -> dict[str, Any]:
        """Everything but the parameters, as plain values."""
        state: dict[str, Any] = {name: getattr(self, name).tolist() for name in self._FIELDS}
        trainable = any(p.requires_grad for p in self.parameters())
        return state | {
            "event": self.event,
            "steps": self.steps,
            "warmup": self.warmup,
            "stale": self.stale,
            "trainable": trainable,
        }

    def load_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`to_dict` gave."""
        for name in self._FIELDS:
            getattr(self, name)[:] = state[name]
        self.event, self.steps, self.warmup = state["event"], state["steps"], state["warmup"]
        self.stale = state["stale"]
        self._set_trainable(state["trainable"])
