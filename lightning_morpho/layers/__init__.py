"""Hybrid chunked layers and the seeds that live in them."""

from lightning_morpho.layers.beds import Bed
from lightning_morpho.layers.hybrid import (
    ChunkedKasminaLayer,
    HybridKasminaLayer,
    attach_,
    detach_,
    plan_blueprint,
)
from lightning_morpho.layers.seeds import SeedBeds, Transition

__all__ = [
    "Bed",
    "ChunkedKasminaLayer",
    "HybridKasminaLayer",
    "SeedBeds",
    "Transition",
    "attach_",
    "detach_",
    "plan_blueprint",
]
