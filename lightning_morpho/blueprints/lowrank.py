"""A change of low rank of the layer's own weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from lightning_morpho.blueprints.base import Blueprint, register_blueprint, reset_silent_
from lightning_morpho.blueprints.plain import plain_layer, pointwise_layer
from lightning_morpho.grafting import weighted


@register_blueprint("lowrank", probe=False)
class LowRank(Blueprint):
    r"""A linear map of low rank from the layer's input to its output, for adapting a trained host.

    .. math:: f(x) = W_{out} W_{in} x

    A convolution's :math:`W_{in}` has the base layer's kernel and stride, its :math:`W_{out}` is pointwise.
    :math:`W_{out}` starts at zero. What it learns folds exactly into the base layer's weights (not where the
    base layer has several groups: its weights can't hold it). From scratch it is worth nothing: a linear
    layer stays linear. Edward Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021.
    """

    source = "input"

    @property
    def rank(self) -> int:
        """Rank of a bed; ``"auto"``: 8, or what the layer's weights can have."""
        if not isinstance(self.config.hidden, str):
            return self.config.hidden
        return min(8, self.site.in_features * math.prod(self.site.kernel), self.site.out_features)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """``w_in (rank, in, *kernel)``, ``w_out (out, rank)``."""
        return {
            "w_in": (self.rank, self.site.in_features, *self.site.kernel),
            "w_out": (self.site.out_features, self.rank),
        }

    def reset_(self, parameters: Mapping[str, Tensor], generator: torch.Generator) -> None:
        """Torch's default for the incoming weights, zero for the outgoing ones."""
        reset_silent_(parameters, parameters["w_in"][0].numel(), generator)

    def grow(self, parameters: Mapping[str, Tensor], source: Tensor) -> Tensor:
        """Layer input to layer output."""
        return self.site.pointwise(self.site.project(source, parameters["w_in"]), parameters["w_out"])

    def merge(self, parameters: Sequence[Mapping[str, Tensor]], alphas: Sequence[Tensor]) -> dict[str, Tensor]:
        """The ranks of all beds side by side, alpha folded into their outgoing weights."""
        outgoing = [weighted(p["w_out"], alpha) for p, alpha in zip(parameters, alphas, strict=True)]
        return {"w_in": torch.cat([p["w_in"] for p in parameters]), "w_out": torch.cat(outgoing, dim=1)}

    @property
    def folds(self) -> bool:  # type: ignore[override]
        """Whether the base layer's weights can hold it."""
        return self.site.groups == 1

    def fold(
        self, parameters: Mapping[str, Tensor], alpha: Tensor, weight: Tensor, bias: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """The product of its two weights."""
        return torch.tensordot(weighted(parameters["w_out"], alpha), parameters["w_in"], dims=1), None

    def plain(self, parameters: Mapping[str, Tensor]) -> nn.Module:
        """A layer of the base layer's geometry, and a pointwise layer."""
        return nn.Sequential(
            plain_layer(parameters["w_in"], None, self.site), pointwise_layer(parameters["w_out"], None, self.site)
        )
