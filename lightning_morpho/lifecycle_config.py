"""Settings of a seed's life: the stages that it passes, and how its output enters the host."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from lightning_morpho.checks import check, check_choice, check_flags, is_count, is_fraction, is_number, named_arguments
from lightning_morpho.lifecycle import LIFECYCLES, Stage

INCUBATIONS = ("none", "boosting")
BLENDS = ("add", "lerp", "multiply")
CURVES = ("linear", "cosine", "sigmoid")
GATES = ("none", "drift", "stability", "grad_norm", "performance", "adaptive")
PRESETS: Mapping[str, tuple[str, str]] = {
    "fixed_ramp": ("linear", "none"),
    "drift_controlled": ("linear", "drift"),
    "momentum": ("linear", "performance"),
    "adaptive": ("linear", "adaptive"),
    "stability": ("linear", "stability"),
    "grad_norm_gated": ("sigmoid", "grad_norm"),
    "performance_linked": ("cosine", "performance"),
}
"""Curve and gate of the original design's strategies."""


@named_arguments
@dataclass(frozen=True, kw_only=True)
class LifecycleConfig:
    """Which stages a seed passes, and how long it stays in each. All times are decision ticks.

    Args:
        kind: ``"phase1"`` (LOADING, ACTIVE, kept or culled) or ``"full"`` (GERMINATED, TRAINING, GRAFTING,
            STABILIZATION, EVALUATING, FINE_TUNING, kept or culled).
        active_ticks: Ticks in ACTIVE or EVALUATING before a seed may be judged, ``>= 0``.
        germinated_ticks: Ticks in GERMINATED, ``>= 1``.
        training_ticks: Ticks in TRAINING, ``>= 1``.
        incubation: What a seed does in TRAINING (``full`` alone): ``"none"``, it waits, or ``"boosting"``, it learns
            the negative gradient of its chunk's output without being part of the host. The loss is taken for a
            mean over the first axis of the output.
        stabilization_ticks: Least ticks in STABILIZATION, ``>= 1``; it also lasts as long as the warm-up.
        fine_tuning_ticks: Ticks in FINE_TUNING, ``>= 1``.
        fine_tuning_rate: Share of the optimizer's update that a seed makes in FINE_TUNING, in (0, 1].
        timeout_ticks: Ticks after which a live stage is left in any case, ``>= 1``; must not be below
            ``active_ticks``. It forces the next stage; where a seed waits for its verdict, the decision on the
            evidence at hand.
        timeouts: Other timeouts for single stages, by their names.
        embargo_ticks: Ticks a culled seed waits before its chunk may germinate again, ``>= 0``.
        recovery_ticks: Ticks a seed that ended in ERROR_RECOVERY waits before its chunk may germinate again, ``>= 0``.
        max_errors: Contained errors after which a seed ends in ERROR_RECOVERY, ``>= 1``.
        alpha_step: Largest change of alpha a tick, in (0, 1]: a culled seed fades out by it.
        train_fossils: Whether kept seeds go on training with the host (else they are frozen).
    """

    kind: str = "phase1"
    active_ticks: int = 3
    germinated_ticks: int = 1
    training_ticks: int = 1
    incubation: str = "none"
    stabilization_ticks: int = 1
    fine_tuning_ticks: int = 1
    fine_tuning_rate: float = 0.1
    timeout_ticks: int = 100
    timeouts: Mapping[str, int] = field(default_factory=dict)
    embargo_ticks: int = 5
    recovery_ticks: int = 5
    max_errors: int = 3
    alpha_step: float = 0.25
    train_fossils: bool = True

    def __post_init__(self) -> None:
        check_choice(self.kind, "lifecycle.kind", LIFECYCLES)
        check_choice(self.incubation, "lifecycle.incubation", INCUBATIONS)
        able = self.kind == "full" or self.incubation == "none"
        check(able, "lifecycle.incubation", "'none' unless `lifecycle.kind` is 'full'", self.incubation)
        check_flags(self, "lifecycle", "train_fossils")
        for name in ("active_ticks", "embargo_ticks", "recovery_ticks"):
            check(is_count(getattr(self, name), 0), f"lifecycle.{name}", "at least 0 ticks", getattr(self, name))
        for name in ("germinated_ticks", "training_ticks", "stabilization_ticks", "fine_tuning_ticks"):
            check(is_count(getattr(self, name)), f"lifecycle.{name}", "at least 1 tick", getattr(self, name))
        check(is_count(self.max_errors), "lifecycle.max_errors", "at least 1 error", self.max_errors)
        for name in ("alpha_step", "fine_tuning_rate"):
            value = getattr(self, name)
            check(is_fraction(value) and value > 0, f"lifecycle.{name}", "in (0, 1]", value)
        self._check_timeouts()

    def _check_timeouts(self) -> None:
        object.__setattr__(self, "timeouts", dict(self.timeouts))
        table = LIFECYCLES[self.kind]
        for name in self.timeouts:
            check_choice(name, "lifecycle.timeouts", [stage.name for stage in table.path[1:-1]])
        waiting = {"timeout_ticks": self.timeout_ticks} | {f"timeouts.{name}": n for name, n in self.timeouts.items()}
        for name, ticks in waiting.items():
            judged = name in ("timeout_ticks", f"timeouts.{table.judged.name}")
            least = max(1, self.active_ticks) if judged else 1
            what = f"at least 1 tick and not below `lifecycle.active_ticks` ({self.active_ticks})"
            check(is_count(ticks, least), f"lifecycle.{name}", what if judged else "at least 1 tick", ticks)

    def timeout(self, stage: Stage) -> int:
        """Ticks after which a stage is left in any case.

        Example:
            >>> config = LifecycleConfig(kind="full", timeouts={"GRAFTING": 20})
            >>> config.timeout(Stage.GRAFTING), config.timeout(Stage.EVALUATING)
            (20, 100)
        """
        return self.timeouts.get(stage.name, self.timeout_ticks)


@named_arguments
@dataclass(frozen=True, kw_only=True)
class StarvationConfig:
    """When a live seed counts as starved: it can't learn, whatever its bed costs.

    A seed starves if the gradient of its parameters, relative to that of the host's weight there, is zero or far below
    that of its neighbours (the other live seeds of its kind), or if its output does not vary although its warm-up is
    over. It is reported. If its gradient is zero and nothing else lies in its bed, the bed gets new parameters, whose
    output is zero; else, and if it starves again, it fades out and is culled with the reason ``starved``.

    Args:
        enabled: Whether seeds are watched at all.
        every_n_steps: Optimizer steps of a live seed between two looks at its gradient, ``>= 1``; at its output there
            is one a tick, in models that are not compiled.
        looks: Looks that must agree, ``>= 1``.
        ratio: Share of the median of its neighbours below which a seed starves, in [0, 1); an optimizer such as Adam
            makes up for small gradients, so it should be tiny.
        revivals: Times that a bed gets new parameters before its seeds are culled, ``>= 0``.
    """

    enabled: bool = True
    every_n_steps: int = 8
    looks: int = 3
    ratio: float = 1e-6
    revivals: int = 1

    def __post_init__(self) -> None:
        check_flags(self, "starvation", "enabled")
        check(is_count(self.every_n_steps), "starvation.every_n_steps", "at least 1 optimizer step", self.every_n_steps)
        check(is_count(self.looks), "starvation.looks", "at least 1 look", self.looks)
        check(is_fraction(self.ratio) and self.ratio < 1, "starvation.ratio", "in [0, 1)", self.ratio)
        check(is_count(self.revivals, 0), "starvation.revivals", "at least 0 times", self.revivals)


@named_arguments
@dataclass(frozen=True, kw_only=True)
class GraftingConfig:
    """How a seed's output enters the host. Alpha, its blend weight, rises along ``curve`` as ``gate`` lets it.

    Args:
        blend: ``"add"`` (the host plus alpha times the seed), ``"lerp"`` (from the host's chunk to the seed's; for
            blueprints that read the chunk, such as ``mlp``) or ``"multiply"`` (the host scaled by
            ``1 + alpha * tanh(seed)``). ``span`` adds.
        ramp: Whether alpha rises from 0 in lifecycle ``phase1`` too. In ``full``, and with ``lerp``, it always does;
            else a seed, which is born at zero, starts at alpha 1.
        curve: ``"linear"``, ``"cosine"`` or ``"sigmoid"``.
        ticks: Ticks from 0 to 1 where no gate slows it down, ``>= 1``; ``lifecycle.alpha_step`` may lengthen it.
        gate: ``"none"``, ``"drift"`` (pauses while the base layer's weight moves by more than ``max_drift`` a tick),
            ``"stability"`` (slows down while the validation loss scatters, and goes back above ``max_instability``),
            ``"grad_norm"`` (slows down while the seed's gradient is above ``max_grad_norm``), ``"performance"`` (goes
            on while the validation loss falls) or ``"adaptive"`` (``drift`` above half of ``max_drift``, else
            ``performance``). A gate whose signal is missing stays shut until the stage's timeout.
        max_drift: Relative movement of the weight a tick, ``> 0``.
        max_instability: Standard deviation of the loss's changes relative to the loss, ``> 0``.
        window: Ticks over which that is taken, ``>= 2``.
        max_grad_norm: Norm of a bed's gradient, ``> 0``.
        min_improvement: Relative fall of the validation loss between two ticks that must be exceeded, ``>= 0``.
    """

    blend: str = "add"
    ramp: bool = False
    curve: str = "linear"
    ticks: int = 4
    gate: str = "none"
    max_drift: float = 0.1
    max_instability: float = 0.1
    window: int = 4
    max_grad_norm: float = 1.0
    min_improvement: float = 0.0

    def __post_init__(self) -> None:
        check_choice(self.blend, "grafting.blend", BLENDS)
        check_choice(self.curve, "grafting.curve", CURVES)
        check_choice(self.gate, "grafting.gate", GATES)
        check_flags(self, "grafting", "ramp")
        check(is_count(self.ticks), "grafting.ticks", "at least 1 tick", self.ticks)
        check(is_count(self.window, 2), "grafting.window", "at least 2 ticks", self.window)
        for name in ("max_drift", "max_instability", "max_grad_norm"):
            value = getattr(self, name)
            check(is_number(value) and value > 0, f"grafting.{name}", "a number above 0", value)
        check(
            is_number(self.min_improvement) and self.min_improvement >= 0,
            "grafting.min_improvement",
            "a number of at least 0",
            self.min_improvement,
        )

    @classmethod
    def preset(cls, name: str) -> GraftingConfig:
        """One of the original design's strategies.

        Args:
            name: ``fixed_ramp``, ``drift_controlled``, ``momentum``, ``adaptive``, ``stability``, ``grad_norm_gated``
                or ``performance_linked``.

        Raises:
            ValueError: For another name.

        Example:
            >>> GraftingConfig.preset("momentum").gate
            'performance'
        """
        check_choice(name, "grafting", PRESETS)
        curve, gate = PRESETS[name]
        return cls(ramp=True, curve=curve, gate=gate)
