"""What Tamiyo sees and what it may ask for: frozen, plain numbers, no module in sight."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from lightning_morpho.evidence import Bounds, paired_bounds
from lightning_morpho.lifecycle import Stage

SeedKey = tuple[str, int]
"""Layer name and chunk."""

Group = tuple[SeedKey, ...]
"""Seeds that are left out together."""


Place = tuple[str, ...]
"""Names of layers that germinate together."""


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
        units: Hidden units of its bed that are not dead; None where units are not counted.
    """

    chunk: int
    generation: int
    stage: Stage
    age: int
    alpha: float
    bed: int | None
    fading: bool
    due: bool
    units: int | None = None


@dataclass(frozen=True, kw_only=True)
class LayerView:
    """A layer.

    Attributes:
        name: Its name in the model.
        position: Its place among the model's layers, from 0.
        kind: Name of the blueprint that grows here.
        features: Output features or channels.
        width: Features or channels that a germination adds to: of ``span`` the hidden units in between.
        bed_parameters: Parameters that one germination adds.
        free_beds: Germinations that it can still take.
        germinations: Germinations so far.
        dormant: Chunks that may germinate.
        seeds: The seeds that have left dormancy.
        statistics: Statistics by name, one value a chunk; empty if none were sampled.
        late: Whether nothing grew here yet because the rollout had it switched off.
    """

    name: str
    position: int = 0
    kind: str = ""
    features: int
    width: int = 0
    bed_parameters: int
    free_beds: int
    germinations: int
    dormant: tuple[int, ...]
    seeds: tuple[SeedView, ...]
    statistics: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    late: bool = False

    @property
    def growable(self) -> bool:
        """Whether it can take a germination."""
        return bool(self.free_beds and self.dormant)


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Rise of the held-out loss without some seeds, over paired batches.

    Attributes:
        seeds: The seeds left out together.
        rise: Mean rise of the loss without them, in loss units; above 0 they help.
        lower: One-sided lower confidence bound of it; NaN with fewer than two batches.
        batches: Batches compared, over all ranks.
        differences: Rise on each of the batches, in the same order in all measurements of a tick.
        losses: Loss with all seeds on each of the batches.
        confidence: Level of the bound.
        reaches: Layers whose input these seeds change.
    """

    seeds: Group
    rise: float
    lower: float
    batches: int
    differences: tuple[float, ...] = ()
    losses: tuple[float, ...] = ()
    confidence: float = 0.95
    reaches: frozenset[str] = frozenset()

    @property
    def bounds(self) -> Bounds:
        """Both bounds, as far as the differences are known."""
        if self.differences:
            return paired_bounds(self.differences, self.confidence)
        return Bounds(self.rise, self.lower, math.nan)


@dataclass(frozen=True, kw_only=True)
class Assessment:
    """What new random hidden units would explain of a layer's held-out residual, and what its own still could.

    Attributes:
        layer: Name of the layer that would read them.
        share: Share of the residual that they explain beyond what the layer's own inputs can, at most 1; below 0 they
            explain nothing.
        own: Share that its own inputs can still explain by learning, in [0, 1].
        error: Standard error of ``share``.
        residual: Squared residual, a mean over rows; its scale is the loss's own.
        step: Optimizer steps done when it was found out.
    """

    layer: str
    share: float
    own: float = 0.0
    error: float = 0.0
    residual: float = 0.0
    step: int = 0

    @property
    def part(self) -> float:
        """Of all that can be explained, the part that only new units can, in [0, 1]."""
        return self.share / (self.own + self.share) if self.share > 0 else 0.0

    @property
    def promise(self) -> float:
        """How much of the squared residual the layer's own inputs can still explain, on the scale of ``residual``."""
        return self.own * self.residual


@dataclass(frozen=True, kw_only=True)
class Resizing:
    """How many hidden units before a layer were kept.

    Attributes:
        layer: Name of the layer that reads them.
        units: Units before, the host's and the grown ones.
        kept: Units after.
        before: Held-out error before, in points.
        after: ... and after.
        seconds: Time that the search took; 0 in a replay.
    """

    layer: str
    units: int
    kept: int
    before: float
    after: float
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Tried:
    """What came of a trial.

    Attributes:
        place: The layers that germinated.
        losses: Held-out loss afterwards on each of the batches, in the same order in all trials of a tick.
        steps: Optimizer steps that it took; all places of a shared trial took these together.
        seconds: Time that it took, its measurement included, likewise; no decision may rest on it.
        flops: Floating-point operations of its steps on one rank, 0 where they could not be counted, likewise.
        rise: Of a shared trial, the mean rise of that loss without what grew in this place; None if it was tried alone.
    """

    place: Place
    losses: tuple[float, ...]
    steps: int
    seconds: float = 0.0
    flops: float = 0.0
    rise: float | None = None

    @property
    def loss(self) -> float:
        """Mean held-out loss; infinity without a batch, or if one is not finite."""
        sound = self.losses and all(map(math.isfinite, self.losses))
        return sum(self.losses) / len(self.losses) if sound else math.inf

    @property
    def cost(self) -> float:
        """What the places of a tick are compared by, the lowest best; infinity where nothing is known."""
        if self.rise is None:
            return self.loss
        return -self.rise if math.isfinite(self.rise) and math.isfinite(self.loss) else math.inf


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What the seeds of one blueprint in one layer were worth, those that have ended and were measured.

    Attributes:
        kind: Name of the blueprint.
        layer: Name of the layer.
        count: Seeds.
        gain: Mean of their gains: rise of the held-out loss without the seed, as a share of the loss at its
            germination, in [-1, 1].
        spread: Sum of the squared deviations from that mean.
        parameters: Mean number of parameters of such a seed.
    """

    kind: str
    layer: str
    count: int
    gain: float
    spread: float
    parameters: float

    @classmethod
    def of(cls, kind: str, layer: str, seeds: Sequence[tuple[float, float]]) -> Outcome:
        """Summary of some seeds.

        Args:
            kind: Name of the blueprint.
            layer: Name of the layer.
            seeds: Gain and parameters of each, at least one.

        Example:
            >>> Outcome.of("span", "net.2", [(0.1, 40), (0.3, 40)])
            Outcome(kind='span', layer='net.2', count=2, gain=0.2, spread=0.02, parameters=40.0)
        """
        gain = sum(g for g, _ in seeds) / len(seeds)
        spread = sum((g - gain) ** 2 for g, _ in seeds)
        size = sum(p for _, p in seeds) / len(seeds)
        return cls(
            kind=kind, layer=layer, count=len(seeds), gain=round(gain, 6), spread=round(spread, 6), parameters=size
        )


@dataclass(frozen=True, kw_only=True)
class Observation:
    """All that a decision rests on; equal on every rank.

    Attributes:
        tick: Number of this decision tick, from 1.
        step: Optimizer steps done.
        total_steps: Optimizer steps of the whole training, None if nobody knows.
        losses: Validation loss at each tick so far, this one last; None where there was none.
        training_losses: Mean training loss of the sampled batches since the tick before, likewise.
        last_round: Tick of the last germination, None before the first.
        stop_patience: Validations without progress after which EarlyStopping ends the training, at the least; None
            if there is none.
        layers: All hybrid layers.
        outcomes: What the seeds that have ended in this run were worth.
        measurements: Results of the measurements asked for at this tick.
        can_measure: Whether a held-out loss can be had at all.
        unmeasured: What was asked for at this tick and did not fit into its passes.
        deferred: How often the decision on a live seed was put off already.
        births: Held-out losses of the batches at the germination of a live seed, where they were measured.
        assessments: What new units would explain, each time that was asked for, the latest last; None before.
        resizings: How many units the layers kept, once that was asked for.
        penalised: Ticks that the group penalty has been on, 0 while it is off.
        can_size: Whether hidden layers can be sized by held-out data.
        validates_later: Whether the first validation is still to come; what it makes possible is not known before.
        no_trial: Why nothing can be tried out in this run; None if it can.
        trials: What came of the trials, once they were asked for.
    """

    tick: int
    step: int
    total_steps: int | None
    losses: tuple[float | None, ...]
    layers: tuple[LayerView, ...]
    training_losses: tuple[float | None, ...] = ()
    last_round: int | None = None
    stop_patience: int | None = None
    outcomes: tuple[Outcome, ...] = ()
    measurements: tuple[Measurement, ...] = ()
    can_measure: bool = True
    unmeasured: frozenset[Group] = frozenset()
    deferred: Mapping[SeedKey, int] = field(default_factory=dict)
    births: Mapping[SeedKey, tuple[float, ...]] = field(default_factory=dict)
    assessments: tuple[Assessment, ...] | None = None
    resizings: tuple[Resizing, ...] | None = None
    penalised: int = 0
    can_size: bool = False
    validates_later: bool = False
    no_trial: str | None = "nothing was given to try it with"
    trials: tuple[Tried, ...] | None = None

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
        force: Whether to grow even if the learning rate has decayed.
    """

    layer: str
    chunks: tuple[int, ...] | None = None
    reason: str
    force: bool = False


@dataclass(frozen=True, kw_only=True)
class Measure:
    """Measure what the held-out loss loses without each of these seeds; then decide again.

    Attributes:
        seeds: Seeds to leave out one by one.
        together: Groups to leave out as such.
    """

    seeds: Group = ()
    together: tuple[Group, ...] = ()


@dataclass(frozen=True, kw_only=True)
class SeedDecision:
    """What is decided on one seed.

    Attributes:
        seed: The seed.
        reason: Why.
        figures: The numbers that decided it, as far as they are known.
    """

    seed: SeedKey
    reason: str
    figures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Keep(SeedDecision):
    """Fossilize a seed."""


@dataclass(frozen=True, kw_only=True)
class Cull(SeedDecision):
    """Let a seed fade out."""


@dataclass(frozen=True, kw_only=True)
class Defer(SeedDecision):
    """Put the decision on a seed off to the next tick."""


@dataclass(frozen=True, kw_only=True)
class Assess:
    """Ask what new hidden units would explain of the held-out residual; then decide again."""


@dataclass(frozen=True, kw_only=True)
class Penalize:
    """Change the group penalty: from the next step on, units that earn nothing lose their outgoing weights.

    Attributes:
        strength: Share of an optimizer's step by which the norm of a unit's weights falls, ``>= 0``; 0: off.
        host: Whether the host's own units pay it.
        grown: Whether newborn units pay it.
    """

    strength: float
    host: bool
    grown: bool


@dataclass(frozen=True, kw_only=True)
class Resize:
    """Remove the hidden units that validation does not miss; then decide again.

    Attributes:
        host: Whether the host's own units may go.
        grown: Whether grown units may go.
        tolerance: Rise of the held-out error that is allowed, in points, ``>= 0``.
        metric: Logged metric that gives the error, or ``"auto"``.
        point: A point in loss units, or ``"auto"``.
    """

    host: bool
    grown: bool
    tolerance: float
    metric: str = "auto"
    point: float | Literal["auto"] = "auto"


@dataclass(frozen=True, kw_only=True)
class Try:
    """Grow in each of some places for a short time, put everything back each time; then decide again.

    Attributes:
        places: What is tried, one after the other: layers that germinate together, in all their dormant chunks.
        steps: Optimizer steps of each trial, ``>= 1``.
        shared: Whether all places grow together in a single trial, at the end of which each is left out once.
    """

    places: tuple[Place, ...]
    steps: int
    shared: bool = False


Decision = Germinate | Measure | Keep | Cull | Defer | Assess | Penalize | Resize | Try
