"""DDP without its wrapper: nothing of a frozen host is reduced, and the beds' gradients are averaged by us."""

from __future__ import annotations

import torch.distributed as dist
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy


def leave_unwrapped(trainer: Trainer) -> None:
    """Let the strategy train the module as it is, with the weights of rank 0 everywhere.

    torch's ``DistributedDataParallel`` refuses a model of which it has no parameter to reduce.
    """
    strategy = trainer.strategy
    if not isinstance(strategy, DDPStrategy):
        return

    def configure_ddp() -> None:
        del strategy.__dict__["configure_ddp"]
        assert strategy.model is not None
        for tensor in (*strategy.model.parameters(), *strategy.model.buffers()):
            dist.broadcast(tensor.detach(), 0)

    strategy.configure_ddp = configure_ddp  # type: ignore[method-assign]
