"""When layers are swapped: after the user's modules exist, before optimizers and the strategy's wrappers do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, SingleDeviceStrategy
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher
from torch.nn.parallel import DistributedDataParallel

from lightning_morpho.surgery import hybrid_layers


def check_trainer(trainer: Trainer, pl_module: LightningModule, kind: type) -> None:
    """Refuse a Trainer that growth does not work in.

    Args:
        trainer: The Trainer.
        pl_module: Its module.
        kind: The class of which it may have one callback.

    Raises:
        ValueError: For two such callbacks, or a strategy that is not supported, or loses what grows.
    """
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    count = sum(isinstance(callback, kind) for callback in callbacks)
    if count > 1:
        raise ValueError(
            f"A Trainer takes one {kind.__name__}, got {count}. Put all layers into one with `layers.include`."
        )
    if not isinstance(trainer.strategy, (SingleDeviceStrategy, DDPStrategy, ModelParallelStrategy)):
        raise ValueError(
            f"The strategy {type(trainer.strategy).__name__} is not supported: it flattens or moves parameters, so "
            "that seeds can't be started and freed one by one. Use a single device, 'ddp' or "
            "ModelParallelStrategy (FSDP2), or leave the callback out."
        )
    if isinstance(trainer.strategy.launcher, _MultiProcessingLauncher) and not hybrid_layers(pl_module):
        raise ValueError(
            "Processes that the Trainer starts from a running one ('ddp_spawn', 'ddp_fork', 'ddp_notebook') bring "
            "back weights, but no new layers, so what grew in them would be lost. Call `morph_(module, "
            "callback.config)` before `fit`, or train by 'ddp' in a script."
        )


def when_configured(trainer: Trainer, pl_module: LightningModule, swap: Callable[[], None]) -> None:
    """Let ``swap`` run when Lightning configures the model, once: all layers exist then, no optimizer does.

    Under FSDP2 it comes before the user's ``configure_model``, which shards the layers, and their beds with them.
    """
    original = pl_module.configure_model

    def configure_model() -> None:
        # Not functools.wraps: Lightning would take it for the original and never call it.
        pl_module.__dict__.pop("configure_model", None)
        steps = (original, swap)
        for step in reversed(steps) if isinstance(trainer.strategy, ModelParallelStrategy) else steps:
            step()

    pl_module.configure_model = configure_model  # type: ignore[method-assign]


def keep_beds_from_reducer(pl_module: LightningModule) -> None:
    """DDP's reducer fails on parameters that a step does not use; beds are averaged separately."""
    beds = [name for name, _ in pl_module.named_parameters() if ".morpho." in f".{name}"]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(pl_module, beds)
