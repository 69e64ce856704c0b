"""One early round in the layers that a score chooses."""

from __future__ import annotations

import typing
from collections.abc import Sequence
from dataclasses import dataclass

from lightning_morpho.checks import check, is_count, named_arguments
from lightning_morpho.tamiyo.base import Tamiyo
from lightning_morpho.tamiyo.observation import Germinate, Observation
from lightning_morpho.tamiyo.places import Score, germinate, growable, ranked
from lightning_morpho.tamiyo.timing import Moment


@named_arguments
@dataclass(frozen=True, kw_only=True)
class Placed(Moment, Tamiyo):
    """One round, early, in the few layers that a score chooses.

    No cheap score works on every kind of network: ``narrowest`` and ``earliest`` are never far off, the gradient's
    energy is good on linear and bad on convolutional nets, silence and variance place worse than chance there.
    ``Uniform`` does as well as any of them at no risk.

    Args:
        by: ``"narrowest"``, ``"earliest"``, ``"gradient"`` (energy of the weights' gradients), ``"silent"`` (share
            of units that give nothing), ``"variance"`` (lowest first), ``"correlation"`` (of units) or
            ``"effective_rank"`` (share of their dimensions that the units use, highest first); the last two are
            measured at ``telemetry.level: full``. Where nothing was measured: ``"narrowest"``, and the reason says so.
        layers: Layers that germinate in a round, ``>= 1``.
    """

    by: Score = "narrowest"
    layers: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        names = typing.get_args(Score)
        check(self.by in names, "tamiyo.by", f"one of {', '.join(names)}", self.by)
        check(is_count(self.layers), "tamiyo.layers", "at least 1 layer", self.layers)

    def grow(self, observation: Observation) -> Sequence[Germinate]:
        """In the highest scores, when the moment has come."""
        opened = self.opens(observation)
        if opened is None:
            return []
        layers = growable(observation)
        chosen, why = ranked(layers, self.by), f"by {self.by}"
        if not chosen:
            chosen, why = ranked(layers, "narrowest"), f"by narrowest, as {self.by} was not measured"
        return germinate(chosen[: self.layers], f"{opened}, {why}")
