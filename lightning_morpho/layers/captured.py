"""What compiled models that replay CUDA graphs need when the seeds change."""

from __future__ import annotations

import logging
import sys

import torch

log = logging.getLogger(__name__)


def drop_captured_graphs() -> None:
    """Let compiled code be made anew if some of it replays CUDA graphs, as ``mode="reduce-overhead"`` does.

    Where a model is compiled in several parts (an ``nn.Sequential`` is: layer by layer) and one of them is compiled
    again while the graphs of others go on, torch 2.11 gave wrong gradients to the layers before it; compiled from
    scratch they are right. Without CUDA graphs, and in plain ``torch.compile``, this does nothing.
    """
    trees = sys.modules.get("torch._inductor.cudagraph_trees")
    if trees is None or not torch.cuda.is_initialized():
        return
    if trees.get_manager(torch.cuda.current_device(), create_if_none_exists=False) is None:
        return
    log.info("The seeds of a compiled model have changed: its CUDA graphs are captured anew.")
    torch.compiler.reset()
