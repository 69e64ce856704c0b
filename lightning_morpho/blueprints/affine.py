"""A scale and a shift of each output feature."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, fx, nn

from lightning_morpho.blueprints.base import Blueprint, register_blueprint
from lightning_morpho.grafting import weighted


@register_blueprint("affine", probe=False)
class Affine(Blueprint):
    r"""A learnt scale and shift of each output feature: the smallest seed there is.

    .. math:: f(y) = \gamma \odot y + \beta

    Both start at zero. It folds exactly into the base layer's weight and bias (a layer without bias gets
    one). Ethan Perez et al., "FiLM: Visual Reasoning with a General Conditioning Layer", 2018, without the
    conditioning.
    """

    source = "output"
    folds = True

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """``scale (out,)``, ``shift (out,)``."""
        return {"scale": (self.site.out_features,), "shift": (self.site.out_features,)}

    def reset_(self, parameters: Mapping[str, Tensor], generator: torch.Generator) -> None:
        """Zero."""
        with torch.no_grad():
            for parameter in parameters.values():
                parameter.zero_()

    def grow(self, parameters: Mapping[str, Tensor], source: Tensor) -> Tensor:
        """Layer output to layer output."""
        scale, shift = (self.site.per_feature(parameters[name]) for name in ("scale", "shift"))
        return torch.addcmul(shift, scale, source)

    def merge(self, parameters: Sequence[Mapping[str, Tensor]], alphas: Sequence[Tensor]) -> dict[str, Tensor]:
        """The sums of all beds' scales and shifts, times alpha."""
        return {
            name: torch.stack([weighted(p[name], alpha) for p, alpha in zip(parameters, alphas, strict=True)]).sum(0)
            for name in self.shapes()
        }

    def fold(
        self, parameters: Mapping[str, Tensor], alpha: Tensor, weight: Tensor, bias: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """The scaled weight, and the scaled bias with the shift."""
        scale, shift = (weighted(parameters[name], alpha) for name in ("scale", "shift"))
        return weight * scale.view(-1, *[1] * (weight.ndim - 1)), shift if bias is None else torch.addcmul(
            shift, scale, bias
        )

    def plain(self, parameters: Mapping[str, Tensor]) -> nn.Module:
        """A product and a sum."""
        root, graph = nn.Module(), fx.Graph()
        for name, value in parameters.items():
            root.register_parameter(name, nn.Parameter(self.site.per_feature(value).detach().clone()))
        y = graph.placeholder("input")
        scale, shift = graph.get_attr("scale"), graph.get_attr("shift")
        graph.output(graph.call_function(torch.addcmul, (shift, scale, y)))
        return fx.GraphModule(root, graph, "Affine")
