"""How live spans act: hidden units from the taps, into the output and on to the next layer."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from lightning_morpho.blueprints import Span
from lightning_morpho.grafting import blend_add, weighted
from lightning_morpho.layers.beds import Bed
from lightning_morpho.layers.faults import add_contained, contained, guarded
from lightning_morpho.layers.incubation import Scale, feature_mask, incubate
from lightning_morpho.layers.links import Link, linkable, open_older_, open_younger_
from lightning_morpho.layers.taps import Hidden, Tap

if TYPE_CHECKING:
    from lightning_morpho.layers.hybrid import ChunkedKasminaLayer
    from lightning_morpho.layers.seeds import SeedBeds


class SpanPlan:
    """What the live spans of a layer add to its output. Rebuilt whenever a seed's state changes.

    Args:
        blueprint: The span and its route.
        beds: The live beds by index.
        alphas: Blend weight of each chunk of each of them, float32 ``(N,)``.
        links: Live links of each of them, with the bed before that each comes from.
        inlets: Taps of the producers.
        incubating: Which chunks of each of the beds incubate, bool ``(N,)``.

    Attributes:
        observer: Is shown the new hidden units of each bed, by its index; None: nobody.
    """

    def __init__(
        self,
        blueprint: Span,
        beds: dict[int, Bed],
        alphas: Sequence[np.ndarray],
        links: Sequence[list[tuple[int, Link]]],
        inlets: Sequence[Tap],
        incubating: Sequence[np.ndarray],
    ) -> None:
        self.blueprint = blueprint
        self.beds = beds
        self.links = list(links)
        self.inlets = tuple(inlets)
        self.observer: Callable[[dict[int, Tensor]], None] | None = None
        self._rows = tuple(alphas)
        self._alpha, self._strength, self._young = [], [], []
        for bed, rows, young in zip(beds.values(), alphas, incubating, strict=True):
            self._alpha.append(bed.hold("alpha", blueprint.site.chunks.expand(torch.from_numpy(rows))))
            # A link hangs on a whole bed: it fades out with the last of the bed's chunks.
            self._strength.append(bed.hold("strength", torch.tensor(rows.max())))
            self._young.append(bed.hold("young", feature_mask(blueprint, young)) if young.any() else None)
        self._acts = [bool(rows.any()) or not young.any() for rows, young in zip(alphas, incubating, strict=True)]
        self._scaled = False

    def scaled(self, factors: Tensor, every: np.ndarray) -> SpanPlan:
        """The same plan with its blend weights times ``factors``, ``(beds, N)``; without gradients.

        Outputs and hidden units are scaled, not the weights that give and read them: where ``factors`` are those of
        many replicas, all share one product with the same weights.

        Args:
            factors: In [0, 1].
            every: Those of all replicas, ``(replicas, beds, N)``: a bed that fades in none of them is one for all.
        """
        plan = copy.copy(self)
        plan._scaled = True
        alphas = [torch.from_numpy(rows).to(factors.device) * factors[i] for i, rows in enumerate(self._rows)]
        plan._alpha = [self.blueprint.site.chunks.expand(alpha) for alpha in alphas]
        fades = [(rows * every[:, i]).max(1).min() < rows.max() for i, rows in enumerate(self._rows)]
        plan._strength = [
            alpha.max() if faded else own for alpha, faded, own in zip(alphas, fades, self._strength, strict=True)
        ]
        return plan

    def __call__(self, y: Tensor, scale: Scale = 1.0) -> tuple[Tensor, Hidden]:
        """Add what the spans give to the base layer's output.

        Args:
            y: The base layer's output.
            scale: Factor of the loss in the backward pass, for incubation.

        Returns:
            The output, and the new hidden units for the layer behind.
        """
        taken = [tap.take() for tap in self.inlets]
        sources, before = [x for x, _ in taken], taken[0][1]
        hidden: dict[int, tuple[Tensor, Tensor]] = {}
        out = y
        for position, (index, bed) in enumerate(self.beds.items()):
            alpha, strength, young = self._alpha[position], self._strength[position], self._young[position]
            if self._acts[position]:
                parameters = bed.values()
                units = self._units(position, bed, [guarded(x) for x in sources], before)
                if self._scaled:
                    delta = contained(self.blueprint.grow(parameters, units))
                    out = blend_add(out, delta, self.blueprint.site.per_feature(alpha))
                    hidden[index] = units * strength.to(units.dtype), torch.ones((), device=units.device)
                else:
                    parameters["w_out"] = weighted(parameters["w_out"], alpha)
                    out = add_contained(out, self.blueprint.grow(parameters, units))
                    hidden[index] = units, strength
            if young is not None:
                apart = {i: (units.detach(), power) for i, (units, power) in before.items()}
                units = self._units(position, bed, [x.detach() for x in sources], apart, apart=True)
                out = incubate(out, self.blueprint.grow(bed.values(), units), young, scale)
        if self.observer is not None:
            self.observer({index: units for index, (units, _) in hidden.items()})
        return out, hidden

    def _units(
        self, position: int, bed: Bed, sources: Sequence[Tensor], before: Hidden, *, apart: bool = False
    ) -> Tensor:
        """New hidden units of one bed; a bed before it that does not act has none to read."""
        links = [
            (before[i][0], link.weight * before[i][1].to(link.weight.dtype))
            for i, link in self.links[position]
            if i in before
        ]
        return self.blueprint.hidden_units(
            bed.values(), list(bed.norms), sources, links, training=bed.training, apart=apart
        )


def connect_(consumer: ChunkedKasminaLayer, producers: Sequence[ChunkedKasminaLayer]) -> None:
    """Lay the taps from producers to their consumer."""
    consumer.morpho.inlets = tuple(Tap(producer.morpho, consumer.morpho) for producer in producers)
    for tap, producer in zip(consumer.morpho.inlets, producers, strict=True):
        producer.morpho.outlet = tap


def allocate_links_(seeds: SeedBeds, like: Tensor) -> None:
    """Make the links from a layer's producer, where it is itself the consumer of a pair."""
    before = _before(seeds)
    if before is not None:
        seeds.links.allocate(before.blueprint, len(before.beds), seeds.blueprint, len(seeds.beds), like)


def _before(seeds: SeedBeds) -> SeedBeds | None:
    """Seeds of the layer whose new units can feed these."""
    producer = seeds.inlets[0].producer if seeds.inlets else None
    return producer if producer is not None and linkable(producer.blueprint, seeds.blueprint) else None  # type: ignore


def _behind(seeds: SeedBeds) -> SeedBeds | None:
    """Seeds of the layer that the new units of these can feed."""
    consumer = seeds.outlet.consumer if seeds.outlet is not None else None
    return consumer if consumer is not None and linkable(seeds.blueprint, consumer.blueprint) else None  # type: ignore


def _live(seeds: SeedBeds) -> list[int]:
    return [index for index, bed in enumerate(seeds.beds) if isinstance(bed, Bed) and not bed.free]


def open_links_(seeds: SeedBeds, index: int, warmup: int, generator: torch.Generator) -> None:
    """Link a bed that germinates now with the live ones of the layers before and behind it."""
    blueprint = seeds.blueprint
    if not isinstance(blueprint, Span):
        return
    before, behind = _before(seeds), _behind(seeds)
    bed = seeds.beds[index]
    assert isinstance(bed, Bed)
    links = [seeds.links.between(index, i) for i in _live(before)] if before is not None else []
    _draw_links_(bed, links, warmup, generator)
    if behind is not None:
        for j in _live(behind):
            open_older_(behind.links.between(j, index), bed.event, warmup)
        behind.refresh()


def _draw_links_(bed: Bed, links: Sequence[Link], warmup: int, generator: torch.Generator) -> None:
    """Random links to a bed whose output is zero; it and they share the fan-in."""
    if not links:
        return
    own = bed.values()["w_in0"][0].numel()
    fan_in = own + sum(link.weight[0].numel() for link in links)
    with torch.no_grad():
        for name, value in bed.values().items():
            if name != "w_out":
                value.mul_((own / fan_in) ** 0.5)
    for link in links:
        open_younger_(link, bed, fan_in, bed.event, warmup, generator)


def redraw_links_(seeds: SeedBeds, index: int, generator: torch.Generator) -> None:
    """Begin anew with the links of a bed that does; those behind it were fed nothing by it so far."""
    if not isinstance(seeds.blueprint, Span):
        return
    bed = seeds.bed_at(index)
    _draw_links_(bed, [link for _, link in seeds.links.live(index)], bed.warmup, generator)
    behind = _behind(seeds)
    for j in _live(behind) if behind is not None else ():
        assert behind is not None
        link = behind.links.between(j, index)
        if not link.free:
            open_older_(link, bed.event, bed.warmup)


def close_links_(seeds: SeedBeds, index: int) -> None:
    """Drop the links of a bed that was freed."""
    for _, link in seeds.links.live(index):
        link.give_back()
    behind = _behind(seeds)
    if behind is not None:
        for j in _live(behind):
            link = behind.links.between(j, index)
            if not link.free:
                link.give_back()
        behind.refresh()


def rest_links_(seeds: SeedBeds) -> None:
    """Let the links of a layer's beds wait as long as one of the two beds that they join does."""
    for before, own in ((_before(seeds), seeds), (seeds, _behind(seeds))):
        if before is not None and own is not None:
            for j in _live(own):
                for i, link in own.links.live(j):
                    link.rest(own.bed_at(j).resting or before.bed_at(i).resting)


def span_plan(
    seeds: SeedBeds, live: list[int], alphas: Sequence[np.ndarray], incubating: Sequence[np.ndarray]
) -> SpanPlan:
    """The plan of a layer's live spans."""
    assert isinstance(seeds.blueprint, Span)
    beds = {index: seeds.bed_at(index) for index in live}
    links = [seeds.links.live(i) for i in live]
    return SpanPlan(seeds.blueprint, beds, alphas, links, seeds.inlets, incubating)
