"""The grown architecture as Python source that needs torch alone."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, fx, nn

from lightning_morpho.pairs.operations import LAYERS

_HEAD = '''"""{title}

Written by lightning_morpho {version}; needs torch, and safetensors for the weights. Give it a fresh model of your
own class, built as it was before it grew:

    model = load(MyModel(), "{weights}")
"""

import torch
from torch import nn
'''

_REPLACE = '''

def _replace(model: nn.Module, name: str, new: nn.Module) -> nn.Module:
    """Put a module everywhere in the model where the one of that name stands."""
    old = model.get_submodule(name)
    for parent in [m for m in model.modules() if m is not new]:
        for key, child in parent.named_children():
            if child is old:
                setattr(parent, key, new)
    return new if old is model else model
'''

_PARTS = """

class _Parts(nn.Module):
    def __init__(self, **parts) -> None:
        super().__init__()
        for name, part in parts.items():
            if isinstance(part, nn.Parameter):
                self.register_parameter(name, part)
            elif isinstance(part, torch.Tensor):
                self.register_buffer(name, part)
            else:
                self.add_module(name, part)
"""

_CLASS = """

class {name}(_Parts):
{forward}
"""

_GROW = '''

def grow_(model: nn.Module) -> nn.Module:
    """Give a fresh model the layers that it had at the end; they are not filled yet. Use what is returned."""
{body}    return model


def load(model: nn.Module, weights: str) -> nn.Module:
    """Grow a fresh model and fill it; it is in evaluation mode."""
    from safetensors.torch import load_model

    model = grow_(model)
    load_model(model, weights)
    return model.eval()
'''


def architecture_source(host: nn.Module, plain: nn.Module, *, weights: str, version: str) -> str:
    """Python source that makes a model as it was before growth what it is now.

    Args:
        host: The model without seeds.
        plain: The exported model.
        weights: Name of the file of its weights.
        version: Version of this package.

    Raises:
        NotImplementedError: If a module of your own grew, whose constructor call nobody can know.
    """
    writer = _Writer(host)
    lines = [
        f"    {line}\n" for name, module in changed_modules(host, plain).items() for line in writer.lines(name, module)
    ]
    parts = [_HEAD.format(title=f"What {type(host).__name__} became.", version=version, weights=weights)]
    parts += [_REPLACE] if lines else []
    parts += [_PARTS] if writer.classes else []
    parts += [_CLASS.format(name=name, forward=forward) for forward, name in writer.classes.items()]
    return "".join([*parts, _GROW.format(body="".join(lines))])


def changed_modules(host: nn.Module, plain: nn.Module) -> dict[str, nn.Module]:
    """The modules that growth replaced or gave another size, by name, as they are now."""
    now = dict(plain.named_modules())
    untied = _tied(host) - _tied(plain)
    return {
        name: now[name]
        for name, before in host.named_modules()
        if name in now and (differs(before, now[name]) or (name in untied and type(now[name]) in LAYERS))
    }


def _tied(model: nn.Module) -> set[str]:
    """Names of the modules that share a parameter with another one."""
    holders: dict[nn.Parameter, list[str]] = {}
    for name, module in model.named_modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                holders.setdefault(parameter, []).append(name)
    return {name for names in holders.values() if len(names) > 1 for name in names}


def differs(before: nn.Module, after: nn.Module) -> bool:
    """Whether a module was replaced or has another size."""
    if isinstance(after, fx.GraphModule) and not isinstance(before, fx.GraphModule):
        return True
    return type(after) in _CONSTRUCTORS and type(before) is type(after) and call_of(before) != call_of(after)


class _Writer:
    """Writes what replaces the modules of a model.

    Attributes:
        classes: Name of each class that is needed, by its forward.
    """

    def __init__(self, host: nn.Module) -> None:
        self.host = host
        self.classes: dict[str, str] = {}

    def lines(self, name: str, module: nn.Module) -> list[str]:
        """Lines that bring one module into its place."""
        place = json.dumps(name)
        if not isinstance(module, fx.GraphModule):
            return [f"model = _replace(model, {place}, {call_of(module)})"]
        lines, base = [], module.get_submodule("base")
        if differs(self.host.get_submodule(name), base):
            lines.append(f"model = _replace(model, {place}, {call_of(base)})")
        parts = self._parts(module, {"base": f"model.get_submodule({place})"})
        lines += [f"grown = {self._class(module)}(", *(f"    {part}," for part in parts), ")"]
        return [*lines, f"model = _replace(model, {place}, grown)"]

    def _class(self, module: fx.GraphModule) -> str:
        forward, kind = _forward(module), type(module).__name__
        if forward not in self.classes:
            taken = sum(re.fullmatch(rf"{kind}\d*", name) is not None for name in self.classes.values())
            self.classes[forward] = f"{kind}{taken + 1}" if taken else kind
        return self.classes[forward]

    def _parts(self, module: nn.Module, known: Mapping[str, str] = MappingProxyType({})) -> list[str]:
        """Keyword arguments that make up a graph's module."""
        parts = [f"{key}={known.get(key) or self._call(child)}" for key, child in module.named_children()]
        for key, value in module.named_parameters(recurse=False):
            parts.append(f"{key}=nn.Parameter({_empty(value)})")
        return [*parts, *(f"{key}={_empty(value)}" for key, value in module.named_buffers(recurse=False))]

    def _call(self, module: nn.Module) -> str:
        if type(module) is nn.Sequential:
            return f"nn.Sequential({', '.join(self._call(child) for child in module)})"
        if isinstance(module, fx.GraphModule):
            return f"{self._class(module)}({', '.join(self._parts(module))})"
        return call_of(module)


def _empty(value: Tensor) -> str:
    return f"torch.empty({', '.join(map(str, value.shape))}{_dtype(value)})"


def call_of(module: nn.Module) -> str:
    """The constructor call of a module of torch.

    Raises:
        NotImplementedError: If it can't be told from what the module shows.

    Example:
        >>> call_of(nn.Conv1d(2, 3, 5, padding="same", bias=False))
        "nn.Conv1d(2, 3, (5,), padding='same', bias=False)"
        >>> call_of(nn.LayerNorm(4))[:13]
        'nn.LayerNorm('
    """
    arguments = _CONSTRUCTORS.get(type(module), type(module).extra_repr)(module)
    call = f"nn.{type(module).__name__}({arguments})"
    if not _gives(call, module):
        raise NotImplementedError(
            f"A {type(module).__name__} grew, whose constructor call is unknown: the architecture can't be written as "
            "source. Use the format 'pt' or 'pt2' instead of 'safetensors'."
        )
    return call


def _gives(call: str, module: nn.Module) -> bool:
    """Whether a call gives such a module, with the same state."""
    if getattr(nn, type(module).__name__, None) is not type(module):
        return False
    try:
        made = eval(call, {"nn": nn, "torch": torch})
    except (SyntaxError, NameError, TypeError, ValueError):
        return False
    states = [[(key, v.shape, v.dtype) for key, v in m.state_dict().items()] for m in (made, module)]
    return states[0] == states[1] and repr(made) == repr(module)


def _linear(layer: Any) -> str:
    options = _options(bias=(layer.bias is not None, True))
    return f"{layer.in_features}, {layer.out_features}{options}{_dtype(layer.weight)}"


def _conv(layer: Any) -> str:
    ones = (1,) * len(layer.kernel_size)
    options = _options(
        stride=(layer.stride, ones),
        padding=(layer.padding, (0,) * len(ones)),
        dilation=(layer.dilation, ones),
        groups=(layer.groups, 1),
        bias=(layer.bias is not None, True),
        padding_mode=(layer.padding_mode, "zeros"),
    )
    return f"{layer.in_channels}, {layer.out_channels}, {layer.kernel_size}{options}{_dtype(layer.weight)}"


def _norm(norm: Any) -> str:
    bias = {"bias": (False, True)} if norm.affine and norm.bias is None else {}
    options = _options(
        eps=(norm.eps, 1e-5),
        momentum=(norm.momentum, 0.1),
        affine=(norm.affine, True),
        track_running_stats=(norm.track_running_stats, True),
        **bias,
    )
    held = next((t for t in (norm.weight, norm.running_mean) if t is not None), None)
    return f"{norm.num_features}{options}{'' if held is None else _dtype(held)}"


def _options(**options: tuple[Any, Any]) -> str:
    """Keyword arguments that differ from their defaults."""
    return "".join(f", {name}={value!r}" for name, (value, default) in options.items() if value != default)


def _dtype(tensor: Tensor) -> str:
    return "" if tensor.dtype is torch.float32 else f", dtype={tensor.dtype}"


_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_CONSTRUCTORS: dict[type[nn.Module], Callable[[Any], str]] = {
    **dict.fromkeys(LAYERS, _conv),
    nn.Linear: _linear,
    **dict.fromkeys(_NORMS, _norm),
}


def _forward(module: fx.GraphModule) -> str:
    """A graph's forward as a method."""
    code = module.graph.python_code("self")
    foreign = {name for name in code.globals if name != "torch" and re.search(rf"\b{name}\b", code.src)}
    if foreign:
        raise NotImplementedError(
            f"What grew calls {sorted(foreign)} outside torch: the architecture can't be written as source. Use the "
            "format 'pt' or 'pt2' instead of 'safetensors'."
        )
    lines = [re.sub(r";  (\w+ = )+None$", "", line) for line in code.src.strip().splitlines()]
    return "\n".join(f"    {line}" for line in lines if line.strip())
