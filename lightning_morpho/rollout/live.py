"""A rollout in a running fit: who is on now, and what changes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from lightning_morpho.layers import HybridKasminaLayer
from lightning_morpho.rollout.cohort import CohortLog
from lightning_morpho.rollout.flag_file import FlagFile, Look, Overlay, with_overlay
from lightning_morpho.rollout.flags import CHUNKED_LAYERS, decide_layer, feature_environment, flag_of, with_environment
from lightning_morpho.rollout.guard import RunHealth, StepTimer
from lightning_morpho.rollout.ramp import Ramp
from lightning_morpho.rollout_config import FlagConfig, RolloutConfig

Layers = Mapping[str, HybridKasminaLayer]


@dataclass(frozen=True, kw_only=True)
class RolloutChange:
    """One change of a rollout during a run.

    Attributes:
        cause: ``"start"``, ``"flag file"`` or ``"ramp"``.
        reason: Why, in words.
        percentage: Percentage of ``chunked_layers`` from now on; 0 if it is disabled.
        on: Layers that it switched on.
        off: Layers that it switched off.
        layers_on: Layers that are on now.
    """

    cause: Literal["start", "flag file", "ramp"]
    reason: str
    percentage: float
    on: tuple[str, ...]
    off: tuple[str, ...]
    layers_on: int

    def to_dict(self, **context: Any) -> dict[str, Any]:
        """Plain values, as they stand in the event log."""
        own = {"cause": self.cause, "reason": self.reason, "percentage": self.percentage, "layers_on": self.layers_on}
        return {"event": "rollout", **context, **own, "on": list(self.on), "off": list(self.off)}

    def __str__(self) -> str:
        moved = [f"{len(names)} {word}" for names, word in ((self.on, "on"), (self.off, "off")) if names]
        return f"{self.cause}: {self.reason} (layers switched: {', '.join(moved) or 'none'}; on now: {self.layers_on})"


class LiveRollout:
    """The flags of a run as they are now: configured, changed by a file, by the environment and by a ramp.

    A layer that is off computes exactly what its base layer does, and all of its growth stands still: its
    seeds don't age and are not shown to Tamiyo, its beds get no gradient, their optimizer state and warm-up
    stay as they are. Switched on again it goes on where it was.

    Args:
        config: The rollout.
        model_id: Id of the model.
        environment: What :func:`~lightning_morpho.rollout.feature_environment` gave, equal on every rank;
            None: this process's.

    Attributes:
        ramp: The ramp, None without one.
        overlay: What the flag file sets.
        cohort: The figures of all runs of the job, None without a folder for them.
        grown: Whether a layer is on, or was at any time of this run.
        timer: Takes the duration of training steps for the guard.
    """

    def __init__(
        self, config: RolloutConfig, model_id: str = "model", environment: Mapping[str, str] | None = None
    ) -> None:
        self.config = config
        self.model_id = model_id
        self.environment = feature_environment(environment)
        self.ramp = None if config.ramp is None else Ramp(config.ramp)
        self.cohort = None if config.cohort_dir is None else CohortLog(config.cohort_dir, model_id)
        self.grown = False
        self.overlay: Overlay = {}
        self.timer = StepTimer()
        self._file = None if config.flag_file is None else FlagFile(config.flag_file)

    # ------------------------------------------------------------------ who is on
    def flag(self, name: str = CHUNKED_LAYERS) -> tuple[FlagConfig, str]:
        """A flag as it is now, and what to add to its reasons."""
        configured = with_overlay(name, flag_of(self.config, name), self.overlay)
        flag, note = with_environment(name, configured, self.environment)
        if name == CHUNKED_LAYERS and self.ramp is not None:
            flag = replace(flag, percentage=min(flag.percentage, self.ramp.percentage))
        return flag, note

    def decide(self, layer: str, name: str = CHUNKED_LAYERS) -> tuple[bool, str]:
        """Whether a layer has a feature now, and why."""
        flag, note = self.flag(name)
        on, why = decide_layer(self.model_id, layer, flag)
        return on, why + note

    def may_grow(self, layer: str) -> tuple[bool, str]:
        """Whether a layer could be on at any time of this run, and why; only such layers are prepared."""
        flag, note = with_environment(CHUNKED_LAYERS, self.config, self.environment)
        if flag.enabled and self.config.flag_file is not None:
            return True, f"the flag file may switch it on{note}"
        if self.ramp is not None:
            flag = replace(flag, percentage=min(flag.percentage, self.ramp.highest))
        on, why = decide_layer(self.model_id, layer, flag)
        return on, why + note

    @property
    def changes(self) -> bool:
        """Whether the flags may change during the run."""
        return self.config.flag_file is not None or self.ramp is not None

    @property
    def watched(self) -> bool:
        """Whether anything looks at the run's figures."""
        return self.ramp is not None or self.cohort is not None

    @property
    def topologies(self) -> int:
        """Combinations of layers on and off that the run is expected to see, beside the first one."""
        stages = 0 if self.ramp is None else len(self.ramp.config.schedule) + 1
        return stages + (2 if self._file is not None else 0)

    # ------------------------------------------------------------------ changes
    def apply(self, layers: Layers) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Switch each layer to what is decided for it; names of those switched on and off."""
        switched: dict[bool, list[str]] = {True: [], False: []}
        for name, layer in layers.items():
            on, _ = self.decide(name)
            if on != (layer.implementation == "chunked"):
                layer.implementation = "chunked" if on else "base"
                switched[on].append(name)
            layer.set_features({flag: self.decide(name, flag)[0] for flag in self.config.flags})
        return tuple(switched[True]), tuple(switched[False])

    def start(self, layers: Layers, progress: int) -> RolloutChange:
        """Begin or resume a run: the ramp enters its first stage, and every layer is brought in line."""
        entered = self.ramp.start(progress) if self.ramp is not None else None
        flag, note = self.flag()
        state = f"{flag.percentage:g} %" if flag.enabled else "disabled"
        return self._change(layers, "start", (entered or state) + note)

    def look(self) -> Look | None:
        """What the flag file says; None if that is what it said at the last look. For rank 0 alone."""
        return None if self._file is None else self._file.look()

    def due(self, step: int) -> bool:
        """Whether the flag file is to be looked at after this optimizer step."""
        return self.config.flag_file is not None and step % self.config.flag_every_n_steps == 0

    def take(self, look: Look | None, layers: Layers) -> RolloutChange | None:
        """Apply what rank 0 saw in the flag file; to be called on every rank with the same look."""
        if look is None:
            return None
        self.overlay = look.overlay
        if look.problem:
            return self._change(layers, "flag file", f"in error, the flags stay as they were: {look.problem}")
        content = "; ".join(f"{name}: {dict(keys)}" for name, keys in look.overlay.items())
        reason = "there is none, the flags are as configured" if look.missing else content or "sets nothing"
        return self._change(layers, "flag file", reason)

    def tick(self, layers: Layers, progress: int, health: RunHealth) -> RolloutChange | None:
        """One decision tick of the ramp; to be called on every rank with the same figures."""
        reason = None if self.ramp is None else self.ramp.tick(progress, health)
        return None if reason is None else self._change(layers, "ramp", reason)

    def _change(self, layers: Layers, cause: Literal["start", "flag file", "ramp"], reason: str) -> RolloutChange:
        on, off = self.apply(layers)
        flag, _ = self.flag()
        layers_on = sum(layer.implementation == "chunked" for layer in layers.values())
        self.grown = self.grown or layers_on > 0
        return RolloutChange(
            cause=cause,
            reason=reason,
            percentage=float(flag.percentage) if flag.enabled else 0.0,
            on=on,
            off=off,
            layers_on=layers_on,
        )

    # ------------------------------------------------------------------ persistence
    def state_dict(self) -> dict[str, Any]:
        """Ramp and last flags as plain values."""
        overlay = {
            name: {k: list(v) if isinstance(v, tuple) else v for k, v in keys.items()}
            for name, keys in self.overlay.items()
        }
        ramp = None if self.ramp is None else self.ramp.state_dict()
        return {"overlay": overlay, "ramp": ramp, "grown": self.grown}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave; a ramp that is new in this run starts afresh."""
        self.overlay = state["overlay"] if self._file is not None else {}
        self.grown = state.get("grown", False)
        if self.ramp is not None and state["ramp"] is not None:
            self.ramp.load_state_dict(state["ramp"])
