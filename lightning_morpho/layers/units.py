"""Hidden units between producers and their consumer, the host's and the grown ones, as one layer.

The sizing rule looks at all of them alike: who reads them, with which weights, and which of them are dead. The
weights of a dead unit are exactly zero and stay so; ``export`` leaves it out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from lightning_morpho.blueprints import Span
from lightning_morpho.layers.beds import Bed
from lightning_morpho.layers.hybrid import ChunkedKasminaLayer
from lightning_morpho.layers.seeds import SeedBeds

HOST = -1
"""Block of the host's own units; the other blocks are live beds, by their index."""


@dataclass(frozen=True)
class Reader:
    """One map that reads hidden units: the consumer itself, or a bed of the pair behind it.

    Attributes:
        columns: Weights by block, ``(rows, units * positions, *kernel)``; a block without an entry isn't read.
        bias: ``(rows,)``, None if the map has none.
    """

    columns: Mapping[int, nn.Parameter]
    bias: nn.Parameter | None


class HiddenLayer:
    """The hidden units of one pair.

    Args:
        consumer: The layer that reads them.
        producers: The layers whose output they are.

    Attributes:
        seeds: Seeds of the consumer.
        blueprint: What grows there.
        blocks: Units of each block, dead ones too; the host's first.
    """

    def __init__(self, consumer: ChunkedKasminaLayer, producers: Iterable[ChunkedKasminaLayer]) -> None:
        assert isinstance(consumer.morpho.blueprint, Span)
        self.consumer = consumer
        self.producers = tuple(producers)
        self.seeds = consumer.morpho
        self.blueprint: Span = consumer.morpho.blueprint
        self.blocks = {HOST: self.blueprint.route.producers[0].out_features}
        self.blocks |= {index: self.blueprint.hidden for index, _ in _live(self.seeds)}

    @property
    def name(self) -> str:
        """Name of the consumer."""
        return self.seeds.name

    @property
    def units(self) -> int:
        """Number of units, dead ones too."""
        return sum(self.blocks.values())

    def alive_in(self, block: int) -> np.ndarray:
        """Which units of a block are not dead, bool, the pair's own record."""
        return self.seeds.host_alive if block == HOST else self.seeds.bed_at(block).alive

    @property
    def alive(self) -> Tensor:
        """Which units are not dead, bool ``(units,)``, a copy."""
        return torch.from_numpy(np.concatenate([self.alive_in(block) for block in self.blocks]))

    def split(self, values: Tensor) -> dict[int, Tensor]:
        """A vector over all units as one of each block."""
        return dict(zip(self.blocks, values.split(list(self.blocks.values())), strict=True))

    @property
    def readers(self) -> list[Reader]:
        """Everybody who reads the units."""
        own = {i: bed.get_parameter("w_out") for i, bed in _live(self.seeds)}
        readers = [Reader({HOST: _weight(self.consumer), **own}, _bias(self.consumer))]
        for behind, index, bed, place in _behind(self.seeds):
            values = dict(bed.named_parameters())
            columns = {HOST: values[f"w_in{place}"]}
            columns |= {before: link.get_parameter("weight") for before, link in behind.links.live(index)}
            readers.append(Reader(columns, values.get(f"b_in{place}")))
        return readers

    def rows_of(self, weight: Tensor, block: int) -> Tensor:
        """A reader's weights as ``(rows, units, taps)``; taps are kernel elements, or positions behind a flatten."""
        return weight.reshape(len(weight), self.blocks[block], -1)

    def samples(self, host: Tensor, grown: Mapping[int, Tensor]) -> Tensor:
        """Values of all units, one row a sample and position, ``(M, units)``.

        Args:
            host: The consumer's input.
            grown: New units of each live bed in the same layout.
        """
        parts = {HOST: host, **grown}
        return torch.cat([self._columns(parts[block], count) for block, count in self.blocks.items()], 1)

    def _columns(self, x: Tensor, count: int) -> Tensor:
        if self.blueprint.route.positions > 1:  # behind a flatten a channel's positions lie side by side
            return x.unflatten(-1, (count, -1)).movedim(-2, -1).reshape(-1, count)
        return self.blueprint.site.to_columns(x).reshape(-1, count)

    def mark_dead_(self, dead: Tensor) -> None:
        """Set all weights of some units to zero, for good.

        Args:
            dead: Bool ``(units,)``.
        """
        for block, rows in self.split(dead).items():
            self.alive_in(block)[rows.numpy()] = False
        with torch.no_grad():
            for parameter, mask in self.masks():
                parameter.mul_(mask)

    def masks(self) -> Iterator[tuple[nn.Parameter, Tensor]]:
        """Every parameter with weights of dead units, and a mask that broadcasts to it: 0 where they are, else 1."""
        positions = self.blueprint.route.positions
        for index, bed in _live(self.seeds):
            if not bed.alive.all():
                yield from self._bed_masks(index, bed, positions)
        if not self.seeds.host_alive.all():
            yield from self._host_masks(self.seeds.host_alive, positions)

    def _bed_masks(self, index: int, bed: Bed, positions: int) -> Iterator[tuple[nn.Parameter, Tensor]]:
        for name, value in bed.named_parameters():  # of its norms too
            yield value, _mask(value, bed.alive, 1, positions) if name == "w_out" else _mask(value, bed.alive)
        for _, link in self.seeds.links.live(index):
            yield link.get_parameter("weight"), _mask(link.weight, bed.alive)
        for behind, other, _, _ in _behind(self.seeds):
            for before, link in behind.links.live(other):
                if before == index:
                    yield link.get_parameter("weight"), _mask(link.weight, bed.alive, 1, positions)

    def _host_masks(self, alive: np.ndarray, positions: int) -> Iterator[tuple[nn.Parameter, Tensor]]:
        rows: list[nn.Parameter | None] = []
        for producer in self.producers:
            rows += [_weight(producer), _bias(producer)]
            if isinstance(producer.morpho.blueprint, Span):
                rows += [bed.get_parameter("w_out") for _, bed in _live(producer.morpho)]
        rows += [parameter for norm in self.blueprint.route.norms for parameter in norm.parameters()]
        for parameter in rows:
            if parameter is not None:
                yield parameter, _mask(parameter, alive)
        columns = [_weight(self.consumer)]
        columns += [bed.get_parameter(f"w_in{place}") for _, _, bed, place in _behind(self.seeds)]
        for parameter in columns:
            yield parameter, _mask(parameter, alive, 1, positions)


def dead_parameters(layers: Iterable[ChunkedKasminaLayer]) -> int:
    """Parameters that dead hidden units hold: zero for good, and gone from an exported model.

    Args:
        layers: All hybrid layers of a model.
    """
    alive: dict[nn.Parameter, Tensor] = {}
    for layer in hidden_layers(layers):
        for parameter, mask in layer.masks():
            alive[parameter] = alive[parameter] * mask if parameter in alive else mask
    return sum(p.numel() - int(mask.bool().expand(p.shape).sum()) for p, mask in alive.items())


def hidden_layers(layers: Iterable[ChunkedKasminaLayer]) -> list[HiddenLayer]:
    """The confirmed pairs of a model that can grow, last to first: a layer after all that its units feed by links.

    Args:
        layers: Its hybrid layers, in order.
    """
    owners = {id(layer.morpho): layer for layer in layers}
    order: list[ChunkedKasminaLayer] = []

    def visit(layer: ChunkedKasminaLayer) -> None:
        outlet = layer.morpho.outlet
        if outlet is not None and id(outlet.consumer) in owners:
            visit(owners[id(outlet.consumer)])
        if layer not in order:
            order.append(layer)

    for layer in reversed(owners.values()):
        visit(layer)
    return [
        HiddenLayer(layer, [owners[id(tap.producer)] for tap in layer.morpho.inlets])
        for layer in order
        if isinstance(layer.morpho.blueprint, Span) and layer.morpho.confirmed and layer.morpho.inlets
    ]


def _live(seeds: SeedBeds) -> list[tuple[int, Bed]]:
    beds = [(index, seeds.bed_at(index)) for index in range(len(seeds.beds))]
    return [(index, bed) for index, bed in beds if not bed.free]


def _behind(seeds: SeedBeds) -> Iterator[tuple[SeedBeds, int, Bed, int]]:
    """Live beds of the pair behind, which read these units: its seeds, index, bed, which of its producers this is."""
    consumer = seeds.outlet.consumer if seeds.outlet is not None else None
    if isinstance(consumer, SeedBeds):
        place = [tap is seeds.outlet for tap in consumer.inlets].index(True)
        for index, bed in _live(consumer):
            yield consumer, index, bed, place


def _weight(layer: nn.Module) -> nn.Parameter:
    assert isinstance(layer.weight, nn.Parameter)
    return layer.weight


def _bias(layer: nn.Module) -> nn.Parameter | None:
    assert layer.bias is None or isinstance(layer.bias, nn.Parameter)
    return layer.bias


def _mask(parameter: Tensor, alive: np.ndarray, axis: int = 0, positions: int = 1) -> Tensor:
    mask = torch.from_numpy(alive).repeat_interleave(positions).to(parameter.device, parameter.dtype)
    return mask.view(*[1] * axis, -1, *[1] * (parameter.ndim - axis - 1))
