"""New hidden units between two layers: the layer in between becomes wider."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_morpho.blueprints.base import Blueprint, register_blueprint, uniform_
from lightning_morpho.blueprints.site import Site
from lightning_morpho.config import BlueprintConfig
from lightning_morpho.pairs import Pair, Step


@dataclass(frozen=True)
class Route:
    """The way of new hidden units from the producers' inputs to the consumer's output.

    Attributes:
        pair: Names, and the operations in between.
        producers: Geometry of each producer.
        biased: Whether each of them has a bias, so that folding finds a place for it.
        positions: Input features of the consumer for each hidden channel; above 1 behind a flatten.
    """

    pair: Pair
    producers: tuple[Site, ...]
    biased: tuple[bool, ...]
    positions: int

    @property
    def norms(self) -> list[_BatchNorm]:
        """The host's norms on the way."""
        return [s.module for s in self.pair.all_steps if isinstance(s.module, _BatchNorm)]


@register_blueprint("span", probe=False)
class Span(Blueprint):
    r"""Hidden units that read a producer's input and write into the consumer's output.

    .. math:: f = W_{out} \cdot g(W_{in} x_A + b)

    :math:`x_A` is what the producer A reads, :math:`g` what stands between A and the consumer B: exactly
    what widening the layer in between would add. With two producers whose outputs are multiplied, as in
    SwiGLU, each has its own :math:`W_{in}`. :math:`W_{out}` starts at zero. Dropout in :math:`g` draws
    from the global random state. The settings of the host's modules are followed at each call.

    Noam Shazeer, "GLU Variants Improve Transformer", 2020, for the two-producer form.

    Args:
        site: Geometry of the consumer.
        config: Its hyper-parameters.
        route: The way in between.

    Raises:
        ValueError: Without a route: only :func:`~lightning_morpho.morph_` knows a layer's producers.
    """

    source = "producer"
    folds = True  # by new rows and columns, which concern several layers

    def __init__(self, site: Site, config: BlueprintConfig, route: Route | None = None) -> None:
        super().__init__(site, config)
        if route is None:
            raise ValueError(
                "`blueprint.kind='span'` needs a pair of layers: use `morph_` on the whole model, or another kind."
            )
        self.route = route

    @property
    def hidden(self) -> int:
        """New hidden units of a bed; ``"auto"``: as many as there are, at least 8."""
        hidden = self.config.hidden
        return max(8, self.route.producers[0].out_features) if isinstance(hidden, str) else hidden

    @property
    def units(self) -> int:
        """Its hidden units."""
        return self.hidden

    @property
    def columns(self) -> int:
        """Input features of the consumer that the new units of a bed take."""
        return self.hidden * self.route.positions

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """``w_in0 (hidden, in, *kernel of A)``, ``b_in0 (hidden,)``, ``w_out (out, columns, *kernel of B)``."""
        shapes: dict[str, tuple[int, ...]] = {}
        for k, (site, biased) in enumerate(zip(self.route.producers, self.route.biased, strict=True)):
            shapes[f"w_in{k}"] = (self.hidden, site.in_features, *site.kernel)
            if biased:
                shapes[f"b_in{k}"] = (self.hidden,)
        shapes["w_out"] = (self.site.out_features, self.columns, *self.site.kernel)
        return shapes

    def norms(self) -> list[nn.Module]:
        """A norm of the host's kind and settings for each norm on the way."""
        made: list[nn.Module] = []
        for norm in self.route.norms:
            unbiased: dict[str, Any] = {"bias": False} if norm.affine and norm.bias is None else {}
            settings = (self.hidden, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
            made.append(type(norm)(*settings, **unbiased))
        return made

    def reset_(self, parameters: Mapping[str, Tensor], generator: torch.Generator) -> None:
        """Torch's default for the incoming weights, zero for the outgoing ones."""
        for name, value in parameters.items():
            if name != "w_out":
                uniform_(value, parameters[name.replace("b_", "w_")][0].numel(), generator)
        with torch.no_grad():
            parameters["w_out"].zero_()

    def link_shape(self, columns: int) -> tuple[int, ...]:
        """Shape of a link from ``columns`` new units of the layer before to this bed's."""
        return (self.hidden, columns, *self.route.producers[0].kernel)

    def hidden_units(
        self,
        parameters: Mapping[str, Tensor],
        norms: Sequence[nn.Module],
        sources: Sequence[Tensor],
        links: Sequence[tuple[Tensor, Tensor]] = (),
        *,
        training: bool = False,
        apart: bool = False,
    ) -> Tensor:
        """The new hidden units, as the consumer would read them.

        Args:
            parameters: The bed's parameters.
            norms: Its norms.
            sources: Input of each producer.
            links: New units of the layer before and the weights that read them.
            training: Whether functional dropout on the way drops.
            apart: Leave no trace in the host: no dropout, whose random numbers are the host's, and no gradient in
                parameters of its modules.

        Returns:
            ``columns`` features in the consumer's input layout.
        """
        own = iter(norms)
        made = []
        for k, (site, branch) in enumerate(zip(self.route.producers, self.route.pair.branches, strict=True)):
            h = site.project(sources[k], parameters[f"w_in{k}"], parameters.get(f"b_in{k}"))
            for units, weight in links:
                h = h + site.project(units, weight)
            made.append(self._pass(h, branch, own, training, apart))
        joined = made[0] if len(made) == 1 else made[0] * made[1]
        return self._pass(joined, self.route.pair.steps, own, training, apart)

    def _pass(
        self, h: Tensor, steps: Sequence[Step], norms: Iterator[nn.Module], training: bool, apart: bool
    ) -> Tensor:
        for step in steps:
            if step.kind == "norm":
                norm, host = next(norms), step.module
                assert isinstance(norm, _BatchNorm) and isinstance(host, _BatchNorm)
                h = _follow(norm, host)(h)
            elif apart and step.kind == "dropout":
                continue
            elif apart and step.module is not None:
                frozen = {name: p.detach() for name, p in step.module.named_parameters()}
                h = functional_call(step.module, frozen, h)
            else:
                h = step.apply(h, training)
        return h

    def grow(self, parameters: Mapping[str, Tensor], source: Tensor) -> Tensor:
        """Hidden units to the consumer's output; :meth:`hidden_units` gives the former."""
        return self.site.project(source, parameters["w_out"])


def _follow(norm: _BatchNorm, host: _BatchNorm) -> _BatchNorm:
    """Give a bed's norm the settings that the host's has now: a frozen one stays frozen."""
    for name in ("training", "eps", "momentum"):
        if getattr(norm, name) != getattr(host, name):
            setattr(norm, name, getattr(host, name))
    return norm
