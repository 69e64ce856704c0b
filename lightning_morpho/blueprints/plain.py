"""Plain torch layers with given weights, for export."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_morpho.blueprints.site import Site

_CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


def plain_layer(weight: Tensor, bias: Tensor | None, site: Site | None = None) -> nn.Module:
    """An ``nn.Linear`` or ``nn.ConvNd`` with these weights.

    Args:
        weight: ``(out, in)`` for a linear layer, ``(out, in, *kernel)`` for a convolution.
        bias: ``(out,)`` or None.
        site: Takes stride, padding and dilation from there; None: a convolution that keeps the size, its
            kernel being odd.
    """
    out, in_, *kernel = weight.shape
    made: nn.Module
    if not kernel:
        made = nn.Linear(in_, out, bias=bias is not None)
    elif site is None:
        same = tuple(size // 2 for size in kernel)
        made = _CONVOLUTIONS[len(kernel)](in_, out, tuple(kernel), padding=same, bias=bias is not None)  # type: ignore
    else:
        made = _CONVOLUTIONS[len(kernel)](  # type: ignore[call-arg]
            in_,
            out,
            tuple(kernel),  # type: ignore[arg-type]
            site.stride,  # type: ignore[arg-type]
            site.padding,  # type: ignore[arg-type]
            site.dilation,  # type: ignore[arg-type]
            bias=bias is not None,
            padding_mode=site.padding_mode,
        )
    made.to(weight.device, weight.dtype)
    with torch.no_grad():
        made.weight.copy_(weight)  # type: ignore[operator, union-attr]
        if bias is not None:
            made.bias.copy_(bias)  # type: ignore[operator, union-attr]
    return made


def pointwise_layer(weight: Tensor, bias: Tensor | None, site: Site) -> nn.Module:
    """A layer that mixes features at each position of a site: ``weight`` is ``(out, in)``."""
    return plain_layer(weight.reshape(*weight.shape, *[1] * site.spatial), bias)
