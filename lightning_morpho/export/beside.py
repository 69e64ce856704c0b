"""Seeds that become plain modules beside their layer."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from lightning_morpho.blueprints import Blueprint
from lightning_morpho.export.folding import folds, live_beds, row_alpha
from lightning_morpho.export.pruning import drop_dead_units_, is_silent
from lightning_morpho.grafting import weighted
from lightning_morpho.layers import HybridKasminaLayer
from lightning_morpho.pairs import find_pairs
from lightning_morpho.pairs.operations import LAYERS


@dataclass(frozen=True)
class Side:
    """A plain module that changes a layer's output.

    Attributes:
        module: The module.
        alpha: Blend weight that broadcasts against the output; None for 1.
        blend: How it enters: ``"add"``, ``"lerp"`` or ``"multiply"``.
    """

    module: nn.Module
    alpha: Tensor | None = None
    blend: str = "add"


def side_modules(layer: HybridKasminaLayer, *, prune: bool) -> list[Side]:
    """Plain modules of the live seeds that don't fold: one for all beds where they merge, else one a bed."""
    seeds = layer.morpho
    beds = live_beds(seeds)
    if not beds or folds(layer):
        return []
    blueprint = seeds.blueprint
    values = [bed.values() for bed in beds.values()]
    alphas = [row_alpha(seeds, index) for index in beds]
    blend = seeds.config.grafting.blend
    merged = blueprint.merge(values, alphas) if blend == "add" else None
    if merged is not None:
        sides = [Side(blueprint.plain(merged))]
    else:
        sides = [_weighted(blueprint, blueprint.plain(v), a, blend) for v, a in zip(values, alphas, strict=True)]
    for side in sides:
        side.module.train(layer.training)
        if prune and _is_chain(side.module):
            drop_dead_units_(side.module, find_pairs(side.module).pairs.values())
    return [side for side in sides if blend == "lerp" or not (prune and is_silent(side.module))]


def _weighted(blueprint: Blueprint, module: nn.Module, alpha: Tensor, blend: str) -> Side:
    """A side with its blend weights, which go into its last layer where they can."""
    if bool((alpha == 1).all()):
        return Side(module, blend=blend)
    last = module[-1] if _is_chain(module) else None  # type: ignore[index]
    if type(last) not in LAYERS or blend != "add":
        return Side(module, blueprint.site.per_feature(alpha), blend)
    assert last is not None
    for parameter in last.parameters():
        parameter.copy_(weighted(parameter, alpha))
    return Side(module)


def _is_chain(module: nn.Module) -> bool:
    """Whether a module is a chain of torch's own, so that its code shows all that happens in it."""
    return isinstance(module, nn.Sequential) and all(type(m).__module__.startswith("torch.nn") for m in module)


def put_beside_(model: nn.Module, layer: nn.Module, sides: Sequence[Side], reads_input: bool) -> nn.Module:
    """Put a layer with its sides everywhere in a model where the layer stands.

    Returns:
        The model; what replaces the layer if it is the model.
    """
    grown = _beside(layer, sides, reads_input)
    for parent in [m for m in model.modules() if m is not grown]:
        for key, child in parent._modules.items():
            if child is layer:
                setattr(parent, key, grown)
    return grown if model is layer else model


def _beside(base: nn.Module, sides: Sequence[Side], reads_input: bool) -> fx.GraphModule:
    """A layer with plain modules that change its output, one after another."""
    root, graph = nn.Module(), fx.Graph()
    root.add_module("base", base)
    x = graph.placeholder("x")
    y = out = graph.call_module("base", (x,))
    for index, side in enumerate(sides):
        root.add_module(f"side{index}", side.module)
        added = graph.call_module(f"side{index}", (x if reads_input else y,))
        if side.blend == "lerp":
            added = graph.call_function(operator.sub, (added, out))
        elif side.blend == "multiply":
            added = graph.call_function(operator.mul, (out, graph.call_function(torch.tanh, (added,))))
        if side.alpha is not None:
            root.register_buffer(f"alpha{index}", side.alpha)
            added = graph.call_function(operator.mul, (graph.get_attr(f"alpha{index}"), added))
        out = graph.call_function(operator.add, (out, added))
    graph.output(out)
    return fx.GraphModule(root.train(base.training), graph, "Beside")
