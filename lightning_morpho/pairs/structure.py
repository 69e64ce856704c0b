"""What must hold of two layers themselves before hidden units can grow between them."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn
from torch.nn.utils import parametrize

from lightning_morpho.pairs.flow import Flow, Pair, Value
from lightning_morpho.pairs.operations import LAYERS


def is_layer(module: nn.Module) -> bool:
    """Whether a module is exactly an eligible layer, or one that was swapped for a hybrid one."""
    swapped = "morpho" in module._modules and type(module).__bases__[-1] in LAYERS
    return type(module) in LAYERS or swapped


def layers_of(model: nn.Module) -> dict[str, nn.Module]:
    """The eligible layers of a model by name."""
    return {name: module for name, module in model.named_modules() if name and is_layer(module)}


def out_channels(layer: nn.Module) -> int:
    """Output features or channels."""
    return int(layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels)  # type: ignore[arg-type]


def in_channels(layer: nn.Module) -> int:
    """Input features or channels."""
    return int(layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels)  # type: ignore[arg-type]


def check_pair(pair: Pair, modules: Mapping[str, nn.Module]) -> str | None:
    """Why a pair can't grow, None if it can.

    Args:
        pair: The pair.
        modules: All modules of the model by name.
    """
    consumer = modules[pair.consumer]
    producers = [modules[name] for name in pair.producers]
    if len({id(layer) for layer in (*producers, consumer)}) <= len(producers):
        return "a layer can't be its own producer"
    for name in (*pair.producers, pair.consumer):
        reason = _check_layer(name, modules[name], modules)
        if reason is not None:
            return reason
    for step in pair.all_steps:
        if step.module is not None and _hooked(step.module):
            return f"`{step.name}` has a forward hook, which could change what passes"
    if len({(p.weight.dtype, p.weight.device) for p in (*producers, consumer)}) > 1:
        return f"the weights of {pair.producers} and `{pair.consumer}` differ in dtype or device"
    return _check_geometry(pair, producers, consumer)


def _check_layer(name: str, layer: nn.Module, modules: Mapping[str, nn.Module]) -> str | None:
    if getattr(layer, "groups", 1) != 1:
        return f"`{name}` is a grouped convolution"
    if parametrize.is_parametrized(layer) or "weight" not in layer._parameters:
        return f"the weight of `{name}` is parametrized"
    if _hooked(layer):
        return f"`{name}` has a forward hook, which could change what passes"
    for other, module in modules.items():
        if module is not layer and any(p is layer.weight for p in module._parameters.values()):
            return f"the weight of `{name}` is tied to that of `{other}`"
    return None


def _hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _check_geometry(pair: Pair, producers: list[nn.Module], consumer: nn.Module) -> str | None:
    channels = {out_channels(p) for p in producers}
    if len(channels) != 1:
        return f"{pair.producers} have different numbers of outputs"
    positions, rest = divmod(in_channels(consumer), channels.pop())
    flat = any(step.kind == "flatten" for step in pair.all_steps)
    if rest or positions == 0 or (positions > 1 and not flat):
        return f"`{pair.consumer}` reads {in_channels(consumer)} features, not the output of {pair.producers}"
    return None


def read_pair(flow: Flow, consumer: str, value: Value | None) -> Pair | str:
    """The pair that one call of a layer shows, or the reason why it shows none."""
    if value is None:
        return "its input does not come from a layer"
    if value.reason is not None:
        return value.reason
    if consumer in value.producers:
        return "a layer can't be its own producer"
    branch = value.branch()
    return Pair(consumer, value.producers, value.branches, value.steps) if branch is None else branch


def positions_of(pair: Pair, producer: nn.Module, consumer: nn.Module) -> int:
    """Input features of a consumer for each hidden channel: above 1 behind a flatten."""
    return in_channels(consumer) // out_channels(producer)
