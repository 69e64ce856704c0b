"""Incubation: a seed learns from a layer's output gradient without being part of the host."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_morpho.blueprints import Blueprint
from lightning_morpho.grafting import BLENDS
from lightning_morpho.layers.beds import Bed
from lightning_morpho.layers.faults import FaultWatch
from lightning_morpho.layers.graft import attempt

Scale = float | Tensor
"""What a loss is multiplied by before its backward pass: a gradient scaler's factor, over accumulated batches."""


class _Incubate(torch.autograd.Function):
    """The host's output as it is, and its gradient as it is; the seed's gets a target of its own."""

    @staticmethod
    def forward(ctx: Any, out: Tensor, delta: Tensor, mask: Tensor, scale: Scale) -> Tensor:
        ctx.save_for_backward(delta, mask)
        ctx.scale = scale
        return out.view_as(out)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        delta, mask = ctx.saved_tensors
        samples = delta.shape[0] if delta.ndim > 1 else 1
        wanted = (grad + delta * (ctx.scale / samples)) * mask
        return grad, wanted.to(delta.dtype), None, None


def incubate(out: Tensor, delta: Tensor, mask: Tensor, scale: Scale = 1.0) -> Tensor:
    r"""Train what a seed would change on the negative gradient of the output that it is not part of.

    The seed descends :math:`\frac{1}{2B}\sum_b \lVert \delta_b + B g_b \rVert^2`, for a loss that is a mean over B
    samples: gradient boosting's target. Unlike a straight-through gradient it sees its own effect and can't drift.
    Jerome H. Friedman, "Greedy function approximation: a gradient boosting machine", 2001.

    Args:
        out: The layer's output, ``(B, ...)``.
        delta: What the seed would change in it at alpha 1, same shape, from sources that are detached.
        mask: 1 for features of chunks that incubate, else 0; broadcasts to ``out``.
        scale: Factor of the loss in the backward pass.

    Returns:
        ``out``, bit for bit; its gradient reaches the host bit for bit.

    Example:
        >>> w = torch.zeros(1, requires_grad=True)
        >>> for _ in range(60):
        ...     host = torch.zeros(8, 1, requires_grad=True)
        ...     loss = (incubate(host, w * torch.ones(8, 1), torch.ones(1)) - 0.5).square().mean() / 2
        ...     (gradient,) = torch.autograd.grad(loss, w)
        ...     w.data -= 0.2 * gradient
        >>> round(w.item(), 3)
        0.5
    """
    result: Tensor = _Incubate.apply(out, delta, mask, scale)
    return result


class Nursery:
    """The incubating seeds of a layer, other than spans. Rebuilt whenever a seed's state changes.

    Args:
        blueprint: Kind of network and geometry of the layer.
        beds: Beds with incubating seeds.
        rows: Which chunks of each of them incubate, bool ``(N,)``.
        blend: How a seed enters the host later.
        faults: Takes note of seeds that raise.
    """

    def __init__(
        self, blueprint: Blueprint, beds: Mapping[int, Bed], rows: Sequence[np.ndarray], blend: str, faults: FaultWatch
    ) -> None:
        self.blueprint = blueprint
        self.beds = dict(beds)
        self.faults = faults
        self._blend = BLENDS[blend]
        masks = (feature_mask(blueprint, row) for row in rows)
        self._masks = [bed.hold("young", mask) for bed, mask in zip(beds.values(), masks, strict=True)]

    def deltas(self, x: Tensor, y: Tensor) -> list[Tensor | None]:
        """What each bed would change in the base layer's output ``y``; called before anything is written into ``y``."""
        self.blueprint.train(False)  # a dropout would draw random numbers that are the host's
        x, y = x.detach(), y.detach()
        if self.blueprint.source != "input":
            y = y.clone()
        given = [attempt(self.blueprint, bed.values(), x, y, i, self.faults) for i, bed in self.beds.items()]
        return [None if seed is None else self._blend(y, seed) for seed in given]

    def __call__(self, out: Tensor, deltas: Sequence[Tensor | None], scale: Scale) -> Tensor:
        """Hang the seeds' training on the layer's output."""
        for delta, mask in zip(deltas, self._masks, strict=True):
            if delta is not None:
                out = incubate(out, delta, mask, scale)
        return out


def feature_mask(blueprint: Blueprint, rows: np.ndarray) -> Tensor:
    """1 for the features of some chunks, else 0, shaped to broadcast against the layer's output."""
    per_chunk = torch.from_numpy(rows.astype(np.float32))
    return blueprint.site.per_feature(blueprint.site.chunks.expand(per_chunk))
