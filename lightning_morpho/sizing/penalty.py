"""The group penalty: a unit that earns nothing loses its outgoing weights, as a whole."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_morpho.layers import ChunkedKasminaLayer, HiddenLayer, hidden_layers
from lightning_morpho.layers.units import HOST

Rate = Callable[[nn.Parameter], "float | Tensor | None"]
"""Learning rate of a parameter; None if the optimizer that made a step does not hold it."""


@dataclass(frozen=True)
class Outgoing:
    """Outgoing weights of the units of one block.

    Attributes:
        layer: Their hidden layer.
        block: Their block in it.
        weights: Of each reader, ``(rows, units * positions, *kernel)``.
    """

    layer: HiddenLayer
    block: int
    weights: tuple[nn.Parameter, ...]

    def by_unit(self) -> list[Tensor]:
        """The weights as ``(rows, units, taps)``, sharing memory."""
        return [w.detach().view(len(w), self.layer.blocks[self.block], -1) for w in self.weights]


def outgoing_weights(layers: Iterable[ChunkedKasminaLayer], *, host: bool, grown: bool) -> list[Outgoing]:
    """Outgoing weights of the units that the penalty is for.

    Args:
        layers: The hybrid layers.
        host: Whether the host's own units count.
        grown: Whether live units that no judgement has kept yet count.
    """
    found = []
    for layer in hidden_layers(layers):
        if layer.seeds.off:
            continue
        readers = layer.readers
        for block in layer.blocks:
            if host if block == HOST else grown and not layer.seeds.bed_at(block).kept.any():
                weights = tuple(reader.columns[block] for reader in readers if block in reader.columns)
                found.append(Outgoing(layer, block, weights))
    return found


@torch.no_grad()
def shrink_(groups: Sequence[Outgoing], strength: float, rate: Rate) -> None:
    r"""One proximal step: the norm of each unit's outgoing weights falls by the same share of an optimizer's step.

    .. math:: W_u \leftarrow W_u \max(0, 1 - c\,\eta\,\sqrt{|W_u|} / \|W_u\|)

    with learning rate :math:`\eta` and :math:`|W_u|` the number of weights: an optimizer like Adam moves a unit's
    weights by about :math:`\eta\,\sqrt{|W_u|}` a step. What belongs to one unit is one group, so it goes as a whole.
    Nothing is read from the device.

    Args:
        groups: The units, of :func:`outgoing_weights`.
        strength: ``c``, ``>= 0``.
        rate: Learning rate by parameter.
    """
    held = [(group.by_unit(), rate(group.weights[0])) for group in groups]
    stepped = [(weights, eta) for weights, eta in held if eta is not None]
    if not stepped:
        return
    norms = [_norm(weights) for weights, _ in stepped]
    falls = [
        n.new_full((len(n),), strength * math.sqrt(sum(w[:, 0].numel() for w in weights))) * eta
        for n, (weights, eta) in zip(norms, stepped, strict=True)
    ]
    norm, fall = torch.cat(norms), torch.cat(falls)
    factors = (1 - fall / norm.clamp(min=torch.finfo(norm.dtype).tiny)).clamp(min=0)
    for (weights, _), factor in zip(stepped, factors.split([len(n) for n in norms]), strict=True):
        for weight in weights:
            weight.mul_(factor.to(weight.dtype).view(1, -1, 1))


def _norm(weights: Sequence[Tensor]) -> Tensor:
    """Norm of each unit's weights over all readers, at least float32, ``(units,)``."""
    finer = torch.promote_types(weights[0].dtype, torch.float32)
    parts = [torch.linalg.vector_norm(w, dim=(0, 2), dtype=finer) for w in weights]
    return parts[0] if len(parts) == 1 else torch.stack(parts).norm(dim=0)


class Penalty:
    """The penalty of a run: for whom, how strong, and kept up to date as beds come and go.

    Attributes:
        strength: ``c``; 0 turns it off.
        host: Whether the host's own units are in.
        grown: Whether newborn units are in.
    """

    def __init__(self) -> None:
        self.strength = 0.0
        self.host = self.grown = False
        self._groups: list[Outgoing] = []
        self._seen: list[tuple[int, bool, bool]] | None = None

    def set(self, strength: float, *, host: bool, grown: bool) -> None:
        """Change it."""
        self.strength, self.host, self.grown, self._seen = strength, host, grown, None

    def step_(self, layers: Sequence[ChunkedKasminaLayer], rate: Rate) -> None:
        """To be called after each optimizer step."""
        if not self.strength:
            return
        beds = [layer.morpho.bed_at(i) for layer in layers for i in range(len(layer.morpho.beds))]
        seen = [(bed.event, bed.paused, bool(bed.kept.any())) for bed in beds]
        if seen != self._seen:
            self._groups = outgoing_weights(layers, host=self.host, grown=self.grown)
            self._seen = seen
        shrink_(self._groups, self.strength, rate)

    def state_dict(self) -> dict[str, float | bool]:
        """Plain values."""
        return {"strength": self.strength, "host": self.host, "grown": self.grown}
