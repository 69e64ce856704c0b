"""Plain torch layers with given weights, for export."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lightning_morpho.blueprints.site import Site

_CONVOLUTIONS: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


def plain_layer(weight: Tensor, bias: Tensor | None, site: Site | None = None) -> nn.Module:
    """An ``nn.Linear`` or ``nn.ConvNd`` with these weights.

    Args:
        weight: ``(out, in)`` for a linear layer, ``(out, in, *kernel)`` for a convolution.
        bias: ``(out,)`` or None.
        site: Takes stride, padding and dilation from there; None: a convolution that keeps the size, its
            kernel being odd.
    """
    out, in_, *kernel = weight.shape
    made: Any
    if not kernel:
        made = nn.Linear(in_, out, bias=bias is not None)
    else:
        settings: dict[str, Any] = {"padding": tuple(size // 2 for size in kernel)}
        if site is not None:
            settings = {name: getattr(site, name) for name in ("stride", "padding", "dilation", "padding_mode")}
        made = _CONVOLUTIONS[len(kernel)](in_, out, tuple(kernel), bias=bias is not None, **settings)
    made.to(weight.device, weight.dtype)
    with torch.no_grad():
        made.weight.copy_(weight)
        if bias is not None:
            made.bias.copy_(bias)
    return made


def pointwise_layer(weight: Tensor, bias: Tensor | None, site: Site) -> nn.Module:
    """A layer that mixes features at each position of a site: ``weight`` is ``(out, in)``."""
    return plain_layer(weight.reshape(*weight.shape, *[1] * site.spatial), bias)
