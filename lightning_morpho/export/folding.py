"""Seeds that become part of the weights of plain layers."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_morpho.blueprints import Span
from lightning_morpho.grafting import weighted
from lightning_morpho.layers import Bed, HybridKasminaLayer, SeedBeds

Weights = tuple[Tensor, "Tensor | None"]
"""Weight and bias of a layer."""


def live_beds(seeds: SeedBeds) -> dict[int, Bed]:
    """The beds that add to a layer's output, by index; none of a layer that is switched off."""
    if seeds.off:
        return {}
    beds = {index: seeds.bed_at(index) for index in range(len(seeds.beds))}
    return {index: bed for index, bed in beds.items() if not bed.free}


def alive_units(seeds: SeedBeds) -> Tensor:
    """Which hidden units of a pair were not declared dead: the host's, then those of each live bed, bool.

    Args:
        seeds: Seeds of the pair's consumer.
    """
    return torch.from_numpy(np.concatenate([seeds.host_alive, *(bed.alive for bed in live_beds(seeds).values())]))


def row_alpha(seeds: SeedBeds, index: int) -> Tensor:
    """Blend weight of each output feature of a layer for one bed, in the bed's device and dtype."""
    like = next(seeds.bed_at(index).parameters())
    per_chunk = torch.from_numpy(seeds.row_alpha(index)).to(like.device, like.dtype)
    return seeds.blueprint.site.chunks.expand(per_chunk)


def folds(layer: HybridKasminaLayer) -> bool:
    """Whether the live seeds of a layer become part of its weights, which must be plain parameters for that."""
    adds = layer.morpho.config.grafting.blend == "add"
    return adds and layer.morpho.blueprint.folds and "weight" in layer._parameters


def folded_weights(layer: HybridKasminaLayer) -> Weights | None:
    """Weight and bias of a layer with all that folds into them, None if they stay as they are.

    Rows: the layer's own, then those of each bed of its consumer. Columns: the layer's own inputs, then the
    new units of each of its own beds.
    """
    seeds = layer.morpho
    own, tap = live_beds(seeds), seeds.outlet
    consumer = None if tap is None else tap.consumer
    behind = live_beds(consumer) if isinstance(consumer, SeedBeds) else {}
    if not behind and not (own and folds(layer)):
        return None
    weight, bias = _with_own_seeds(layer, own) if folds(layer) else _base(layer)
    rows, biases = [weight], [bias]
    for index, bed in behind.items():
        assert isinstance(consumer, SeedBeds) and tap is not None
        values, place = bed.values(), consumer.inlets.index(tap)
        columns = _links(consumer, index, seeds, own) if isinstance(seeds.blueprint, Span) else []
        rows.append(torch.cat([values[f"w_in{place}"], *columns], dim=1))
        biases.append(values.get(f"b_in{place}"))
    kept = [b for b in biases if b is not None]
    return torch.cat(rows), torch.cat(kept) if kept else None


def _base(layer: nn.Module) -> Weights:
    return layer.weight.detach(), None if layer.bias is None else layer.bias.detach()  # type: ignore


def _with_own_seeds(layer: HybridKasminaLayer, own: Mapping[int, Bed]) -> Weights:
    """A layer's weights with its own seeds: new columns of spans, or what other kinds add.

    Each seed read what the base layer gave, so what they add is added up: in float32 at least, and rounded once.
    """
    seeds, (own_weight, own_bias) = layer.morpho, _base(layer)
    dtype = own_weight.dtype
    wide = torch.promote_types(dtype, torch.float32)
    base = own_weight.to(wide), None if own_bias is None else own_bias.to(wide)
    weight, bias = base
    for index, bed in own.items():
        alpha = row_alpha(seeds, index)
        if isinstance(seeds.blueprint, Span):
            weight = torch.cat([weight, weighted(bed.values()["w_out"], alpha)], dim=1)
            continue
        values = {name: value.to(wide) for name, value in bed.values().items()}
        added, offset = seeds.blueprint.fold(values, alpha.to(wide), *base)
        weight = weight + added
        if offset is not None:
            bias = offset if bias is None else bias + offset
    return weight.to(dtype), None if bias is None else bias.to(dtype)


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


def fold_norms_(seeds: SeedBeds) -> None:
    """Put the norms of live spans behind those of the host."""
    if not isinstance(seeds.blueprint, Span):
        return
    for place, host in enumerate(seeds.blueprint.route.norms):
        norms = [bed.norms[place] for bed in live_beds(seeds).values()]
        assert isinstance(host, _BatchNorm)
        for name, value in (*host.named_parameters(), *host.named_buffers()):
            if value.ndim == 1:
                joined = torch.cat([value.detach(), *(getattr(norm, name).detach() for norm in norms)])
                setattr(host, name, nn.Parameter(joined, value.requires_grad) if name in host._parameters else joined)
        host.num_features += sum(int(norm.num_features) for norm in norms)  # type: ignore[arg-type, misc]


def set_weights_(layer: nn.Module, weight: Tensor, bias: Tensor | None) -> None:
    """Give a plain layer other weights, and the sizes that go with them."""
    trainable = bool(layer.weight.requires_grad)
    layer.weight = nn.Parameter(weight.clone(), trainable)
    if bias is not None:
        layer.bias = nn.Parameter(bias.clone(), trainable)
    out, in_ = weight.shape[:2]
    if isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = out, in_
    elif isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        layer.out_channels, layer.in_channels = out, in_ * layer.groups
