"""What a forward pass costs, layer by layer, and how much dearer growth may make it."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_morpho.layers import HybridKasminaLayer, SeedBeds


@contextlib.contextmanager
def counted_positions(layers: Mapping[str, HybridKasminaLayer]) -> Iterator[dict[str, int]]:
    """Count at how many positions each layer is computed in the passes inside; a compiled model runs eagerly.

    Args:
        layers: The hybrid layers by name.

    Example:
        >>> from torch import nn
        >>> layer = HybridKasminaLayer(nn.Linear(3, 2))
        >>> with counted_positions({"net": layer}) as positions:
        ...     _ = layer(torch.ones(5, 7, 3))
        >>> positions
        {'net': 35}
    """
    positions = dict.fromkeys(layers, 0)

    def note(name: str, layer: HybridKasminaLayer, out: Any) -> None:
        if isinstance(out, Tensor):
            positions[name] += out.numel() // layer.chunks.num_features

    handles = [
        layer.register_forward_hook(lambda module, _, out, name=name: note(name, module, out))
        for name, layer in layers.items()
    ]
    compiled = "torch._dynamo" in sys.modules
    try:
        with torch.compiler.set_stance("force_eager") if compiled else contextlib.nullcontext():
            yield positions
    finally:
        for handle in handles:
            handle.remove()


class FlopBudget:
    """Forward operations of a model's layers and of their beds, and a limit for the latter.

    A weight costs two operations at each position where it is used, biases are left out. Beds count
    whole, dead units and frozen fossils included: that is what the model in training computes.

    Args:
        layers: The hybrid layers by name.
        share: Most operations that beds may add, as a share of those of the layers themselves; None: no limit.

    Attributes:
        positions: Positions at which each layer is computed in a batch; None before they were counted.

    Example:
        >>> from torch import nn
        >>> layer = HybridKasminaLayer(nn.Linear(3, 2))
        >>> budget = FlopBudget({"net": layer}, share=0.5)
        >>> budget.positions = {"net": 10}
        >>> budget.host, budget.cost("net")
        (120.0, 800.0)
        >>> budget.problem("net")
        'growth would add 6.67 times what the layers themselves cost, `budget.flops` allows 0.5'
    """

    def __init__(self, layers: Mapping[str, HybridKasminaLayer], share: float | None = None) -> None:
        self.layers, self.share = layers, share
        self.positions: dict[str, int] | None = None
        self._names = {layer.morpho: name for name, layer in layers.items()}

    @property
    def wanted(self) -> bool:
        """Whether the positions are still to be counted."""
        return self.share is not None and self.positions is None

    @property
    def host(self) -> float:
        """Operations of the layers themselves in a batch."""
        return sum(2.0 * _weights(layer) * self._at(layer.morpho) for layer in self.layers.values())

    @property
    def grown(self) -> float:
        """Operations of all beds and links in use."""
        held = [layer.morpho for layer in self.layers.values()]
        beds = sum(self._bed(seeds, index) for seeds in held for index in seeds.live_beds())
        return beds + sum(
            self._link(seeds) for seeds in held for index in seeds.live_beds() for _ in seeds.links.live(index)
        )

    def cost(self, name: str) -> float:
        """Operations that the next germination of a layer would add, those of its links included."""
        seeds = self.layers[name].morpho
        cost = self._bed(seeds, 0)
        if len(seeds.links) and seeds.inlets:
            cost += len(seeds.inlets[0].producer.live_beds()) * self._link(seeds)  # type: ignore[operator]
        behind = None if seeds.outlet is None else seeds.outlet.consumer
        if isinstance(behind, SeedBeds) and len(behind.links):
            cost += len(behind.live_beds()) * self._link(behind)
        return cost

    def problem(self, name: str) -> str | None:
        """Why a layer may not take a germination now, None if it may."""
        return self.problems([name]).get(name)

    def problems(self, names: Iterable[str]) -> dict[str, str]:
        """Those of some layers that may not take a germination now, and why; all beds are added up once."""
        if self.share is None:
            return {}
        if self.positions is None:
            why = "what a forward pass costs (`budget.flops`) is not known before the first training batch"
            return dict.fromkeys(names, why)
        grown, host = self.grown, self.host
        found = {name: self._problem(name, grown, host) for name in names}
        return {name: why for name, why in found.items() if why is not None}

    def _problem(self, name: str, grown: float, host: float) -> str | None:
        assert self.positions is not None and self.share is not None
        if not self.positions[name]:
            return "it did not run in the first training batch, so what it costs (`budget.flops`) is not known"
        share = (grown + self.cost(name)) / host
        if share <= self.share:
            return None
        return (
            f"growth would add {share:.2f} times what the layers themselves cost, `budget.flops` allows {self.share:g}"
        )

    def _at(self, seeds: SeedBeds) -> int:
        return 0 if self.positions is None else self.positions[self._names[seeds]]

    def _bed(self, seeds: SeedBeds, index: int) -> float:
        """Operations of one bed: new hidden units are computed where their producer is."""
        sources = {f"_in{k}": self._at(tap.producer) for k, tap in enumerate(seeds.inlets)}  # type: ignore[arg-type]
        weights = {name: w for name, w in seeds.bed_at(index).values().items() if not name.startswith("b_")}
        return sum(2.0 * weight.numel() * sources.get(name[1:], self._at(seeds)) for name, weight in weights.items())

    def _link(self, seeds: SeedBeds) -> float:
        """Operations of one link from the layer before."""
        producer = seeds.inlets[0].producer
        return 2.0 * seeds.links.all_links()[0].numel * self._at(producer)  # type: ignore[arg-type]


def _weights(layer: HybridKasminaLayer) -> int:
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight.numel()
