"""Callbacks that average weights: their copy of the model must grow with it."""

from __future__ import annotations

import torch
from lightning.pytorch import LightningModule, Trainer, callbacks
from torch import nn
from torch.optim.swa_utils import AveragedModel

from lightning_morpho.surgery import hybrid_layers

_NAMES = ("StochasticWeightAveraging", "WeightAveraging")  # Lightning has the second one since 2.6
AVERAGING = tuple(getattr(callbacks, name) for name in _NAMES if hasattr(callbacks, name))


def rebuild_averages(trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
    """Let averaging callbacks copy the model again: they did in ``setup``, before its layers were swapped."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, AVERAGING):
            callback.setup(trainer, pl_module, stage)


def align_averages(trainer: Trainer, pl_module: LightningModule) -> None:
    """Give averaged copies the model's topology, and newborns as they are: they are averaged from their birth."""
    layers = hybrid_layers(pl_module)
    for average in averaged_models(trainer):
        plain = average.module if isinstance(average, AveragedModel) else average
        for name, layer in hybrid_layers(plain).items():
            seeds, copied = layers[name].morpho, layer.morpho
            for ours, theirs in zip(seeds.grown(), copied.grown(), strict=True):
                if ours.event != theirs.event:
                    _copy_(theirs, ours)
            copied.set_extra_state(seeds.get_extra_state())


def averaged_models(trainer: Trainer) -> list[nn.Module]:
    """The averaged copies that callbacks keep of the model."""
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    models = [getattr(callback, "_average_model", None) for callback in callbacks]
    return [model for model in models if isinstance(model, nn.Module)]


def _copy_(target: nn.Module, source: nn.Module) -> None:
    with torch.no_grad():
        for ours, theirs in zip(source.parameters(), target.parameters(), strict=True):
            theirs.copy_(ours)
