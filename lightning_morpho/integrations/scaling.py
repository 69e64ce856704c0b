"""What a Trainer multiplies losses by before the backward pass."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from lightning_morpho.layers import HybridKasminaLayer


def tell_loss_scale(trainer: Trainer, layers: Mapping[str, HybridKasminaLayer]) -> None:
    """Let incubating seeds know how large the gradients are that they will see; nothing is read from the device."""
    young = [layer for layer in layers.values() if layer.morpho.incubating]
    if not young:
        return
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    batches = trainer.accumulate_grad_batches if trainer.lightning_module.automatic_optimization else 1
    scale: float | Tensor = 1 / batches
    if scaler is not None:
        scale = scaler.scale(torch.full((), 1 / batches, device=trainer.strategy.root_device))
    for layer in young:
        told = layer.morpho.loss_scale
        if isinstance(told, Tensor) and isinstance(scale, Tensor):
            told.copy_(scale)  # compiled code takes it for something that never moves
        else:
            layer.morpho.loss_scale = scale.clone() if isinstance(scale, Tensor) else scale
