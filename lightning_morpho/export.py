"""The way out: a grown model as a plain one."""

from __future__ import annotations

import copy
import operator
from collections.abc import Mapping

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_morpho.blueprints import Span
from lightning_morpho.layers import Bed, HybridKasminaLayer, SeedBeds, strip_, surviving
from lightning_morpho.surgery import hybrid_layers


def export(model: nn.Module) -> nn.Module:
    """A copy of a grown model that needs no code of ours and gives the same output.

    Spans are folded: their units become rows of the producer and columns of the consumer, which are plain
    ``nn.Linear``, ``nn.ConvNd`` and norms of the larger size. Seeds of the other kinds become plain modules
    beside their layer: that layer's place is taken by a ``torch.fx.GraphModule``, its own weights gain the
    prefix ``base.`` in the ``state_dict``, and nothing may read ``layer.weight`` directly any more.

    Args:
        model: The model; it is not changed. Blend weights are folded as they are now.

    Returns:
        The copy.

    Raises:
        NotImplementedError: If a blueprint of your own has no plain form.

    Example:
        >>> from lightning_morpho import confirm_pairs_, morph_
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> _ = morph_(model), confirm_pairs_(model, torch.ones(3, 4))
        >>> _ = model[2].request_germination()
        >>> export(model)
        Sequential(
          (0): Linear(in_features=4, out_features=16, bias=True)
          (1): ReLU()
          (2): Linear(in_features=16, out_features=2, bias=True)
        )
    """
    plain = copy.deepcopy(model)
    layers = hybrid_layers(plain)
    with torch.no_grad():
        weights = {name: _folded_weights(layer) for name, layer in layers.items()}
        sides = {name: _side_modules(layer.morpho) for name, layer in layers.items()}
        for layer in layers.values():
            _fold_norms_(layer.morpho)
    for name, layer in layers.items():
        reads_input = layer.morpho.blueprint.source == "input"
        strip_(layer)
        _set_weights_(layer, *weights[name])
        if sides[name]:
            parent, _, child = name.rpartition(".")
            setattr(plain.get_submodule(parent), child, _beside(layer, sides[name], reads_input))
    return plain


def _live(seeds: SeedBeds) -> dict[int, Bed]:
    beds = {index: seeds.bed_at(index) for index in range(len(seeds.beds))}
    return {index: bed for index, bed in beds.items() if not bed.free}


def _row_alpha(seeds: SeedBeds, index: int, like: Tensor) -> Tensor:
    """Blend weight of each output feature of a layer for one bed."""
    per_chunk = torch.from_numpy(seeds.row_alpha(index)).to(like.device, like.dtype)
    return seeds.blueprint.site.chunks.expand(per_chunk)


def _folded_weights(layer: HybridKasminaLayer) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of a layer with the units of the spans before and behind it.

    Rows: the layer's own, then those of each bed of its consumer. Columns: the layer's own inputs, then the
    new units of each of its own beds. Dead units have neither.
    """
    seeds = layer.morpho
    weight, bias = layer.weight.detach(), None if layer.bias is None else layer.bias.detach()  # type: ignore
    own = _live(seeds) if isinstance(seeds.blueprint, Span) else {}
    columns = []
    for index, bed in own.items():
        w_out = bed.values()["w_out"]
        columns.append(w_out * _row_alpha(seeds, index, w_out).view(-1, *[1] * (w_out.ndim - 1)))
    rows = [torch.cat([weight, *columns], dim=1)]
    biases = [bias]
    consumer = seeds.outlet.consumer if seeds.outlet is not None else None
    if isinstance(consumer, SeedBeds):
        place = [tap is seeds.outlet for tap in consumer.inlets].index(True)
        for index, bed in _live(consumer).items():
            values = bed.values()
            rows.append(torch.cat([values[f"w_in{place}"], *_links(consumer, index, seeds, own)], dim=1))
            biases.append(values.get(f"b_in{place}"))
    kept = [b for b in biases if b is not None]
    folded, shift = torch.cat(rows), torch.cat(kept) if kept else None
    if isinstance(seeds.blueprint, Span):
        folded = folded[:, surviving(seeds).repeat_interleave(seeds.blueprint.route.positions).to(folded.device)]
    if isinstance(consumer, SeedBeds):
        alive = surviving(consumer).to(folded.device)
        folded, shift = folded[alive], None if shift is None else shift[alive]
    return folded, shift


def _links(consumer: SeedBeds, index: int, seeds: SeedBeds, own: Mapping[int, Bed]) -> list[Tensor]:
    """What one bed of a consumer reads of each bed of its producer; zero where there is no link."""
    live = dict(consumer.links.live(index))
    blocks = []
    for before, bed in own.items():
        if before in live:
            blocks.append(live[before].weight * float(seeds.row_alpha(before).max()))
        else:
            assert isinstance(consumer.blueprint, Span)
            shape = consumer.blueprint.link_shape(bed.values()["w_out"].shape[1])
            blocks.append(bed.values()["w_out"].new_zeros(shape))
    return blocks


def _fold_norms_(seeds: SeedBeds) -> None:
    """Put the norms of live spans behind those of the host."""
    if not isinstance(seeds.blueprint, Span):
        return
    alive = surviving(seeds)
    for place, host in enumerate(seeds.blueprint.route.norms):
        norms = [bed.norms[place] for bed in _live(seeds).values()]
        for name, value in (*host.named_parameters(), *host.named_buffers()):
            if value.ndim == 1:
                parts = [value.detach(), *(getattr(norm, name).detach() for norm in norms)]
                joined = torch.cat(parts)[alive.to(value.device)]
                setattr(host, name, nn.Parameter(joined, value.requires_grad) if name in host._parameters else joined)
        assert isinstance(host, _BatchNorm)
        host.num_features = int(alive.sum())


def _set_weights_(layer: nn.Module, weight: Tensor, bias: Tensor | None) -> None:
    """Give a plain layer other weights, and the sizes that go with them."""
    old = layer.weight
    assert isinstance(old, Tensor)
    if weight.shape == old.shape and torch.equal(weight, old):
        return
    trainable = bool(old.requires_grad)
    layer.weight = nn.Parameter(weight.clone(), trainable)
    if bias is not None:
        layer.bias = nn.Parameter(bias.clone(), trainable)
    out, in_ = int(weight.shape[0]), int(weight.shape[1])
    if isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = out, in_
    else:
        layer.out_channels, layer.in_channels = out, in_  # type: ignore[assignment]


def _side_modules(seeds: SeedBeds) -> list[tuple[nn.Module, Tensor | None]]:
    """Plain modules of the live beds of other kinds, with their blend weight where it is not 1."""
    if isinstance(seeds.blueprint, Span):
        return []
    sides: list[tuple[nn.Module, Tensor | None]] = []
    for index, bed in _live(seeds).items():
        alpha = _row_alpha(seeds, index, next(iter(bed.values().values())))
        blend = None if bool((alpha == 1).all()) else seeds.blueprint.site.per_feature(alpha)
        sides.append((seeds.blueprint.plain(bed.values()), blend))
    return sides


def _beside(base: nn.Module, sides: list[tuple[nn.Module, Tensor | None]], reads_input: bool) -> fx.GraphModule:
    """A layer with plain modules that add to its output."""
    root, graph = nn.Module(), fx.Graph()
    root.add_module("base", base)
    x = graph.placeholder("input")
    y = out = graph.call_module("base", (x,))
    for index, (side, alpha) in enumerate(sides):
        root.add_module(f"side{index}", side)
        added = graph.call_module(f"side{index}", (x if reads_input else y,))
        if alpha is not None:
            root.register_buffer(f"alpha{index}", alpha)
            added = graph.call_function(operator.mul, (graph.get_attr(f"alpha{index}"), added))
        out = graph.call_function(operator.add, (out, added))
    graph.output(out)
    return fx.GraphModule(root, graph, type(base).__name__)
