"""Every hyper-parameter of a growing network: its unit, its range and the check that guards it.

The dataclasses are frozen and check themselves when they are made, so an object that exists is valid.
Hydra builds them through ``_target_``; in Python they are keyword arguments of
:class:`~lightning_morpho.MorphoCallback` and :class:`MorphoConfig`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from fnmatch import fnmatchcase
from typing import Any, Literal

from lightning_morpho.checks import (
    as_patterns,
    check,
    check_flags,
    is_count,
    is_fraction,
    is_name,
    is_number,
    named_arguments,
)
from lightning_morpho.lifecycle_config import GraftingConfig, LifecycleConfig, StarvationConfig
from lightning_morpho.rollout_config import FlagConfig, GuardConfig, RampConfig, RolloutConfig

__all__ = [
    "BlueprintConfig",
    "BudgetConfig",
    "CreditConfig",
    "FlagConfig",
    "GovernorConfig",
    "GraftingConfig",
    "GuardConfig",
    "LayersConfig",
    "LifecycleConfig",
    "MorphoConfig",
    "RampConfig",
    "RolloutConfig",
    "StarvationConfig",
    "TelemetryConfig",
    "WarmupConfig",
    "check_section",
]

AUTO: Literal["auto"] = "auto"
BUDGET: Literal["budget"] = "budget"
Auto = Literal["auto"]


@named_arguments
@dataclass(frozen=True, kw_only=True)
class LayersConfig:
    """Which layers grow, and how finely.

    Args:
        include: Globs over module names (``"encoder.*"``); a layer is a candidate if one matches.
        exclude: Globs over module names; a layer that matches is left out.
        num_seeds: Chunks, and so seeds, a layer; ``"auto"`` gives one per 64 output features,
            1 to 1024. Must not exceed the layer's output features.
        beds: Germination events a layer can hold at a time, ``>= 1``: the most that the parameter
            budget may allocate there.
        pairs: Pairs of layers for ``span`` that the finder misses: each entry lists the name of the producer,
            of what stands between (modules, or operations such as ``"relu"``), and of the consumer.
        kinds: Blueprints of single layers, by globs over module names (``{"decoder.*": "glu"}``); the first that
            matches counts, all other layers take ``blueprint.kind``. A layer with a blueprint of its own is in no
            pair, unless that is ``"auto"`` or ``"span"``.
    """

    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    num_seeds: int | Auto = AUTO
    beds: int = 1
    pairs: tuple[tuple[str, ...], ...] = ()
    kinds: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "include", as_patterns(self.include, "layers.include"))
        object.__setattr__(self, "exclude", as_patterns(self.exclude, "layers.exclude"))
        check(
            self.num_seeds == AUTO or is_count(self.num_seeds),
            "layers.num_seeds",
            "'auto' or at least 1 seed a layer",
            self.num_seeds,
        )
        check(is_count(self.beds), "layers.beds", "at least 1 bed a layer", self.beds)
        entries: list[Any] = list(self.pairs)
        lists = all(isinstance(pair, (list, tuple)) and len(pair) >= 2 for pair in entries)
        check(lists, "layers.pairs", "a list of lists of at least two names", self.pairs)
        object.__setattr__(self, "pairs", tuple(tuple(pair) for pair in entries))
        named = isinstance(self.kinds, Mapping) and all(map(is_name, (*self.kinds, *self.kinds.values())))
        check(named, "layers.kinds", "names of blueprints by globs over module names", self.kinds)
        object.__setattr__(self, "kinds", dict(self.kinds))


@named_arguments
@dataclass(frozen=True, kw_only=True)
class BlueprintConfig:
    """What grows at a germination.

    Args:
        kind: ``"auto"``: ``span`` where a pair of layers is found, ``neurons`` elsewhere. Or a name in the
            blueprint registry: ``"span"`` (new hidden units between the layer before and this one: the layer
            in between becomes wider), ``"neurons"`` (new hidden units from the layer's own input),
            ``"glu"`` (gated hidden units from there), ``"block"`` (a residual block on the layer's whole output),
            ``"mlp"`` (a two-layer network on each chunk: the more chunks, the less it is worth at equal cost),
            ``"lowrank"`` (a change of low rank of the layer's weights: for trained hosts, useless from scratch),
            ``"affine"`` (a scale and a shift of each output feature), or one of your own.
        hidden: Hidden units of one bed, or of one chunk (``mlp``). ``"auto"``: ``span`` takes as many as the
            layer in between has, at least 8; ``neurons`` as many as cost the layer's own parameter count, at
            least 8, and so does ``glu``; ``block`` the layer's width; ``mlp`` twice the chunk's width. Of ``lowrank``
            it is the rank, by default 8 or what the layer's weights can have. A policy that
            chooses the size itself takes ``"budget"`` for it: ``span`` takes as many as the budget allows, all layers
            in between wider by the same factor.
        activation: ``"relu"``, ``"gelu"``, ``"selu"``, ``"silu"`` or ``"tanh"``.
    """

    kind: str = AUTO
    hidden: int | Literal["auto", "budget"] = AUTO
    activation: str = "relu"

    def __post_init__(self) -> None:
        check(is_name(self.kind), "blueprint.kind", "the name of a blueprint", self.kind)
        check(
            self.hidden in (AUTO, BUDGET) or is_count(self.hidden),
            "blueprint.hidden",
            "'auto', 'budget' or at least 1 hidden unit",
            self.hidden,
        )


@named_arguments
@dataclass(frozen=True, kw_only=True)
class WarmupConfig:
    """How gently the first updates of a newborn are made.

    For ``min(steps, max(min_steps, share * steps so far))`` optimizer steps after its germination a
    newborn moves only by a share of what the optimizer asks for; the share rises linearly to 1.

    Args:
        steps: Longest warm-up, in optimizer steps, ``>= 0``; 0 turns it off.
        share: Warm-up as a fraction of the optimizer steps done before the germination, in [0, 1].
        min_steps: Shortest warm-up, in optimizer steps, ``>= 0``.
        min_rate: No germination while the learning rate is below this share of its peak, in [0, 1]: a decayed
            schedule leaves newborns too little to learn. 0: grow at any time.
    """

    steps: int = 300
    share: float = 0.2
    min_steps: int = 50
    min_rate: float = 0.5

    def __post_init__(self) -> None:
        check(is_count(self.steps, 0), "warmup.steps", "at least 0 optimizer steps", self.steps)
        check(is_fraction(self.share), "warmup.share", "a fraction in [0, 1]", self.share)
        check(is_count(self.min_steps, 0), "warmup.min_steps", "at least 0 optimizer steps", self.min_steps)
        check(is_fraction(self.min_rate), "warmup.min_rate", "a fraction in [0, 1]", self.min_rate)

    def length(self, steps_so_far: int) -> int:
        """Optimizer steps of the warm-up of a seed that germinates after ``steps_so_far`` steps.

        Example:
            >>> WarmupConfig().length(100), WarmupConfig().length(1000), WarmupConfig().length(9000)
            (50, 200, 300)
        """
        return min(self.steps, max(self.min_steps, math.ceil(self.share * steps_so_far)))


_COPIES = 4
"""A parameter, its gradient and two values of optimizer state."""


@named_arguments
@dataclass(frozen=True, kw_only=True)
class BudgetConfig:
    """Hard limits on what growth may add; all of them hold, whatever the policy asks for.

    Args:
        parameters: Most parameters that seeds may hold, over all layers, ``>= 1``. They are
            allocated before training starts (dormant ones cost memory, no time). ``"auto"``: as
            many as the eligible layers hold, within 100 thousand and 10 million.
        memory: Most memory of these parameters in MiB, ``> 0``, their gradients and two values of optimizer state
            each (as Adam has them) included; activations are not. None: no limit of its own.
        flops: Most floating-point operations that growth may add to a forward pass, as a share of those of the
            eligible layers, ``> 0``: 0.5 makes it at most one and a half times as dear. They are counted on the first
            training batch, nothing germinates before. None: no limit of its own.
        tick_share: Most of the fit's time that decision ticks may take, as a share in (0, 1), trials and sizing
            included. What does not fit waits for a later tick or is left out, and the event log says so (``cut``);
            what a tick does in any case is counted and not cut. What is cut depends on the clock, so a run with
            this limit does not repeat bit for bit. None: no limit.
    """

    parameters: int | Auto = AUTO
    memory: float | None = None
    flops: float | None = None
    tick_share: float | None = None

    def __post_init__(self) -> None:
        check(
            self.parameters == AUTO or is_count(self.parameters),
            "budget.parameters",
            "'auto' or at least 1 parameter",
            self.parameters,
        )
        positive = self.memory is None or (is_number(self.memory) and self.memory > 0)
        check(positive, "budget.memory", "a positive number of MiB, or null", self.memory)
        positive = self.flops is None or (is_number(self.flops) and self.flops > 0)
        check(positive, "budget.flops", "a positive share of the layers' own, or null", self.flops)
        share = self.tick_share is None or (is_number(self.tick_share) and 0 < self.tick_share < 1)
        check(share, "budget.tick_share", "a share of the time in (0, 1), or null", self.tick_share)

    def limit(self, eligible_parameters: int, bytes_each: int = 4) -> int:
        """The limit in parameters.

        Args:
            eligible_parameters: Parameters that the eligible layers hold.
            bytes_each: Bytes of one parameter.

        Example:
            >>> BudgetConfig().limit(10), BudgetConfig(memory=1.0).limit(10), BudgetConfig(memory=1.0).limit(10, 2)
            (100000, 65536, 100000)
        """
        automatic = min(max(eligible_parameters, 100_000), 10_000_000)
        limit = automatic if self.parameters == AUTO else self.parameters
        if self.memory is None:
            return limit
        return min(limit, int(self.memory * 2**20) // (_COPIES * bytes_each))


@named_arguments
@dataclass(frozen=True, kw_only=True)
class CreditConfig:
    """How a seed's contribution is measured on held-out data.

    Args:
        batches: Validation batches used, ``>= 2``: their losses with and without a seed are paired.
        confidence: Level of the one-sided confidence bound, in (0.5, 1).
        max_groups: Most seeds measured one by one a tick, ``>= 1``. If more are due, those that share a bed are
            measured, and so judged, together.
        measurements: Cost limit: most measurements a tick, ``>= 6``, each a forward pass over ``batches``
            validation batches. A third is for single seeds, the rest for groups of them; what does not fit
            waits for the next tick, and the event log says so.
        replicas: Most measurements in one pass, ``>= 1``: the batch is shared, the blend weights are a vector
            (``torch.func.vmap``). Halved where memory runs out; 1, or a validation step that ``vmap`` can't
            run: one by one.
        monitor: Name under which ``validation_step`` logs its loss; used where it returns none, and
            by policies that watch the validation loss.
    """

    batches: int = 16
    confidence: float = 0.95
    max_groups: int = 64
    measurements: int = 128
    replicas: int = 8
    monitor: str = "val_loss"

    def __post_init__(self) -> None:
        check(is_count(self.batches, 2), "credit.batches", "at least 2 validation batches", self.batches)
        check(
            isinstance(self.confidence, float) and 0.5 < self.confidence < 1,
            "credit.confidence",
            "in (0.5, 1)",
            self.confidence,
        )
        check(is_count(self.max_groups), "credit.max_groups", "at least 1 seed", self.max_groups)
        check(is_count(self.measurements, 6), "credit.measurements", "at least 6 measurements", self.measurements)
        check(is_count(self.replicas), "credit.replicas", "at least 1 measurement a pass", self.replicas)
        check(is_name(self.monitor), "credit.monitor", "the name of a logged metric", self.monitor)


TELEMETRY_LEVELS = ("minimal", "standard", "full")


@named_arguments
@dataclass(frozen=True, kw_only=True)
class GovernorConfig:
    """When a diverging run is taken back to where it was sound.

    By default it watches while seeds live, from a germination until the last of them was judged: without any growth it
    costs a reference to each loss. A rollback restores weights, optimizer moments and counters of the host and of
    kept seeds, and ends the live ones. Learning-rate schedules, data and step counts go on.

    Args:
        enabled: Whether there is a governor at all.
        always: Whether to watch, and hold a snapshot, while no seed lives too.
        every_n_steps: Optimizer steps between two snapshots, ``>= 1``. There is also one at each germination, start of
            grafting and fossilization. A snapshot takes CPU memory for the weights and the optimizer's state.
        check_every: Training steps between two looks at the losses, ``>= 1``: each waits for the device.
            ``"auto"``: 1 on the CPU, 16 on other devices and with several processes.
        spike: Height of a spike that counts as divergence, in robust standard deviations, ``> 0``. A loss below that at
            the snapshot never does.
        patience: Losses whose median must lie that high, ``>= 1``.
        window: Losses before them that they are compared with, ``>= 8``; none is judged before a quarter is known.
        max_rollbacks: Rollbacks in a row, with fewer than ``window`` steps between, after which it stands down,
            ``>= 1``.
    """

    enabled: bool = True
    always: bool = False
    every_n_steps: int = 1000
    check_every: int | Auto = AUTO
    spike: float = 10.0
    patience: int = 8
    window: int = 64
    max_rollbacks: int = 3

    def __post_init__(self) -> None:
        check_flags(self, "governor", "enabled", "always")
        check(is_count(self.every_n_steps), "governor.every_n_steps", "at least 1 optimizer step", self.every_n_steps)
        check(
            self.check_every == AUTO or is_count(self.check_every),
            "governor.check_every",
            "'auto' or at least 1 training step",
            self.check_every,
        )
        check(is_number(self.spike) and self.spike > 0, "governor.spike", "a number above 0", self.spike)
        check(is_count(self.patience), "governor.patience", "at least 1 loss", self.patience)
        check(is_count(self.window, 8), "governor.window", "at least 8 losses", self.window)
        check(is_count(self.max_rollbacks), "governor.max_rollbacks", "at least 1 rollback", self.max_rollbacks)


@named_arguments
@dataclass(frozen=True, kw_only=True)
class TelemetryConfig:
    """What is observed and where it goes.

    Args:
        every_n_steps: Training steps between two samples of the layers' activations, ``>= 1``;
            0 turns activation statistics off.
        log: Whether statistics and counts are logged to the Trainer's loggers.
        events: Whether events are appended to ``morpho_events.jsonl`` and figures to ``morpho_metrics.jsonl`` in
            the run's log directory.
        table: Whether the table of seeds is printed when training ends.
        level: How much is measured and logged. ``"minimal"``: activations, for the controller, and figures of the
            run; at most 20 series. ``"standard"``: gradients as well, figures of layers, histograms and seed maps; at
            most 200 series. ``"full"``: correlations and times as well, figures of single seeds; at most 1000 series.
    """

    every_n_steps: int = 16
    log: bool = True
    events: bool = True
    table: bool = True
    level: Literal["minimal", "standard", "full"] = "standard"

    def __post_init__(self) -> None:
        check(is_count(self.every_n_steps, 0), "telemetry.every_n_steps", "at least 0 steps", self.every_n_steps)
        check_flags(self, "telemetry", "log", "events", "table")
        check(self.level in TELEMETRY_LEVELS, "telemetry.level", f"one of {list(TELEMETRY_LEVELS)}", self.level)


@named_arguments
@dataclass(frozen=True, kw_only=True)
class MorphoConfig:
    """Everything that :func:`~lightning_morpho.morph_` needs: which layers, what grows, how much.

    Its fields are the arguments of the same names of :class:`~lightning_morpho.MorphoCallback`, described there.
    """

    layers: LayersConfig = field(default_factory=LayersConfig)
    blueprint: BlueprintConfig = field(default_factory=BlueprintConfig)
    lifecycle: LifecycleConfig = field(default_factory=LifecycleConfig)
    grafting: GraftingConfig = field(default_factory=GraftingConfig)
    warmup: WarmupConfig = field(default_factory=WarmupConfig)
    starvation: StarvationConfig = field(default_factory=StarvationConfig)
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    model_id: str = "model"
    seed: int = 0

    def __post_init__(self) -> None:
        for item in fields(self):
            if item.default_factory is not _NO_FACTORY:
                check_section(item.name, getattr(self, item.name), item.default_factory)
        check(is_name(self.model_id), "model_id", "a non-empty name", self.model_id)
        check(is_count(self.seed, 0), "seed", "a non-negative integer", self.seed)

    def of_layer(self, name: str) -> MorphoConfig:
        """These settings as they hold for one layer: with its own blueprint.

        Example:
            >>> config = MorphoConfig(layers=LayersConfig(kinds={"head*": "glu"}))
            >>> config.of_layer("head.0").blueprint.kind, config.of_layer("body.0").blueprint.kind
            ('glu', 'auto')
        """
        own = (kind for pattern, kind in self.layers.kinds.items() if fnmatchcase(name, pattern))
        return replace(self, blueprint=replace(self.blueprint, kind=next(own, self.blueprint.kind)))


_NO_FACTORY = MorphoConfig.__dataclass_fields__["seed"].default_factory


def check_section(name: str, value: object, expected: Any) -> None:
    """Refuse a configuration section of the wrong type, above all Hydra's bare string.

    Raises:
        TypeError: If ``value`` is not an ``expected``.
    """
    if isinstance(value, expected):
        return
    wanted = f"an instance of {expected.__name__}"
    if isinstance(value, str):
        raise TypeError(
            f"`{name}` must be {wanted}, got the bare string {value!r}: Hydra found no config group for it. "
            f"Choose it in the defaults list or on the command line as `morpho/{name}={value}` "
            "and check that this file exists. In Python pass the object itself, not its name."
        )
    if isinstance(value, type):
        raise TypeError(f"`{name}` must be {wanted}, got the class itself: write `{value.__name__}()`.")
    raise TypeError(
        f"`{name}` must be {wanted}, got {type(value).__name__}. In Python write `{expected.__name__}(...)`, "
        f"in YAML give it `_target_: lightning_morpho.{expected.__name__}`."
    )
