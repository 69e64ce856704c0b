"""What the arguments of a run come to: presets filled in, everything checked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any

from torch import Tensor

from lightning_morpho.blueprints import blueprint_type
from lightning_morpho.checks import check, is_count, is_fraction
from lightning_morpho.config import (
    AUTO,
    BUDGET,
    BlueprintConfig,
    CreditConfig,
    GovernorConfig,
    MorphoConfig,
    TelemetryConfig,
    check_section,
)
from lightning_morpho.presets import with_preset
from lightning_morpho.tamiyo import Tamiyo, Uniform

_SECTIONS: dict[str, type] = {
    "tamiyo": Tamiyo,
    "credit": CreditConfig,
    "governor": GovernorConfig,
    "telemetry": TelemetryConfig,
}


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The arguments of :class:`~lightning_morpho.MorphoCallback`, where they are described, after their checks.

    Args:
        model: What is done to the model.
        tamiyo: The controller.
        credit: How a seed's contribution is measured.
        governor: When a run that diverges is taken back.
        telemetry: What is observed and where it goes.
        every_n_steps: When decision ticks are.
        loss_fn: Held-out loss of a validation batch.
        freeze_host: Whether only seeds train.
    """

    model: MorphoConfig
    tamiyo: Tamiyo = field(default_factory=Uniform)
    credit: CreditConfig = field(default_factory=CreditConfig)
    governor: GovernorConfig = field(default_factory=GovernorConfig)
    telemetry: TelemetryConfig = field(default_factory=TelemetryConfig)
    every_n_steps: int | float | None = None
    loss_fn: Callable[..., Tensor] | None = None
    freeze_host: bool = False

    @classmethod
    def of(cls, preset: str | None, *, model_id: str, seed: int, **arguments: Any) -> RunConfig:
        """Fill in the preset and the defaults.

        Args:
            preset: Its name, or None.
            model_id: As in :class:`MorphoConfig`.
            seed: Likewise.
            **arguments: All others, None where they were not given.

        Raises:
            TypeError: If a section has the wrong type.
            ValueError: If a value is out of range, or the blueprint or the preset unknown.

        Example:
            >>> RunConfig.of("adapt_pretrained", model_id="mine", seed=0, freeze_host=None).freeze_host
            True
        """
        given = {name: value for name, value in with_preset(preset, arguments).items() if value is not None}
        own = {item.name: given.pop(item.name) for item in fields(cls) if item.name in given}
        tamiyo = own.setdefault("tamiyo", Uniform())
        check_section("tamiyo", tamiyo, Tamiyo)
        blueprint = given.setdefault("blueprint", BlueprintConfig())
        check_section("blueprint", blueprint, BlueprintConfig)
        if tamiyo.fills_budget and blueprint.hidden == AUTO:
            given["blueprint"] = replace(blueprint, hidden=BUDGET)
        return cls(model=MorphoConfig(model_id=model_id, seed=seed, **given), **own)

    def __post_init__(self) -> None:
        for name, expected in _SECTIONS.items():
            check_section(name, getattr(self, name), expected)
        own = {f"layers.kinds[{pattern!r}]": kind for pattern, kind in self.model.layers.kinds.items()}
        for key, kind in {"blueprint.kind": self.model.blueprint.kind, **own}.items():
            if kind != AUTO:
                blueprint_type(kind, key)
        every = self.every_n_steps
        check(
            every is None or is_count(every) or (is_fraction(every) and 0 < every < 1),
            "every_n_steps",
            "at least 1 optimizer step, a fraction of training in (0, 1), or None",
            every,
        )
        check(
            self.loss_fn is None or callable(self.loss_fn),
            "loss_fn",
            "a function `(module, batch) -> Tensor`, or None",
            self.loss_fn,
        )
        check(isinstance(self.freeze_host, bool), "freeze_host", "true, false or None", self.freeze_host)
        if self.freeze_host and (self.model.rollout.flag_file or self.model.rollout.ramp):
            raise ValueError(
                "`freeze_host` can't go with `rollout.flag_file` or `rollout.ramp`: with all layers off, nothing would "
                "be left to train."
            )

    def sections(self) -> dict[str, object]:
        """Everything by the name of its argument, as the run log takes it."""
        sections = {item.name: getattr(self.model, item.name) for item in fields(self.model)}
        sections |= {"tamiyo": self.tamiyo, "credit": self.credit, "telemetry": self.telemetry}
        return sections | {"every_n_steps": self.every_n_steps, "loss_fn": self.loss_fn is not None}
