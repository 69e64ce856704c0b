"""Growth where the loss stands still: the rules of the original design."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lightning_morpho.checks import check, is_count, is_number, named_arguments
from lightning_morpho.tamiyo.base import Tamiyo
from lightning_morpho.tamiyo.observation import Germinate, LayerView, Observation
from lightning_morpho.tamiyo.places import growable


@named_arguments
@dataclass(frozen=True, kw_only=True)
class Plateau(Tamiyo):
    """One seed at a time, each time the validation loss has stood still: the rules of the original design.

    A counter rises at each tick whose loss is no better than the best so far; at ``patience`` the seed with the
    highest candidate score germinates. The score is the mean of those of three that are known: share of silent
    units, correlation of units, and 1 / (1 + variance). It is kept for comparison: on convolutions it places worse
    than chance, and it grows on linear tasks, where nothing is gained.

    Args:
        patience: Ticks without progress before a seed germinates, ``>= 1``.
        min_delta: Fall of the loss below its best that counts as progress, as a share of the best, ``>= 0``.
        stabilisation: Ticks at the start in which nothing germinates and that don't count, ``>= 0``.
        embargo: Ticks after a germination in which nothing germinates and that don't count, ``>= 0``.
    """

    patience: int = 3
    min_delta: float = 0.01
    stabilisation: int = 3
    embargo: int = 3

    def __post_init__(self) -> None:
        check(is_count(self.patience), "tamiyo.patience", "at least 1 tick", self.patience)
        check(is_number(self.min_delta) and self.min_delta >= 0, "tamiyo.min_delta", "non-negative", self.min_delta)
        for name in ("stabilisation", "embargo"):
            check(is_count(getattr(self, name), 0), f"tamiyo.{name}", "at least 0 ticks", getattr(self, name))

    def grow(self, observation: Observation) -> Sequence[Germinate]:
        """The neediest seed, if the counter has run out."""
        counted = self.counter(observation)
        candidates = [(need(layer, c), layer, c) for layer in growable(observation) for c in layer.dormant]
        if counted < self.patience or not candidates:
            return []
        best = min(candidates, key=lambda one: (-one[0], one[1].width, one[1].position, one[2]))
        reason = f"no progress for {counted} ticks; candidate score {best[0]:.3g}"
        return [Germinate(layer=best[1].name, chunks=(best[2],), reason=reason)]

    def counter(self, observation: Observation) -> int:
        """Ticks without progress; those whose loss is not known count neither way."""
        last = observation.last_round
        first = self.stabilisation if last is None else max(self.stabilisation, last + self.embargo)
        best, count = math.inf, 0
        for index, loss in enumerate(observation.losses):
            if loss is None:
                continue
            progress = loss < best - self.min_delta * abs(best) if math.isfinite(best) else True
            best = min(best, loss)
            count = 0 if progress else count + (index >= first)
        return count


def need(layer: LayerView, chunk: int) -> float:
    """Candidate score of a chunk, in [0, 1]; -1 if nothing was measured."""
    found = []
    for name in ("silent", "correlation", "variance"):
        values = layer.statistics.get(name, ())
        if values and math.isfinite(values[chunk]):
            found.append(1 / (1 + max(0.0, values[chunk])) if name == "variance" else values[chunk])
    return sum(found) / len(found) if found else -1.0
