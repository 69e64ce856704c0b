"""New hidden units between the layer's own input and its output."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from lightning_morpho.blueprints.base import ACTIVATION_MODULES, Blueprint, register_blueprint, reset_silent_
from lightning_morpho.blueprints.plain import plain_layer, pointwise_layer
from lightning_morpho.grafting import weighted


@register_blueprint("neurons", probe=False)
class Neurons(Blueprint):
    r"""Hidden units that read the layer's input and write into its output.

    .. math:: f(x) = W_{out}\, g(W_{in} x + b)

    A convolution's :math:`W_{in}` has the base layer's kernel and stride, its :math:`W_{out}` is
    pointwise. All chunks of an event read the same units. :math:`W_{out}` starts at zero.
    """

    source = "input"

    @property
    def hidden(self) -> int:
        """Hidden units of a bed."""
        if not isinstance(self.config.hidden, str):
            return self.config.hidden
        fan_in = self.site.in_features * math.prod(self.site.kernel)
        own = fan_in * self.site.out_features
        return max(8, own // (fan_in + 1 + self.site.out_features))

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """``w_in (hidden, in, *kernel)``, ``b_in (hidden,)``, ``w_out (out, hidden)``."""
        return {
            "w_in": (self.hidden, self.site.in_features, *self.site.kernel),
            "b_in": (self.hidden,),
            "w_out": (self.site.out_features, self.hidden),
        }

    def reset_(self, parameters: Mapping[str, Tensor], generator: torch.Generator) -> None:
        """Torch's default for the incoming weights, zero for the outgoing ones."""
        reset_silent_(parameters, parameters["w_in"][0].numel(), generator)

    def grow(self, parameters: Mapping[str, Tensor], source: Tensor) -> Tensor:
        """Layer input to layer output."""
        h = self.activation(self.site.project(source, parameters["w_in"], parameters["b_in"]))
        return self.site.pointwise(h, parameters["w_out"])

    def merge(self, parameters: Sequence[Mapping[str, Tensor]], alphas: Sequence[Tensor]) -> dict[str, Tensor]:
        """The units of all beds side by side, alpha folded into their outgoing weights."""
        outgoing = [weighted(p["w_out"], alpha) for p, alpha in zip(parameters, alphas, strict=True)]
        joined = {name: torch.cat([p[name] for p in parameters]) for name in ("w_in", "b_in")}
        return joined | {"w_out": torch.cat(outgoing, dim=1)}

    def plain(self, parameters: Mapping[str, Tensor]) -> nn.Module:
        """A layer of the base layer's geometry, the activation, a pointwise layer."""
        return nn.Sequential(
            plain_layer(parameters["w_in"], parameters["b_in"], self.site),
            ACTIVATION_MODULES[self.config.activation](),
            pointwise_layer(parameters["w_out"], None, self.site),
        )
