"""Kinds of network that seeds grow."""

from lightning_morpho.blueprints.base import Blueprint, blueprint_type, register_blueprint, uniform_
from lightning_morpho.blueprints.block import Block
from lightning_morpho.blueprints.mlp import ChunkMLP
from lightning_morpho.blueprints.neurons import Neurons
from lightning_morpho.blueprints.site import Site, is_eligible_type
from lightning_morpho.blueprints.span import Route, Span

__all__ = [
    "Block",
    "Blueprint",
    "ChunkMLP",
    "Neurons",
    "Route",
    "Site",
    "Span",
    "blueprint_type",
    "is_eligible_type",
    "register_blueprint",
    "uniform_",
]
