"""FSDP2: seeds live in sharded parameters, and those alone may be touched between two steps."""

from __future__ import annotations

from torch import nn
from torch.distributed.fsdp import FSDPModule


def reshard_(module: nn.Module) -> None:
    """Put every FSDP2 module back into its sharded state.

    A forward pass without a backward pass, as in validation, leaves the gathered parameters registered: what
    is written to those is lost, and their memory is freed later under whoever still holds them.
    """
    for child in module.modules():
        if isinstance(child, FSDPModule):
            child.reshard()
