"""A residual block over the full width of a layer's output."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_morpho.blueprints.base import ACTIVATION_MODULES, Blueprint, register_blueprint, reset_silent_
from lightning_morpho.blueprints.plain import plain_layer

_CONVOLVE = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


@register_blueprint("block", probe=False)
class Block(Blueprint):
    r"""A residual block on the whole output of the layer: depth.

    .. math:: f(y) = W_{out}\, g(W_{in}\, g(y) + b)

    Behind a convolution both are convolutions of kernel 3 that keep the size. :math:`W_{out}` starts at
    zero. Kaiming He et al., "Identity Mappings in Deep Residual Networks", 2016.
    """

    source = "output"

    @property
    def hidden(self) -> int:
        """Hidden units of a bed; ``"auto"``: the layer's width."""
        hidden = self.config.hidden
        return self.site.out_features if isinstance(hidden, str) else hidden

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """``w_in (hidden, out, 3...)``, ``b_in (hidden,)``, ``w_out (out, hidden, 3...)``."""
        kernel, out = (3,) * self.site.spatial, self.site.out_features
        return {"w_in": (self.hidden, out, *kernel), "b_in": (self.hidden,), "w_out": (out, self.hidden, *kernel)}

    def reset_(self, parameters: Mapping[str, Tensor], generator: torch.Generator) -> None:
        """Torch's default for the incoming weights, zero for the outgoing ones."""
        reset_silent_(parameters, parameters["w_in"][0].numel(), generator)

    def grow(self, parameters: Mapping[str, Tensor], source: Tensor) -> Tensor:
        """Layer output to layer output."""
        h = self._mix(self.activation(source), parameters["w_in"], parameters["b_in"])
        return self._mix(self.activation(h), parameters["w_out"])

    def _mix(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if not self.site.spatial:
            return F.linear(x, weight, bias)
        return _CONVOLVE[self.site.spatial](x, weight, bias, padding=1)

    def plain(self, parameters: Mapping[str, Tensor]) -> nn.Module:
        """Activation, layer, activation, layer."""
        activation = ACTIVATION_MODULES[self.config.activation]
        return nn.Sequential(
            activation(),
            plain_layer(parameters["w_in"], parameters["b_in"]),
            activation(),
            plain_layer(parameters["w_out"], None),
        )
