"""Loading a grown model without the callback that grew it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from os import PathLike
from typing import Any

import torch
from torch import nn

from lightning_morpho.config import BlueprintConfig, LayersConfig, MorphoConfig
from lightning_morpho.layers import HybridKasminaLayer, attach_, plan_blueprint
from lightning_morpho.lifecycle import LifecycleError
from lightning_morpho.surgery import hybrid_layers

_SUFFIX = ".morpho._extra_state"


def load_grown_(model: nn.Module, checkpoint: str | PathLike[str] | Mapping[str, Any]) -> list[str]:
    """Make a plain model the grown one of a checkpoint, in place: swap its layers, load everything strictly.

    Args:
        model: A model as it was before it grew.
        checkpoint: Path of a checkpoint (read with ``weights_only=True``), its content, or a ``state_dict``.

    Returns:
        Names of the layers that hold seeds.

    Raises:
        LifecycleError: If the model holds hybrid layers already.
        ValueError: If the checkpoint has seeds in a layer that the model lacks.
        RuntimeError: If a key or a shape does not fit.

    Example:
        >>> from lightning_morpho import morph_
        >>> grown, plain = nn.Sequential(nn.Linear(4, 3)), nn.Sequential(nn.Linear(4, 3))
        >>> report = morph_(grown)
        >>> chunks = grown[0].request_germination()
        >>> load_grown_(plain, grown.state_dict())
        ['0']
        >>> plain[0].seed(0).stage.name
        'LOADING'
    """
    content: Mapping[str, Any] = (
        checkpoint if isinstance(checkpoint, Mapping) else torch.load(checkpoint, map_location="cpu", weights_only=True)
    )
    state = content.get("state_dict", content)
    if hybrid_layers(model):
        raise LifecycleError("The model holds hybrid layers already: load the checkpoint with `load_state_dict`.")
    extras = {key.removesuffix(_SUFFIX): extra for key, extra in state.items() if key.endswith(_SUFFIX)}
    modules = dict(model.named_modules())
    unknown = sorted(extras.keys() - modules.keys())
    if unknown:
        raise ValueError(f"The checkpoint holds seeds in {unknown}, but the model has no such layers.")
    plans = {name: (_config(extra), len(extra["beds"])) for name, extra in extras.items()}
    blueprints = {name: plan_blueprint(modules[name], config) for name, (config, _) in plans.items()}
    for name, (config, beds) in plans.items():
        attach_(HybridKasminaLayer, modules[name], blueprints[name], beds, config, name)
    model.load_state_dict(dict(state))
    return list(plans)


def _config(extra: Mapping[str, Any]) -> MorphoConfig:
    layers = replace(LayersConfig(), num_seeds=extra["num_seeds"])
    return MorphoConfig(layers=layers, blueprint=BlueprintConfig(**extra["blueprint"]))
