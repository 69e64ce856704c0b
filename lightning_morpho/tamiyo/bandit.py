"""Growth where it has paid before."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from lightning_morpho.checks import check, is_count, named_arguments
from lightning_morpho.tamiyo.base import Tamiyo
from lightning_morpho.tamiyo.observation import Germinate, LayerView, Observation, Outcome
from lightning_morpho.tamiyo.places import growable
from lightning_morpho.telemetry.field_reports import by_kind_and_layer, read_field_reports

FIRST_GUESS = 0.05
"""Gain expected of a blueprint that nobody has tried, as a share of the loss; hopeful, so that it is tried."""
FIRST_SPREAD = 0.1
"""Standard deviation of single gains, while fewer than three are known."""


@named_arguments
@dataclass(frozen=True, kw_only=True)
class Bandit(Tamiyo):
    """Learns from field reports which blueprint pays, in which layer, and grows there (Thompson sampling).

    Every ``every`` ticks it draws for each layer a gain per parameter from what is known: the gains of the layer's
    blueprint in all layers and, through ``prior``, in earlier runs; drawn towards them, the gains of the layer's own
    seeds. The highest draws germinate. A layer's blueprint is set when its beds are allocated (``layers.kinds`` gives
    layers blueprints of their own), so the choice of a blueprint is a choice among layers whose blueprints differ; what
    was learnt about them in one run tells ``prior`` of the next where to begin. The draws depend on the seed, the tick
    and the names of the layers alone.

    Args:
        start: First tick that grows, ``>= 1``.
        every: Ticks between two rounds, ``>= 1``.
        events: Germinations a round, ``>= 1``.
        prior: File of field reports of earlier runs, or a folder that holds such files; null: none.
        seed: Random seed of the draws, ``>= 0``.

    Raises:
        ValueError: If ``prior`` holds no field reports.
    """

    start: int = 1
    every: int = 2
    events: int = 1
    prior: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("start", "every", "events"):
            check(is_count(getattr(self, name)), f"tamiyo.{name}", "at least 1", getattr(self, name))
        check(is_count(self.seed, 0), "tamiyo.seed", "a non-negative integer", self.seed)
        _ = self.experience

    @cached_property
    def experience(self) -> tuple[Outcome, ...]:
        """What the seeds of earlier runs were worth."""
        if self.prior is None:
            return ()
        groups = by_kind_and_layer(read_field_reports(Path(self.prior)))
        return tuple(
            Outcome.of(kind, layer, [(report.gain or 0.0, report.parameters) for report in reports])
            for (kind, layer), reports in groups.items()
        )

    def grow(self, observation: Observation) -> Sequence[Germinate]:
        """In the highest draws."""
        elapsed = observation.tick - self.start
        if elapsed < 0 or elapsed % self.every:
            return []
        drawn = [(self._draw(layer, observation), layer) for layer in growable(observation)]
        drawn.sort(key=lambda pair: (-pair[0] / pair[1].bed_parameters, pair[1].position))
        return [
            Germinate(layer=layer.name, reason=f"{layer.kind}: drawn gain {gain:.3g} of the loss")
            for gain, layer in drawn[: self.events]
        ]

    def _draw(self, layer: LayerView, observation: Observation) -> float:
        own = [one for one in observation.outcomes if (one.kind, one.layer) == (layer.kind, layer.name)]
        alike = [one for one in (*self.experience, *observation.outcomes) if one.kind == layer.kind]
        expected, deviation = posterior(own, alike)
        generator = random.Random(f"{self.seed}:{observation.tick}:{layer.name}")
        return generator.gauss(expected, deviation)


def posterior(own: Iterable[Outcome], alike: Iterable[Outcome]) -> tuple[float, float]:
    """Expected gain of the next seed in a layer, and how uncertain that expectation is.

    Args:
        own: Outcomes of the layer's own seeds.
        alike: Outcomes of all seeds of the same blueprint, those of the layer included.

    Example:
        >>> posterior([], [])
        (0.05, 0.1)
        >>> few, many = (Outcome.of("span", "a", [(0.3, 1.0)] * n) for n in (2, 200))
        >>> [round(value, 3) for value in (*posterior([], [few]), *posterior([many], [many]))]
        [0.217, 0.058, 0.3, 0.0]
    """
    own, alike = list(own), list(alike)
    count = sum(one.count for one in alike)
    kind = (FIRST_GUESS + sum(one.count * one.gain for one in alike)) / (1 + count)
    spread = FIRST_SPREAD**2 + sum(one.spread for one in alike)
    single = FIRST_SPREAD if count < 3 else math.sqrt(spread / count)
    tried = sum(one.count for one in own)
    # As good as one more try of the layer's own: what its blueprint gave elsewhere.
    expected = (kind + sum(one.count * one.gain for one in own)) / (1 + tried)
    return expected, single / math.sqrt(1 + max(tried, count))
