"""What becomes of seeds: transitions, the verdicts behind them, and who leaves or keeps a place in a bed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from lightning_morpho.lifecycle import Stage


@dataclass(frozen=True, kw_only=True)
class Transition:
    """One seed changed its stage.

    Attributes:
        layer: Name of the layer.
        chunk: Chunk of the seed.
        generation: Generation of the seed.
        blueprint: Kind of network.
        source: Stage that it left.
        target: Stage that it entered.
        reason: Why, in words.
        figures: The numbers that decided it.
    """

    layer: str
    chunk: int
    generation: int
    blueprint: str
    source: Stage
    target: Stage
    reason: str
    figures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Verdict:
    """Why a seed is on its way out, or about to be kept.

    Attributes:
        target: Name of the stage that it enters at last.
        reason: Why, in words.
        figures: The numbers that decided it.
    """

    target: str
    reason: str
    figures: Mapping[str, float]


@dataclass(frozen=True)
class Tenancy:
    """A seed that left its bed, or is to stay there for good.

    Attributes:
        chunk: Its chunk.
        bed: Index of the bed.
        alpha: Its blend weight.
    """

    chunk: int
    bed: int
    alpha: float


@dataclass
class Moves:
    """What one tick did to the tenancy of beds.

    Attributes:
        ended: Seeds whose place is free now.
        kept: Seeds that became fossils.
    """

    ended: list[Tenancy] = field(default_factory=list)
    kept: list[Tenancy] = field(default_factory=list)
