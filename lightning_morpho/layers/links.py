"""Links: what new hidden units read of the new hidden units of the layer before."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_morpho.blueprints import Blueprint, Span
from lightning_morpho.blueprints.base import uniform_
from lightning_morpho.layers.beds import Bed, GrownParameters, write_


class Link(GrownParameters):
    """Weights from the units of one bed to those of one bed of the next pair, as old as the younger of both.

    Args:
        shape: Shape of the weight.
        like: Tensor whose device and dtype it takes.
    """

    weight: Tensor

    def __init__(self, shape: tuple[int, ...], like: Tensor) -> None:
        super().__init__()
        self.allocate({"weight": shape}, like)


def linkable(upstream: Blueprint, downstream: Blueprint) -> bool:
    """Whether units of one pair can feed those of the next."""
    return isinstance(upstream, Span) and isinstance(downstream, Span) and len(downstream.route.producers) == 1


class LinkTable(nn.ModuleDict):
    """The links of a layer's beds to those of the layer before, by ``"own bed/bed before"``."""

    def allocate(self, upstream: Blueprint, before: int, downstream: Blueprint, own: int, like: Tensor) -> None:
        """Make a link for each pair of beds."""
        assert isinstance(upstream, Span) and isinstance(downstream, Span)
        shape = downstream.link_shape(upstream.columns)
        for j in range(own):
            for i in range(before):
                self[f"{j}/{i}".replace("/", "_")] = Link(shape, like)

    def between(self, own: int, before: int) -> Link:
        """The link of two beds."""
        link = self[f"{own}_{before}"]
        assert isinstance(link, Link)
        return link

    def live(self, own: int) -> list[tuple[int, Link]]:
        """Live links of one bed, with the bed before that each comes from."""
        keyed = ((key.split("_"), link) for key, link in self.items())
        return [(int(i), link) for (j, i), link in keyed if int(j) == own and isinstance(link, Link) and not link.free]

    def all_links(self) -> list[Link]:
        """Every link, live or free."""
        return [link for link in self.values() if isinstance(link, Link)]


def open_younger_(link: Link, bed: Bed, fan_in: int, event: int, warmup: int, generator: torch.Generator) -> None:
    """Link a bed that germinates now to an older one before it: random, as the bed's output is zero yet."""
    value = torch.empty(link.weight.shape)
    uniform_(value, fan_in, generator)
    write_(link.weight, value)
    link.take(event, warmup)


def open_older_(link: Link, event: int, warmup: int) -> None:
    """Link an older bed to one that germinates now before it: zero, as the older one's output is live."""
    write_(link.weight, torch.zeros(link.weight.shape))
    link.take(event, warmup)
