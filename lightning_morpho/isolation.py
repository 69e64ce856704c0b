"""Evaluating a model without leaving a trace in it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torchmetrics import Metric, MetricCollection

from lightning_morpho.layers import HybridKasminaLayer
from lightning_morpho.random_state import preserved_random_state


@contextlib.contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Run a model and put back all that this could have changed but parameters and optimizers.

    Put back: training flags, buffers, torchmetrics metrics anywhere in the module tree, what modules hold as public
    attributes, the contents of lists, dicts and sets among these, and the random state of Python, NumPy and torch
    (CPU and CUDA). Telemetry sees nothing of it.
    """
    modes = [(module, module.training) for module in model.modules()]
    observers = [(m, m.morpho.observer) for m in model.modules() if isinstance(m, HybridKasminaLayer)]
    with _preserved_metrics(model), _preserved_buffers(model), _preserved_attributes(model), preserved_random_state():
        try:
            for layer, _ in observers:
                layer.morpho.observe(None)
            yield
        finally:
            for module, mode in modes:
                module.training = mode
            for layer, observer in observers:
                layer.morpho.observe(observer)


@contextlib.contextmanager
def isolated(model: nn.Module) -> Iterator[None]:
    """Evaluate a model under ``eval`` and ``no_grad``, :func:`undisturbed`."""
    with undisturbed(model), torch.no_grad():
        model.eval()
        yield


@contextlib.contextmanager
def _preserved_metrics(model: nn.Module) -> Iterator[None]:
    """Let clones of the metrics take the updates."""
    held = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent._modules.items()
        if isinstance(child, (Metric, MetricCollection)) and not isinstance(parent, MetricCollection)
    ]
    clones = {id(child): child.clone() for _, _, child in held}
    try:
        for parent, name, child in held:
            parent._modules[name] = clones[id(child)]
        yield
    finally:
        for parent, name, child in held:
            parent._modules[name] = child


@contextlib.contextmanager
def _preserved_buffers(model: nn.Module) -> Iterator[None]:
    saved = [
        (module, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
    ]
    try:
        yield
    finally:
        with torch.no_grad():
            for module, name, buffer, value in saved:
                module._buffers[name] = buffer
                buffer.copy_(value)


@contextlib.contextmanager
def _preserved_attributes(model: nn.Module) -> Iterator[None]:
    seeds = {
        id(m) for layer in model.modules() if isinstance(layer, HybridKasminaLayer) for m in layer.morpho.modules()
    }
    users = [module for module in model.modules() if id(module) not in seeds]
    saved = [(m, {k: v for k, v in vars(m).items() if not k.startswith("_")}) for m in users]
    contents = [_remember(v) for _, held in saved for v in held.values() if type(v) in _CONTAINERS]
    try:
        yield
    finally:
        for put_back in contents:
            put_back()
        for module, held in saved:
            for name in [k for k in vars(module) if not k.startswith("_") and k not in held]:
                del module.__dict__[name]
            module.__dict__.update(held)


_CONTAINERS = (list, dict, set)


def _remember(value: Any) -> Callable[[], None]:
    """How to put the content of a list, dict or set back, those inside it included."""
    content = value.copy()
    children = content.values() if isinstance(content, dict) else content
    inner = [_remember(child) for child in children if type(child) in _CONTAINERS]

    def put_back() -> None:
        value.clear()
        value.extend(content) if isinstance(value, list) else value.update(content)
        for put_child_back in inner:
            put_child_back()

    return put_back
