"""Hidden units that nothing reads are left out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_morpho.export.folding import set_weights_
from lightning_morpho.pairs import Pair
from lightning_morpho.pairs.operations import LAYERS
from lightning_morpho.pairs.structure import out_channels


@dataclass(frozen=True)
class HiddenUnits:
    """The units between the layers of a pair; they are read by the consumer alone.

    Attributes:
        producers: The layers whose outputs they are: one, or two that are multiplied.
        norms: Norms that they pass.
        consumer: The layer that reads them.
    """

    producers: tuple[nn.Module, ...]
    norms: tuple[_BatchNorm, ...]
    consumer: nn.Module

    def read(self) -> Tensor:
        """Which units have an outgoing weight that is not exactly zero, bool ``(units,)``."""
        return _columns(self).ne(0).flatten(1).any(1)

    def keep_(self, kept: Tensor) -> None:
        """Drop the other units: rows of the producers, entries of the norms, columns of the consumer."""
        if kept.all():
            return
        kept = kept.to(self.consumer.weight.device)  # type: ignore[arg-type]
        with torch.no_grad():
            columns = _columns(self)[kept].flatten(0, 1).transpose(0, 1)
            for producer in self.producers:
                bias = producer.bias
                set_weights_(producer, producer.weight[kept], None if bias is None else bias[kept])  # type: ignore
            for norm in self.norms:
                _keep_entries_(norm, kept)
            set_weights_(self.consumer, columns.contiguous(), self.consumer.bias)  # type: ignore[arg-type]


def _columns(hidden: HiddenUnits) -> Tensor:
    """The consumer's weight by hidden unit, ``(units, positions, out, *kernel)``."""
    weight = hidden.consumer.weight
    assert isinstance(weight, Tensor)
    return weight.detach().transpose(0, 1).unflatten(0, (out_channels(hidden.producers[0]), -1))


def _keep_entries_(norm: _BatchNorm, kept: Tensor) -> None:
    for name, value in (*norm.named_parameters(), *norm.named_buffers()):
        if value.ndim == 1:
            rest = value.detach()[kept].clone()
            setattr(norm, name, nn.Parameter(rest, value.requires_grad) if name in norm._parameters else rest)
    norm.num_features = int(kept.sum())


def drop_dead_units_(model: nn.Module, pairs: Iterable[Pair]) -> dict[str, int]:
    """Drop the hidden units of a plain model that nothing reads, in place.

    A unit is dead if all its outgoing weights are exactly zero; what remains gives the same output as long as dead
    units are finite. One unit of each pair always stays.

    Args:
        model: The model; its layers are plain ones.
        pairs: Pairs of layers, as :func:`~lightning_morpho.find_pairs` confirms them on an example.

    Returns:
        Units dropped, by the name of the consumer that did not read them.

    Example:
        >>> from lightning_morpho import find_pairs
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
        >>> _ = nn.init.zeros_(model[3].weight[:, 2:5])
        >>> drop_dead_units_(model, find_pairs(model, torch.ones(3, 4)).pairs.values())
        {'3': 3}
        >>> model[0], model[3]
        (Linear(in_features=4, out_features=5, bias=True), Linear(in_features=5, out_features=2, bias=True))
    """
    modules = dict(model.named_modules())
    hidden = {
        pair.consumer: HiddenUnits(
            producers=tuple(modules[name] for name in pair.producers),
            norms=tuple(step.module for step in pair.all_steps if isinstance(step.module, _BatchNorm)),
            consumer=modules[pair.consumer],
        )
        for pair in pairs
    }
    dropped = drop_unread_(list(hidden.values()))
    return {name: count for name, count in zip(hidden, dropped, strict=True) if count}


def drop_unread_(hidden: Sequence[HiddenUnits]) -> list[int]:
    """Drop dead units until there are none: without its reader a unit of the layer before may be dead too.

    Returns:
        Units dropped of each.
    """
    dropped = [0] * len(hidden)
    changed = True
    while changed:
        changed = False
        for index, units in enumerate(hidden):
            kept = units.read()
            if not kept.any():
                kept[0] = True
            dead = int((~kept).sum())
            if dead:
                units.keep_(kept)
                dropped[index] += dead
                changed = True
    return dropped


def is_silent(module: nn.Module) -> bool:
    """Whether a module gives zero because its last layer holds nothing but zeros."""
    last = module[-1] if isinstance(module, nn.Sequential) and len(module) else module
    return type(last) in LAYERS and not any(bool(p.any()) for p in last.parameters())
