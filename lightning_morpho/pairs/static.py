"""Proposing pairs without running the model: torch.fx on it, or on those of its parts that can be traced."""

from __future__ import annotations

import builtins
import contextlib
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import fx, nn

from lightning_morpho.pairs.flow import Flow, Opaque, Pair, Value
from lightning_morpho.pairs.operations import module_kind
from lightning_morpho.pairs.structure import read_pair
from lightning_morpho.random_state import preserved_random_state

_BENIGN = frozenset({"size", "dim", "ndimension", "numel", "stride", "is_contiguous", "element_size"})


def propose(model: nn.Module, layers: Mapping[str, nn.Module]) -> dict[str, Pair | str]:
    """Pair of each layer as a trace shows it, or why it shows none; nothing of the model changes.

    Args:
        model: The model; parts that torch.fx can't trace are looked into child by child.
        layers: Its eligible layers by name.
    """
    names = {module: name for name, module in model.named_modules()}
    found: dict[str, Pair | str] = {}
    with _untouched(model), preserved_random_state(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for graph, root in _traces(model, set(layers.values())):
            found |= _interpret(graph, root, names, layers)
    for name in layers:
        found.setdefault(name, "what stands before it can't be traced without running the model")
    return found


class _Tracer(fx.Tracer):
    """Stops at layers and at modules that are steps."""

    def __init__(self, layers: set[nn.Module]) -> None:
        super().__init__()
        self._layers = layers

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return m in self._layers or module_kind(m) is not None or super().is_leaf_module(m, module_qualified_name)


def _traces(module: nn.Module, layers: set[nn.Module]) -> Iterator[tuple[fx.Graph, nn.Module]]:
    """Graphs of the largest parts of a module that can be traced."""
    if module in layers or module_kind(module) is not None or not list(module.children()):
        return
    try:
        graph = _Tracer(layers).trace(module)
    except Exception:  # whatever a user's forward raises on a symbolic input
        for child in module.children():
            yield from _traces(child, layers)
        return
    yield graph, module
    for node in graph.nodes:
        if node.op == "call_module":
            yield from _traces(module.get_submodule(node.target), layers)


def _interpret(
    graph: fx.Graph, root: nn.Module, names: Mapping[nn.Module, str], layers: Mapping[str, nn.Module]
) -> dict[str, Pair | str]:
    flow = Flow({layer: name for name, layer in layers.items()})
    values: dict[fx.Node, Value | None] = {}
    called: list[str] = []
    for node in graph.nodes:
        if node.op == "call_module":
            called.append(names[root.get_submodule(node.target)])
        values[node] = _node_value(node, root, names, flow, values)
    found: dict[str, Pair | str] = {}
    for name, reads in flow.read.items():
        found[name] = read_pair(flow, name, reads[0])
        pair = found[name]
        if isinstance(pair, Pair):
            parts = (name, *pair.producers, *(step.name for step in pair.all_steps if step.kind == "norm"))
            again = [part for part in parts if called.count(part) > 1]
            if again:
                found[name] = f"`{again[0]}` is called {called.count(again[0])} times in one forward pass"
    return found


def _node_value(
    node: fx.Node,
    root: nn.Module,
    names: Mapping[nn.Module, str],
    flow: Flow,
    values: Mapping[fx.Node, Value | None],
) -> Value | None:
    """What is known of a node's result."""
    inputs = [v for v in (values.get(n) for n in node.all_input_nodes) if v is not None]
    if node.op == "output":
        for value in inputs:
            value.uses.append("the output of the model")
    if node.op == "call_module":
        module = root.get_submodule(str(node.target))
        if module in flow.names:
            first = node.args[0] if node.args else next(iter(node.kwargs.values()))
            flow.enter(module, values.get(first) if isinstance(first, fx.Node) else None)
            return flow.leave(module)
        if len(inputs) == 1 and len(node.all_input_nodes) == 1:
            return flow.call_module(module, names[module], inputs[0])
        return flow.call_function(names[module], tuple(inputs), {}) if inputs else None
    if node.op not in ("call_function", "call_method") or not inputs or _is_benign(node):
        return None
    target = getattr(torch.Tensor, str(node.target), node.target) if node.op == "call_method" else node.target
    resolve = lambda argument: _resolve(argument, values)  # noqa: E731
    return flow.call_function(target, tuple(map(resolve, node.args)), {k: resolve(v) for k, v in node.kwargs.items()})


def _is_benign(node: fx.Node) -> bool:
    """Whether a node reads only what any tensor would tell: its shape, not its values."""
    if node.target is builtins.getattr:
        return node.args[1] in ("shape", "ndim", "dtype", "device")
    return node.op == "call_method" and node.target in _BENIGN


def _resolve(argument: Any, values: Mapping[fx.Node, Value | None]) -> Any:
    if isinstance(argument, fx.Node):
        value = values.get(argument)
        return Opaque() if value is None else value
    if isinstance(argument, (list, tuple)):
        return [_resolve(item, values) for item in argument]
    return argument


@contextlib.contextmanager
def _untouched(model: nn.Module) -> Iterator[None]:
    """Put back what running a forward on symbols could leave in a model's attributes."""
    saved = [(m, m.__dict__.copy()) for m in model.modules()]
    contents = [
        (value, value.copy())
        for _, attributes in saved
        for value in attributes.values()
        if type(value) in (list, dict, set)
    ]
    try:
        yield
    finally:
        for module, attributes in saved:
            module.__dict__.clear()
            module.__dict__.update(attributes)
        for value, content in contents:
            value.clear()
            value.extend(content) if isinstance(value, list) else value.update(content)
