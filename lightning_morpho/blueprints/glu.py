"""Gated hidden units between the layer's own input and its output."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, fx, nn

from lightning_morpho.blueprints.base import ACTIVATION_MODULES, Blueprint, register_blueprint, uniform_
from lightning_morpho.blueprints.plain import plain_layer, pointwise_layer
from lightning_morpho.grafting import weighted


@register_blueprint("glu", probe=False)
class GLU(Blueprint):
    r"""Gated hidden units that read the layer's input and write into its output.

    .. math:: f(x) = W_{out}\, \bigl(g(W_{gate} x + b_{gate}) \odot (W_{in} x + b_{in})\bigr)

    A convolution's :math:`W_{in}` and :math:`W_{gate}` have the base layer's kernel and stride, its
    :math:`W_{out}` is pointwise and starts at zero. Noam Shazeer, "GLU Variants Improve Transformer", 2020.
    """

    source = "input"

    @property
    def hidden(self) -> int:
        """Hidden units of a bed."""
        if not isinstance(self.config.hidden, str):
            return self.config.hidden
        fan_in = self.site.in_features * math.prod(self.site.kernel)
        return max(8, fan_in * self.site.out_features // (2 * (fan_in + 1) + self.site.out_features))

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """``w_in``, ``w_gate (hidden, in, *kernel)``, ``b_in``, ``b_gate (hidden,)``, ``w_out (out, hidden)``."""
        incoming = (self.hidden, self.site.in_features, *self.site.kernel)
        biases = {"b_in": (self.hidden,), "b_gate": (self.hidden,)}
        return {"w_in": incoming, "w_gate": incoming, **biases, "w_out": (self.site.out_features, self.hidden)}

    def reset_(self, parameters: Mapping[str, Tensor], generator: torch.Generator) -> None:
        """Torch's default for the incoming weights, zero for the outgoing ones."""
        fan_in = parameters["w_in"][0].numel()
        for name, parameter in parameters.items():
            if name != "w_out":
                uniform_(parameter, fan_in, generator)
        with torch.no_grad():
            parameters["w_out"].zero_()

    def grow(self, parameters: Mapping[str, Tensor], source: Tensor) -> Tensor:
        """Layer input to layer output; both projections in one."""
        weight = torch.cat([parameters["w_gate"], parameters["w_in"]])
        bias = torch.cat([parameters["b_gate"], parameters["b_in"]])
        feature_axis = -1 - self.site.spatial
        gate, value = self.site.project(source, weight, bias).chunk(2, dim=feature_axis)
        return self.site.pointwise(self.activation(gate) * value, parameters["w_out"])

    def merge(self, parameters: Sequence[Mapping[str, Tensor]], alphas: Sequence[Tensor]) -> dict[str, Tensor]:
        """The units of all beds side by side, alpha folded into their outgoing weights."""
        outgoing = [weighted(p["w_out"], alpha) for p, alpha in zip(parameters, alphas, strict=True)]
        joined = {name: torch.cat([p[name] for p in parameters]) for name in self.shapes() if name != "w_out"}
        return joined | {"w_out": torch.cat(outgoing, dim=1)}

    def plain(self, parameters: Mapping[str, Tensor]) -> nn.Module:
        """Two layers of the base layer's geometry, the activation, a product, a pointwise layer."""
        root, graph = nn.Module(), fx.Graph()
        root.add_module("gate", plain_layer(parameters["w_gate"], parameters["b_gate"], self.site))
        root.add_module("activation", ACTIVATION_MODULES[self.config.activation]())
        root.add_module("value", plain_layer(parameters["w_in"], parameters["b_in"], self.site))
        root.add_module("out", pointwise_layer(parameters["w_out"], None, self.site))
        x = graph.placeholder("input")
        gate = graph.call_module("activation", (graph.call_module("gate", (x,)),))
        gated = graph.call_function(operator.mul, (gate, graph.call_module("value", (x,))))
        graph.output(graph.call_module("out", (gated,)))
        return fx.GraphModule(root, graph, "GLU")
