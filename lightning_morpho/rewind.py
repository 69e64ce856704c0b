"""Training a model for a while and putting everything back, bit for bit."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import nn
from torch.optim import Optimizer

from lightning_morpho.isolation import undisturbed
from lightning_morpho.layers import HybridKasminaLayer, clear_taps


@contextlib.contextmanager
def rewound(
    model: nn.Module, layers: Mapping[str, HybridKasminaLayer], optimizers: Sequence[Optimizer]
) -> Iterator[None]:
    """Train inside, germinate too: afterwards nothing of it has happened.

    Put back: weights and their gradients, all seeds with their stages and counters, what optimizers remember and
    their settings, and what :func:`~lightning_morpho.isolation.undisturbed` names. Transitions of seeds inside reach
    nobody. It takes memory for one more copy of the weights and of the optimizers' state.

    Args:
        model: The model, not sharded.
        layers: Its hybrid layers by name.
        optimizers: Its optimizers.

    Example:
        >>> model = nn.Linear(2, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        >>> before = model.weight.clone()
        >>> with rewound(model, {}, [optimizer]):
        ...     model(torch.ones(1, 2)).sum().backward()
        ...     _ = optimizer.step()
        >>> torch.equal(model.weight, before), optimizer.state, model.weight.grad
        (True, defaultdict(<class 'dict'>, {}), None)
    """
    with undisturbed(model), _same_optimizers(optimizers), _same_seeds(layers), _same_weights(model):
        yield


@contextlib.contextmanager
def _same_weights(model: nn.Module) -> Iterator[None]:
    saved = [(p, p.detach().clone(), p.requires_grad, p.grad) for p in model.parameters()]
    try:
        for parameter, _, _, _ in saved:
            parameter.grad = None
        yield
    finally:
        with torch.no_grad():
            for parameter, value, _, _ in saved:
                parameter.copy_(value)
        for parameter, _, trainable, gradient in saved:
            parameter.requires_grad_(trainable)
            parameter.grad = gradient


@contextlib.contextmanager
def _same_seeds(layers: Mapping[str, HybridKasminaLayer]) -> Iterator[None]:
    held = [layer.morpho for layer in layers.values()]
    saved = [(seeds, seeds.get_extra_state(), seeds.on_transition) for seeds in held]
    seen = [(watch, watch.state_dict()) for seeds in held for watch in (seeds.faults, seeds.starvation)]
    gradients = [(p, p.grad) for seeds in held for p in seeds.parameters()]
    try:
        for seeds in held:
            seeds.on_transition = None
        yield
    finally:
        clear_taps(layers.values())
        for seeds, state, receiver in saved:
            seeds.set_extra_state(state)
            seeds.on_transition = receiver
        for watch, before in seen:
            watch.load_state_dict(before)
        for parameter, gradient in gradients:
            parameter.grad = gradient  # topology that is loaded starts without


@contextlib.contextmanager
def _same_optimizers(optimizers: Sequence[Optimizer]) -> Iterator[None]:
    """Let the optimizers work on copies of what they remember."""
    states = [dict(optimizer.state) for optimizer in optimizers]
    groups = [[_settings(group) for group in optimizer.param_groups] for optimizer in optimizers]
    try:
        for optimizer, state, own in zip(optimizers, states, groups, strict=True):
            optimizer.state.update({parameter: copy.deepcopy(value) for parameter, value in state.items()})
            for group, settings in zip(optimizer.param_groups, own, strict=True):
                group.update(copy.deepcopy(settings))
        yield
    finally:
        for optimizer, state, own in zip(optimizers, states, groups, strict=True):
            optimizer.state.clear()
            optimizer.state.update(state)
            for group, settings in zip(optimizer.param_groups, own, strict=True):
                for name in group.keys() - settings.keys() - {"params", "param_names"}:
                    del group[name]
                group.update(settings)


def _settings(group: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in group.items() if name not in ("params", "param_names")}
