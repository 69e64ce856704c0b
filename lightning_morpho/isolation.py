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
def isolated(model: nn.Module) -> Iterator[None]:
    """Evaluate a model under ``eval`` and ``no_grad`` and put back all that this could have changed.

    Put back: training flags, buffers, torchmetrics metrics anywhere in the module tree, the contents of
    lists, dicts and sets that modules hold as public attributes, and the random state of Python, NumPy and torch
    (CPU and CUDA).
    """
    modes = [(module, module.training) for module in model.modules()]
    observers = [(m, m.morpho.observer) for m in model.modules() if isinstance(m, HybridKasminaLayer)]
    with _preserved_metrics(model), _preserved_buffers(model), _preserved_containers(model), preserved_random_state():
        try:
            model.eval()
            for layer, _ in observers:
                layer.morpho.observe(None)
            with torch.no_grad():
                yield
        finally:
            for module, mode in modes:
                module.training = mode
            for layer, observer in observers:
                layer.morpho.observe(observer)


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
def _preserved_containers(model: nn.Module) -> Iterator[None]:
    saved = [
        (module, name, value, _remember(value))
        for module in model.modules()
        for name, value in vars(module).items()
        if not name.startswith("_") and type(value) in _CONTAINERS
    ]
    try:
        yield
    finally:
        for module, name, value, put_back in saved:
            put_back()
            setattr(module, name, value)


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
