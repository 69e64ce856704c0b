"""What Tamiyo sees and what it may ask for: frozen, plain numbers, no module in sight."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from lightning_morpho.lifecycle import Stage

SeedKey = tuple[str, int]
"""Layer name and chunk."""


@dataclass(frozen=True, kw_only=True)
class SeedView:
    """A seed that has left dormancy.

    Attributes:
        chunk: Its chunk.
        generation: How many seeds the chunk had before.
        stage: Its stage.
        age: Ticks in this stage.
        alpha: Blend weight in [0, 1].
        bed: Bed that it occupies, None if it has none.
        fading: Whether it is on its way out.
        due: Whether it may be judged now.
    """

    chunk: int
    generation: int
    stage: Stage
    age: int
    alpha: float
    bed: int | None
    fading: bool
    due: bool


@dataclass(frozen=True, kw_only=True)
class LayerView:
    """A layer.

    Attributes:
        name: Its name in the model.
        features: Output features or channels.
        bed_parameters: Parameters that one germination adds.
        free_beds: Germinations that it can still take.
        germinations: Germinations so far.
        dormant: Chunks that may germinate.
        seeds: The seeds that have left dormancy.
        statistics: Statistics by name, one value a chunk; empty if none were sampled.
        late: Whether nothing grew here yet because the rollout had it switched off.
    """

    name: str
    features: int
    bed_parameters: int
    free_beds: int
    germinations: int
    dormant: tuple[int, ...]
    seeds: tuple[SeedView, ...]
    statistics: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    late: bool = False


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Rise of the held-out loss without some seeds, over paired batches.

    Attributes:
        seeds: The seeds left out together.
        rise: Mean rise of the loss without them, in loss units; above 0 they help.
        lower: One-sided lower confidence bound of it; NaN with fewer than two batches.
        batches: Batches compared, over all ranks.
    """

    seeds: tuple[SeedKey, ...]
    rise: float
    lower: float
    batches: int


@dataclass(frozen=True, kw_only=True)
class Observation:
    """All that a decision rests on; equal on every rank.

    Attributes:
        tick: Number of this decision tick, from 1.
        step: Optimizer steps done.
        total_steps: Optimizer steps of the whole training, None if nobody knows.
        losses: Validation loss at each tick so far, this one last; None where there was none.
        layers: All hybrid layers.
        measurements: Results of the measurements asked for at this tick.
        can_measure: Whether a held-out loss can be had at all.
    """

    tick: int
    step: int
    total_steps: int | None
    losses: tuple[float | None, ...]
    layers: tuple[LayerView, ...]
    measurements: tuple[Measurement, ...] = ()
    can_measure: bool = True

    @property
    def germinations(self) -> int:
        """Germinations so far, in all layers."""
        return sum(layer.germinations for layer in self.layers)


@dataclass(frozen=True, kw_only=True)
class Germinate:
    """Grow in a layer.

    Attributes:
        layer: Its name.
        chunks: Which chunks, None for all dormant ones.
        reason: Why, for the event log.
    """

    layer: str
    chunks: tuple[int, ...] | None = None
    reason: str


@dataclass(frozen=True, kw_only=True)
class Measure:
    """Measure what the held-out loss loses without each of these seeds; then decide again.

    Attributes:
        seeds: The seeds.
    """

    seeds: tuple[SeedKey, ...]


@dataclass(frozen=True, kw_only=True)
class Keep:
    """Fossilize a seed.

    Attributes:
        seed: The seed.
        reason: Why.
        figures: The numbers that decided it.
    """

    seed: SeedKey
    reason: str
    figures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Cull:
    """Let a seed fade out.

    Attributes:
        seed: The seed.
        reason: Why.
        figures: The numbers that decided it.
    """

    seed: SeedKey
    reason: str
    figures: Mapping[str, float] = field(default_factory=dict)


Decision = Germinate | Measure | Keep | Cull
