"""torch.compile: what must not change from step to step, and how often it may be compiled again."""

from __future__ import annotations

import torch._dynamo
from torch import nn
from torch._dynamo import OptimizedModule

MODES = 4
"""Graphs of one topology: training and evaluation, with and without gradients."""


def is_compiled(module: nn.Module) -> bool:
    """Whether the module, or a part of it, runs compiled."""
    whole = getattr(module, "_compiler_ctx", None) is not None  # a LightningModule compiled before `fit`
    return whole or any(
        isinstance(child, OptimizedModule) or child._compiled_call_impl is not None for child in module.modules()
    )


def allow_recompilations(topologies: int) -> None:
    """Raise dynamo's limit so that each topology may cost one compilation a mode.

    Past the limit (8 by default) dynamo runs the model uncompiled, or fails under ``fullgraph=True``.

    Args:
        topologies: Topologies besides the dormant one that the run can come to.
    """
    config = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, MODES * (topologies + 1))
    config.accumulated_recompile_limit = max(config.accumulated_recompile_limit, config.recompile_limit)
