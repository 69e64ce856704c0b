"""What seeds are worth: held-out loss with and without them, on the same batches, leaving no trace."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection

from lightning_morpho.layers import HybridKasminaLayer
from lightning_morpho.random_state import preserved_random_state
from lightning_morpho.tamiyo import Measurement
from lightning_morpho.tamiyo.observation import SeedKey

Loss = Callable[[Any], Tensor]
"""A held-out loss of one batch: a scalar."""


def student_t_quantile(p: float, degrees: int) -> float:
    """Quantile of Student's t distribution (Hill: Algorithm 396, 1970, by its Cornish-Fisher series).

    Exact for 1 and 2 degrees of freedom, within 0.5 % from 3 on for ``p`` up to 0.99.

    Example:
        >>> [round(student_t_quantile(0.95, n), 2) for n in (1, 2, 9, 1000)]
        [6.31, 2.92, 1.83, 1.65]
    """
    if degrees < 1:
        raise ValueError(f"`degrees` must be at least 1, got {degrees}.")
    if degrees == 1:
        return math.tan(math.pi * (p - 0.5))
    if degrees == 2:
        return (2 * p - 1) * math.sqrt(2 / (4 * p * (1 - p)))
    z, n = NormalDist().inv_cdf(p), degrees
    return (
        z
        + (z**3 + z) / (4 * n)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * n**3)
        + (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / (92160 * n**4)
    )


def lower_bound(differences: Tensor, confidence: float) -> tuple[float, float]:
    """Mean of paired differences and its one-sided lower confidence bound.

    Args:
        differences: One value a pair, ``(V,)``.
        confidence: Level in (0.5, 1).

    Returns:
        Mean and bound; the bound is NaN with fewer than two pairs.

    Example:
        >>> lower_bound(torch.tensor([1.0, 1.0, 1.0]), 0.95)
        (1.0, 1.0)
    """
    count = len(differences)
    if count == 0:
        return math.nan, math.nan
    mean = differences.double().mean().item()
    if count == 1:
        return mean, math.nan
    error = differences.double().std().item() / math.sqrt(count)
    return mean, mean - student_t_quantile(confidence, count - 1) * error


def group_seeds(
    seeds: Sequence[SeedKey], layers: Mapping[str, HybridKasminaLayer], most: int
) -> list[tuple[SeedKey, ...]]:
    """Seeds to leave out together: one by one, or by bed if there would be more than ``most`` groups."""
    if len(seeds) <= most:
        return [(key,) for key in seeds]
    by_bed: dict[tuple[str, int], list[SeedKey]] = {}
    for layer, chunk in seeds:
        by_bed.setdefault((layer, int(layers[layer].morpho.state.bed[chunk])), []).append((layer, chunk))
    return [tuple(group) for group in by_bed.values()]


def measure(
    model: nn.Module,
    layers: Mapping[str, HybridKasminaLayer],
    groups: Sequence[tuple[SeedKey, ...]],
    batches: Iterable[Any],
    loss: Loss,
    *,
    confidence: float,
    gather: Callable[[Tensor], Tensor] = lambda differences: differences,
) -> list[Measurement]:
    """Leave-one-out: the rise of the held-out loss without each group of seeds, on the same batches.

    Nothing of the model, its metrics or the random state differs afterwards.

    Args:
        model: The model, in any mode; it is evaluated under ``no_grad`` and ``eval``.
        layers: Its hybrid layers by name.
        groups: Seeds to leave out together.
        batches: Held-out batches, on the model's device.
        loss: Loss of one batch.
        confidence: Level of the lower bound.
        gather: Joins the ranks' differences: ``(groups, V)`` to ``(groups, V of all ranks)``.
    """
    with isolated(model):
        rows = []
        for batch in batches:
            full = _value(loss(batch))
            rows.append([_value_without(layers, group, loss, batch) - full for group in groups])
    differences = gather(torch.tensor(rows, dtype=torch.float64).reshape(len(rows), len(groups)).T)
    measurements = []
    for group, values in zip(groups, differences, strict=True):
        rise, lower = lower_bound(values, confidence)
        measurements.append(Measurement(seeds=group, rise=rise, lower=lower, batches=len(values)))
    return measurements


def _value(loss: Tensor) -> float:
    return float(loss.detach())


def _value_without(layers: Mapping[str, HybridKasminaLayer], group: Sequence[SeedKey], loss: Loss, batch: Any) -> float:
    """Loss of one batch with some seeds muted."""
    muted: dict[str, list[int]] = {}
    for layer, chunk in group:
        muted.setdefault(layer, []).append(chunk)
    try:
        for name, chunks in muted.items():
            layers[name].morpho.mute(chunks)
        return _value(loss(batch))
    finally:
        for name in muted:
            layers[name].morpho.mute(())


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
