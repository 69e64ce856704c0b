"""What grew becomes part of the weights of the layers that it grew in, in place."""

from __future__ import annotations

import torch
from torch import nn

from lightning_morpho.blueprints import Span
from lightning_morpho.export.folding import folded_weights, folds, set_weights_
from lightning_morpho.layers import HybridKasminaLayer
from lightning_morpho.lifecycle import LifecycleError
from lightning_morpho.surgery import hybrid_layers, unmorph_


def merge_(model: nn.Module) -> list[str]:
    """Fold all live seeds into the weights of their layers and give the layers their own classes back, in place.

    What is left is the host, without any class of ours, with the keys and shapes of its ``state_dict`` that it had
    (``affine`` gives a bias to a layer without one). All is checked before anything is changed. Optimizers that
    were made before it are of no use afterwards. A layer that shares its weight with another module (an output
    layer tied to an embedding) gets a weight of its own.

    Args:
        model: A model whose live seeds are of kinds that fold: ``lowrank``, ``affine``, or one of your own with
            ``folds``.

    Returns:
        Names of the layers whose weights changed.

    Raises:
        LifecycleError: If seeds of another kind are live, or a layer is switched off or parametrized;
            :func:`~lightning_morpho.export` can do more, in a copy.

    Example:
        >>> from lightning_morpho import BlueprintConfig, MorphoConfig, morph_
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> report = morph_(model, MorphoConfig(blueprint=BlueprintConfig(kind="lowrank")))
        >>> model[2].request_germination()
        [0]
        >>> merge_(model), type(model[2])
        (['2'], <class 'torch.nn.modules.linear.Linear'>)
    """
    layers = {name: layer for name, layer in hybrid_layers(model).items() if not layer.morpho.dormant}
    stuck = {name: why for name, layer in layers.items() if (why := _obstacle(layer)) is not None}
    if stuck:
        raise LifecycleError(
            f"These seeds can't be folded into their layers' weights: {stuck}. `export(model)` gives a plain copy that "
            "holds what does not fold as modules of its own."
        )
    with torch.no_grad():
        weights = {name: folded_weights(layer) for name, layer in layers.items()}
    unmorph_(model, discard_live=True)
    for name, layer in layers.items():
        folded = weights[name]
        assert folded is not None
        set_weights_(layer, *folded)
    return list(layers)


def _obstacle(layer: HybridKasminaLayer) -> str | None:
    if layer.morpho.off:
        return "the rollout has the layer switched off"
    if isinstance(layer.morpho.blueprint, Span) or not layer.morpho.blueprint.folds:
        return f"`{layer.morpho.kind}` does not fold here"
    if layer.morpho.config.grafting.blend != "add":
        return f"`grafting.blend: {layer.morpho.config.grafting.blend}` does not fold"
    return None if folds(layer) else "its weight is computed by a parametrization; remove that first"
