"""Which implementation computes a layer's seeds: one table of measured regimes."""

from __future__ import annotations

import importlib
import logging
from enum import Enum
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_morpho.kernels.activations import ACTIVATIONS
from lightning_morpho.kernels.geometry import ChunkMLPs

log = logging.getLogger(__name__)


class Backend(Enum):
    """An implementation of the seeds' networks."""

    FUSED = "fused"
    """Triton kernels: tiles of whole chunks, one pass over the activations."""
    BATCHED = "batched"
    """Batched matrix products with a hand-written backward pass."""
    REFERENCE = "reference"
    """Plain differentiable operations, whatever the device, dtype or transform."""


class Regime(NamedTuple):
    """Where a backend is the fastest that is exact enough.

    Attributes:
        backend: The backend.
        device: Device type.
        dtypes: Dtypes of the layer's output.
        max_width: Widest chunk, in features.
        max_hidden: Most hidden units of a chunk.
        shared_memory: Bytes of a multiprocessor's shared memory that a program takes.
    """

    backend: Backend
    device: str
    dtypes: tuple[torch.dtype, ...]
    max_width: int
    max_hidden: int
    shared_memory: int = 0


_ANY = 1 << 31
_HALF = (torch.bfloat16, torch.float16)
_FULL = (torch.float32, torch.float64)

REGIMES: tuple[Regime, ...] = (
    # Bandwidth decides up to 64 features a chunk; from 128 on cuBLAS does more of the work per byte.
    Regime(Backend.FUSED, "cuda", _HALF, 32, 64, shared_memory=41_000),
    Regime(Backend.FUSED, "cuda", _HALF, 64, 128, shared_memory=132_000),
    # By three tf32 products each, as exact as IEEE float32 here; by one where tf32 is allowed.
    Regime(Backend.FUSED, "cuda", (torch.float32,), 32, 64, shared_memory=132_000),
    Regime(Backend.BATCHED, "cuda", (*_HALF, *_FULL), _ANY, _ANY),
    Regime(Backend.BATCHED, "cpu", (*_HALF, *_FULL), _ANY, _ANY),
)
"""First match wins; what matches none takes the reference. ``benchmarks/README.md`` has the figures."""


@cache
def triton_problem() -> str | None:
    """Why the fused kernels can't be used here, None if they can. Logged once."""
    problem = _look_for_triton()
    if problem is not None and torch.cuda.is_available():
        log.warning("%s: seeds are computed by batched matrix products, several times slower.", problem)
    return problem


def _look_for_triton() -> str | None:
    if not torch.cuda.is_available():
        return "no CUDA device"
    if torch.cuda.get_device_capability() < (8, 0):
        return "the GPU is older than the Ampere generation"
    try:
        importlib.import_module("lightning_morpho.kernels.triton").probe()
    except Exception as error:  # noqa: BLE001  a broken installation raises anything
        return f"Triton is missing or broken ({type(error).__name__}: {error})"
    return None


@cache
def shared_memory() -> int:
    """Bytes of shared memory that a fused kernel may take on the present GPU, 0 where there are no fused kernels."""
    if triton_problem() is not None:
        return 0
    gpu = torch.cuda.get_device_properties(torch.cuda.current_device())
    return int(getattr(gpu, "shared_memory_per_block_optin", gpu.shared_memory_per_block))


def choose_backend(y: Tensor, networks: ChunkMLPs, *, memory: int) -> Backend:
    """The backend for a layer's output.

    Args:
        y: The output.
        networks: Shapes of the seeds' networks.
        memory: Shared memory for fused kernels, as :func:`shared_memory` gives it; 0: use none. Asked for
            beforehand: looking for Triton here would end up in the graph of a compiled model.

    Example:
        >>> from lightning_morpho.chunks import ChunkManager
        >>> networks = ChunkMLPs(ChunkManager(8, 2), 0, 8, "relu")
        >>> [choose_backend(torch.zeros(3, 8, device=d), networks, memory=0) for d in ("cpu", "meta")]
        [<Backend.BATCHED: 'batched'>, <Backend.REFERENCE: 'reference'>]
    """
    if networks.activation not in ACTIVATIONS or torch._C._are_functorch_transforms_active():
        return Backend.REFERENCE
    width, device, dtype = networks.chunks.max_width, y.device.type, y.dtype
    for regime in REGIMES:
        fits = width <= regime.max_width and networks.hidden <= regime.max_hidden
        fits = fits and regime.device == device and dtype in regime.dtypes
        if fits and (regime.backend is not Backend.FUSED or 0 < regime.shared_memory <= memory):
            return regime.backend
    return Backend.REFERENCE
