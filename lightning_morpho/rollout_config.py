"""Hyper-parameters of a rollout: flags and their cohorts, ramps, and the guard that holds them back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

from lightning_morpho.checks import (
    as_patterns,
    as_section,
    check,
    is_count,
    is_name,
    is_number,
    is_percentage,
    named_arguments,
    suggest,
)

GUARDED = ("val_loss", "step_time")


@named_arguments
@dataclass(frozen=True, kw_only=True)
class FlagConfig:
    """Who has a feature.

    Precedence: ``enabled: false`` turns everybody off; then the blocklist turns off; then the
    allowlist turns on; then the cohort bucket of the unit must lie below the percentage.

    Args:
        enabled: Kill switch: false turns everybody off.
        percentage: Share of units in the cohort, in percent, in [0, 100].
        unit: What a cohort is made of: ``"model"`` (by ``model_id``), ``"layer"``, or ``"both"``: a
            layer is on if its model and the layer itself are.
        allowlist: Globs over unit ids that are on whatever the percentage.
        blocklist: Globs over unit ids that are off whatever else says.
        salt: Cohorts of different salts are independent; ``""``: the flag's name.
    """

    enabled: bool = False
    percentage: float = 100.0
    unit: Literal["model", "layer", "both"] = "model"
    allowlist: tuple[str, ...] = ()
    blocklist: tuple[str, ...] = ()
    salt: str = ""

    _section: ClassVar[str] = "flag"

    def __post_init__(self) -> None:
        name = self._section
        object.__setattr__(self, "allowlist", as_patterns(self.allowlist, f"{name}.allowlist"))
        object.__setattr__(self, "blocklist", as_patterns(self.blocklist, f"{name}.blocklist"))
        check(isinstance(self.enabled, bool), f"{name}.enabled", "true or false", self.enabled)
        check(is_percentage(self.percentage), f"{name}.percentage", "a percentage in [0, 100]", self.percentage)
        check(self.unit in ("model", "layer", "both"), f"{name}.unit", "'model' or 'layer' or 'both'", self.unit)
        check(isinstance(self.salt, str), f"{name}.salt", "a string", self.salt)


@named_arguments
@dataclass(frozen=True, kw_only=True)
class GuardConfig:
    """What must hold for a ramp to go on. A validation loss that is not finite never holds.

    Args:
        val_loss: Largest rise of the validation loss over its baseline, as a fraction of it,
            ``>= 0``; None: not watched.
        step_time: Largest rise of a training step's median time over its baseline, as a fraction of it,
            ``>= 0``; None: not watched.
        errors: Most contained errors of seeds, ``>= 0``; None: not watched.
        baseline: Recorded values of a run without growth: ``val_loss`` in loss units, ``step_time`` in
            seconds; used where ``rollout.cohort_dir`` has no run without growth at the same step. What is not
            recorded either is compared with the lowest value of this run so far.
    """

    val_loss: float | None = 0.05
    step_time: float | None = None
    errors: int | None = 0
    baseline: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in GUARDED:
            limit = getattr(self, name)
            check(limit is None or (is_number(limit) and limit >= 0), f"guard.{name}", "null or at least 0", limit)
        check(self.errors is None or is_count(self.errors, 0), "guard.errors", "null or at least 0 errors", self.errors)
        check(isinstance(self.baseline, Mapping), "guard.baseline", "a mapping of values by name", self.baseline)
        for name, value in self.baseline.items():
            check(name in GUARDED, "guard.baseline", f"a mapping with keys of {list(GUARDED)}", name)
            check(is_number(value), f"guard.baseline.{name}", "a number", value)
        object.__setattr__(self, "baseline", dict(self.baseline))


@named_arguments
@dataclass(frozen=True, kw_only=True)
class RampConfig:
    """A percentage that rises while the guard holds.

    Args:
        schedule: Percentage from each epoch or step on; both must rise. Before the first one: 0.
        by: What the schedule counts: ``"epoch"`` or ``"step"`` (optimizer steps).
        monitor_ticks: Decision ticks in a row at which the guard must have held in the present stage before
            the next one begins, ``>= 0``.
        on_failure: What a failing guard does: ``"off"`` (to 0 % until the run ends), ``"previous"`` (one
            stage back, and no further raise), ``"hold"`` (no raise while it fails).
        guard: What must hold.
    """

    schedule: Mapping[int, float] = field(default_factory=lambda: {0: 1.0, 5: 25.0, 10: 100.0})
    by: Literal["epoch", "step"] = "epoch"
    monitor_ticks: int = 1
    on_failure: Literal["off", "previous", "hold"] = "off"
    guard: GuardConfig = field(default_factory=GuardConfig)

    def __post_init__(self) -> None:
        object.__setattr__(self, "schedule", _checked_schedule(self.schedule))
        object.__setattr__(self, "guard", as_section(GuardConfig, self.guard, "ramp.guard", "guard"))
        check(self.by in ("epoch", "step"), "ramp.by", "'epoch' or 'step'", self.by)
        check(is_count(self.monitor_ticks, 0), "ramp.monitor_ticks", "at least 0 ticks", self.monitor_ticks)
        known = ("off", "previous", "hold")
        check(self.on_failure in known, "ramp.on_failure", "'off', 'previous' or 'hold'", self.on_failure)


def _checked_schedule(schedule: object) -> dict[int, float]:
    wanted = "a mapping from epochs or steps to percentages in [0, 100], both rising, such as {0: 1, 5: 25, 10: 100}"
    check(isinstance(schedule, Mapping) and bool(schedule), "ramp.schedule", wanted, schedule)
    assert isinstance(schedule, Mapping)
    # Keys may come as strings: from JSON and from the command line.
    numbers = [int(key) if isinstance(key, str) and key.isdecimal() else key for key in schedule]
    check(all(is_count(key, 0) for key in numbers), "ramp.schedule", wanted, dict(schedule))
    check(all(map(is_percentage, schedule.values())), "ramp.schedule", wanted, dict(schedule))
    stages = sorted(zip(numbers, schedule.values(), strict=True))
    rising = all(a[0] < b[0] and a[1] < b[1] for a, b in zip(stages, stages[1:], strict=False))
    check(rising, "ramp.schedule", wanted, dict(schedule))
    return dict(stages)


FLAGS: dict[str, FlagConfig] = {"fused_kernels": FlagConfig(enabled=True, salt="fused_kernels")}
"""Flags beside ``chunked_layers``, with their defaults; see :func:`~lightning_morpho.rollout.register_flag`."""


@named_arguments
@dataclass(frozen=True, kw_only=True)
class RolloutConfig(FlagConfig):
    """Who grows at all: the flag ``chunked_layers``, further flags, and how they change during a run.

    Precedence: ``enabled: false`` turns everybody off; then the blocklist turns off; then the
    allowlist turns on; then the cohort bucket of the unit must lie below the percentage. An environment
    variable ``MORPHO_FEATURE_<NAME>=on|off|NN%`` replaces a flag's ``enabled`` and ``percentage`` before that.

    Args:
        enabled: Kill switch: false turns everybody off, and nothing is prepared for growth.
        percentage: Share of units in the cohort, in percent, in [0, 100].
        unit: What a cohort is made of: ``"model"`` (by ``model_id``), ``"layer"``, or ``"both"``: a
            layer is on if its model and the layer itself are.
        allowlist: Globs over unit ids that are on whatever the percentage.
        blocklist: Globs over unit ids that are off whatever else says.
        salt: Cohorts of different salts are independent; ``""``: the flag's name.
        flags: Further flags by name: ``fused_kernels``; each takes the six keys above.
        flag_file: YAML file whose flags replace these during a run, looked at again and again; None: none.
        flag_every_n_steps: Optimizer steps between two looks at the flag file, ``>= 1``.
        ramp: Percentage by epoch or step, below ``percentage``, with a guard; None: constant.
        cohort_dir: Folder that all runs of one job share: each leaves its figures there at every tick, and a
            ramp's guard compares with those of the runs without growth; None: none.
    """

    enabled: bool = True
    salt: str = "chunked_layers"
    flags: Mapping[str, FlagConfig] = field(default_factory=dict)
    flag_file: str | None = None
    flag_every_n_steps: int = 10
    ramp: RampConfig | None = None
    cohort_dir: str | None = None

    _section: ClassVar[str] = "rollout"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.salt:
            object.__setattr__(self, "salt", "chunked_layers")
        object.__setattr__(self, "flags", _checked_flags(self.flags))
        for name, what in (("flag_file", "a YAML file"), ("cohort_dir", "a folder")):
            value = getattr(self, name)
            check(value is None or is_name(value), f"rollout.{name}", f"null or the path of {what}", value)
        check(
            is_count(self.flag_every_n_steps),
            "rollout.flag_every_n_steps",
            "at least 1 optimizer step",
            self.flag_every_n_steps,
        )
        if self.ramp is not None:
            object.__setattr__(self, "ramp", as_section(RampConfig, self.ramp, "rollout.ramp", "ramp"))


def _checked_flags(flags: object) -> dict[str, FlagConfig]:
    """All registered flags: as given, else by default."""
    check(isinstance(flags, Mapping), "rollout.flags", "a mapping of flags by name", flags)
    assert isinstance(flags, Mapping)
    for name in flags:
        if name not in FLAGS:
            raise ValueError(f"`rollout.flags` has no flag `{name}`: {suggest(name, FLAGS)}")
    made = {n: as_section(FlagConfig, flags.get(n, FLAGS[n]), f"rollout.flags.{n}", "flag") for n in FLAGS}
    return {n: flag if flag.salt else replace(flag, salt=n) for n, flag in made.items()}
