"""Blend weights as tensors on the device, so that ``torch.func.vmap`` can run over them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import numpy as np
from torch import Tensor

from lightning_morpho.layers.seeds import SeedBeds


def muting_factors(seeds: SeedBeds, chunks: Iterable[int]) -> np.ndarray:
    """What :func:`scaled` needs to take the current seeds of some chunks out: 0 for them, else 1.

    Args:
        seeds: Seeds of a layer; at least one bed is live.
        chunks: Chunks whose seeds are left out. Fossils of earlier seeds stay.

    Returns:
        ``(live beds, chunks)``, float32.
    """
    live = [i for i in range(len(seeds.beds)) if not seeds.bed_at(i).free]
    factors = np.ones((len(live), len(seeds.state)), dtype=np.float32)
    for chunk in chunks:
        factors[[index == seeds.state.bed[chunk] for index in live], chunk] = 0
    return factors


@contextlib.contextmanager
def scaled(seeds: SeedBeds, factors: Tensor, every: np.ndarray) -> Iterator[None]:
    """Multiply the blend weights of a layer's live beds for a while; nothing is read from the device.

    Args:
        seeds: Seeds of the layer.
        factors: ``(live beds, chunks)`` in [0, 1], on the layer's device; under ``vmap`` those of one replica.
        every: Those of all replicas, ``(replicas, live beds, chunks)``.
    """
    plan = seeds.plan
    try:
        seeds.plan = None if plan is None else plan.scaled(factors, every)
        yield
    finally:
        seeds.plan = plan
