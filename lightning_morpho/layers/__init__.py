"""Hybrid chunked layers and the seeds that live in them."""

from lightning_morpho.layers.beds import Bed, GrownParameters
from lightning_morpho.layers.hybrid import (
    ChunkedKasminaLayer,
    HybridKasminaLayer,
    attach_,
    detach_,
    plan_blueprint,
    plan_route,
    strip_,
)
from lightning_morpho.layers.seeds import SeedBeds
from lightning_morpho.layers.span import allocate_links_, connect_
from lightning_morpho.layers.stages import StageMachine
from lightning_morpho.layers.taps import Tap, clear_taps
from lightning_morpho.layers.transitions import Transition
from lightning_morpho.layers.units import HiddenLayer, dead_parameters, hidden_layers

__all__ = [
    "Bed",
    "ChunkedKasminaLayer",
    "GrownParameters",
    "HiddenLayer",
    "HybridKasminaLayer",
    "SeedBeds",
    "StageMachine",
    "Tap",
    "Transition",
    "allocate_links_",
    "attach_",
    "clear_taps",
    "connect_",
    "dead_parameters",
    "detach_",
    "hidden_layers",
    "plan_blueprint",
    "plan_route",
    "strip_",
]
