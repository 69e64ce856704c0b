"""Kinds of network that seeds grow."""

from lightning_morpho.blueprints.affine import Affine
from lightning_morpho.blueprints.base import Blueprint, blueprint_type, register_blueprint, uniform_
from lightning_morpho.blueprints.block import Block
from lightning_morpho.blueprints.glu import GLU
from lightning_morpho.blueprints.lowrank import LowRank
from lightning_morpho.blueprints.mlp import ChunkMLP
from lightning_morpho.blueprints.module import ModuleFactory, register_module_blueprint
from lightning_morpho.blueprints.neurons import Neurons
from lightning_morpho.blueprints.site import Site, is_eligible_type
from lightning_morpho.blueprints.span import Route, Span

__all__ = [
    "Affine",
    "Block",
    "Blueprint",
    "ChunkMLP",
    "GLU",
    "LowRank",
    "ModuleFactory",
    "Neurons",
    "Route",
    "Site",
    "Span",
    "blueprint_type",
    "is_eligible_type",
    "register_blueprint",
    "register_module_blueprint",
    "uniform_",
]
