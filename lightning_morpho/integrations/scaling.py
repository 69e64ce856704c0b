"""What a Trainer multiplies losses by before the backward pass."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist
from lightning.pytorch import Trainer
from torch import Tensor
from torch.optim import Optimizer

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


def agree_on_overflow(trainer: Trainer, optimizer: Optimizer) -> None:
    """Let all ranks skip a step that any of them is to skip, once its gradients are unscaled.

    DDP has reduced the host's gradients by then, beds are averaged later: where one rank's bed alone overflowed, that
    rank would leave out a step that the others make.
    """
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    if scaler is not None and dist.is_available() and dist.is_initialized():
        for overflowed in scaler._found_inf_per_device(optimizer).values():
            dist.all_reduce(overflowed, dist.ReduceOp.MAX)
