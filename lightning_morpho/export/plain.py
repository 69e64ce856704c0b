"""A grown model as a plain one."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from lightning_morpho.blueprints import Span
from lightning_morpho.export.beside import put_beside_, side_modules
from lightning_morpho.export.folding import alive_units, fold_norms_, folded_weights, set_weights_
from lightning_morpho.export.pruning import HiddenUnits, drop_unread_
from lightning_morpho.layers import HybridKasminaLayer
from lightning_morpho.random_state import preserved_random_state
from lightning_morpho.surgery import hybrid_layers, unmorph_


@preserved_random_state()
def export(model: nn.Module, *, prune: bool = True) -> nn.Module:
    """A copy of a grown model that needs no code of ours and gives the same output.

    What folds is folded into the weights, exactly. Spans become rows of the producer and columns of the
    consumer: plain ``nn.Linear``, ``nn.ConvNd`` and norms of the larger size, the same that the model's own class
    builds when it is asked for that width, so that its ``state_dict`` loads there. Kinds that are linear in what
    they read (:meth:`Blueprint.fold <lightning_morpho.Blueprint.fold>`) become part of their layer's weights.

    Seeds of the other kinds become plain modules beside their layer: its place is taken by a
    ``torch.fx.GraphModule`` of a few lines (``print(layer.code)`` shows them), its own weights gain the prefix
    ``base.`` in the ``state_dict``, and nothing may read ``layer.weight`` directly any more. The copy pickles
    whole and is loaded where this package is not installed.

    Args:
        model: The model, or a part of it that holds both layers of each pair; it is not changed. Blend weights are
            taken as they are now. Under ``torch.compile`` the model inside is taken.
        prune: Whether hidden units that nothing reads (all their outgoing weights exactly zero) are left out, the
            host's own between confirmed pairs too. This does not change the output, but units that have only
            germinated are gone: keep them with False to train on. Units that were declared dead always go.

    Returns:
        The copy, in the same mode, on the same device.

    Raises:
        NotImplementedError: If a blueprint of your own has no plain form.
        TypeError: If parameters are sharded over processes.

    Example:
        >>> from lightning_morpho import confirm_pairs_, morph_
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> _ = morph_(model), confirm_pairs_(model, torch.ones(3, 4))
        >>> _ = model[2].request_germination()
        >>> export(model, prune=False)
        Sequential(
          (0): Linear(in_features=4, out_features=16, bias=True)
          (1): ReLU()
          (2): Linear(in_features=16, out_features=2, bias=True)
        )
        >>> export(model)[0]  # nothing was learnt yet
        Linear(in_features=4, out_features=8, bias=True)
    """
    model = getattr(model, "_orig_mod", model)
    _check_whole(model)
    plain = copy.deepcopy(model)
    layers = hybrid_layers(plain)
    seeds = {name: layer.morpho for name, layer in layers.items()}
    hidden = _hidden_units(layers)
    with torch.no_grad():
        weights = {name: folded_weights(layer) for name, layer in layers.items()}
        sides = {name: side_modules(layer, prune=prune) for name, layer in layers.items()}
        for layer in layers.values():
            fold_norms_(layer.morpho)
    alive = [alive_units(units.consumer.morpho) for units in hidden]  # type: ignore[arg-type]
    unmorph_(plain, discard_live=True)
    for name, layer in layers.items():
        folded = weights[name]
        if folded is not None:
            set_weights_(layer, *folded)
    for units, kept in zip(hidden, alive, strict=True):
        units.keep_(kept)
    if prune:
        drop_unread_(hidden)
    for name, layer in layers.items():
        if sides[name]:
            plain = put_beside_(plain, layer, sides[name], seeds[name].blueprint.source == "input")
    return plain


def _check_whole(model: nn.Module) -> None:
    sharded = [name for name, value in model.named_parameters() if isinstance(value, DTensor)]
    if sharded:
        raise TypeError(
            f"`model` must hold whole parameters, got {len(sharded)} sharded ones (`{sharded[0]}`, ...): "
            "save a checkpoint, and export a model of one process that loaded it with `load_grown_`."
        )


def _hidden_units(layers: Mapping[str, HybridKasminaLayer]) -> list[HiddenUnits]:
    """The units between the layers of each confirmed pair."""
    owner: dict[nn.Module, nn.Module] = {layer.morpho: layer for layer in layers.values()}
    return [
        HiddenUnits(
            producers=tuple(owner[tap.producer] for tap in layer.morpho.inlets),
            norms=tuple(blueprint.route.norms),
            consumer=layer,
        )
        for layer in layers.values()
        if isinstance(blueprint := layer.morpho.blueprint, Span) and layer.morpho.inlets and layer.morpho.confirmed
    ]
