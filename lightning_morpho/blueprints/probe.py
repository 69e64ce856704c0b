"""A try of a new kind of network on small layers, so that a bug in it shows when it is registered."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lightning_morpho.blueprints.site import Site, is_eligible_type
from lightning_morpho.chunks import ChunkManager
from lightning_morpho.config import BlueprintConfig
from lightning_morpho.grafting import gather_chunks
from lightning_morpho.random_state import preserved_random_state

if TYPE_CHECKING:
    from lightning_morpho.blueprints.base import Blueprint

_IN, _OUT, _SIZE, _ROWS = 8, 16, 7, 3
_EVEN, _UNEVEN = 2, 3
"""Chunks that split the features evenly, and not."""


class ProbeError(ValueError):
    """A blueprint did not do on a small layer what blueprints must do."""


def _layers() -> Iterator[nn.Module]:
    yield nn.Linear(_IN, _OUT)
    for convolution in (nn.Conv1d, nn.Conv2d, nn.Conv3d):
        for stride, padding in ((1, 1), (1, 0), (2, 1)):
            yield convolution(_IN, _OUT, 3, stride=stride, padding=padding)


def probe(blueprint: type[Blueprint]) -> list[str]:
    """Grow one bed of a kind in small layers, and check what it gives.

    A blueprint declares the layers that it is for in ``layers``, and must work in each of them; without that it must
    work in one at least. Where it works with even chunks it must with uneven ones. Random states stay as they were.

    Args:
        blueprint: The kind; one that needs a pair of layers can't be tried.

    Returns:
        The layers in which it works.

    Raises:
        ProbeError: If it raises, gives another shape than the layer's output, is not exactly zero after ``reset_``
            or receives no gradient; with the layer.

    Example:
        >>> from lightning_morpho import blueprint_type
        >>> probe(blueprint_type("neurons"))[0]
        'Linear(in_features=8, out_features=16, bias=True)'
    """
    works: dict[str, type[nn.Module]] = {}
    failed: dict[type[nn.Module], ProbeError] = {}
    unknown = [kind for kind in blueprint.layers if not is_eligible_type(kind)]
    if unknown:
        raise ProbeError(
            f"`layers` of blueprint `{blueprint.kind}` may hold nn.Linear and nn.Conv1d/2d/3d, got {unknown}."
        )
    with preserved_random_state():
        for layer in _layers():
            if blueprint.layers and type(layer) not in blueprint.layers:
                continue
            try:
                _try_in(blueprint, layer, _EVEN)
            except ProbeError as error:
                failed.setdefault(type(layer), error)
                continue
            _try_in(blueprint, layer, _UNEVEN)
            works[repr(layer)] = type(layer)
    wrong = [failed[kind] for kind in blueprint.layers if kind not in works.values()] if works else [*failed.values()]
    if wrong:
        raise wrong[0]
    return list(works)


def _try_in(blueprint: type[Blueprint], layer: nn.Module, chunks: int) -> None:
    """Check one kind in one layer."""
    site = Site.of(layer, ChunkManager(_OUT, chunks))
    x = torch.randn(_ROWS, _IN, *[_SIZE] * site.spatial)
    y = layer(x).detach()
    columns = gather_chunks(site.to_columns(y), site.chunks)
    source = {"input": x, "output": y, "chunk": columns}[blueprint.source]
    expected = columns.shape if blueprint.source == "chunk" else y.shape
    where = f"Blueprint `{blueprint.kind}` in {layer!r} with {chunks} seeds"
    try:
        made = blueprint(site, BlueprintConfig(hidden=4))
        parameters = {name: torch.zeros(shape) for name, shape in made.shapes().items()}
        made.reset_(parameters, torch.Generator().manual_seed(0))
        for value in parameters.values():
            value.requires_grad_()
        out = made.grow(parameters, source)
    except Exception as error:  # whatever a user's code raises
        raise ProbeError(f"{where} raised {type(error).__name__}: {error}\n{_WAY_OUT}") from error
    _check(out, expected, parameters, where)


_WAY_OUT = (
    "If it is meant for other layers alone, name their types in `layers`; if it can't be tried on small layers on the "
    "CPU, register it with `probe=False`."
)


def _check(out: Tensor, expected: torch.Size, parameters: Mapping[str, Tensor], where: str) -> None:
    """Check shape, value and gradient of what a newborn gives."""
    if not isinstance(out, Tensor) or out.shape != expected:
        got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise ProbeError(f"{where} must give shape {tuple(expected)}, got {got}.\n{_WAY_OUT}")
    if out.any():
        raise ProbeError(
            f"{where} must give exactly zero after `reset_`, got values up to {float(out.detach().abs().max()):g}: "
            "end it with a factor that starts at zero."
        )
    if out.requires_grad:
        (out * torch.randn_like(out)).sum().backward()
    if not any(value.grad is not None and value.grad.any() for value in parameters.values()):
        raise ProbeError(
            f"{where} receives no gradient after `reset_` and would stay zero: one factor alone may be zero."
        )
