"""Policies that look at nothing: no growth, all at the start, a script."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lightning_morpho.checks import named_arguments
from lightning_morpho.tamiyo.base import Tamiyo
from lightning_morpho.tamiyo.observation import Germinate, Observation
from lightning_morpho.tamiyo.places import germinate, growable


@named_arguments
@dataclass(frozen=True, kw_only=True)
class Never(Tamiyo):
    """Grows nothing: seeds stay dormant."""

    def grow(self, observation: Observation) -> Sequence[Germinate]:
        """Nothing."""
        return []


@named_arguments
@dataclass(frozen=True, kw_only=True)
class AllAtStart(Tamiyo):
    """One germination in each layer before the first training step: nearly the final size from the start.

    Layers whose pair is still to be confirmed on the first batch follow at the first tick.
    """

    def begin(self, observation: Observation) -> Sequence[Germinate]:
        """Everywhere."""
        return germinate(growable(observation), "all at the start")

    def grow(self, observation: Observation) -> Sequence[Germinate]:
        """In the layers that could not at the start, and those that were off then; once each."""
        layers = (layer for layer in growable(observation) if not layer.germinations)
        return germinate(layers, "all at the start, joined late")


@named_arguments
@dataclass(frozen=True, kw_only=True)
class Scripted(Tamiyo):
    """Germinations at given ticks, in given layers.

    Args:
        events: One mapping a germination: ``tick`` (from 1), ``layer``, ``chunks`` (a list, or none for all
            dormant ones), and ``force`` (true: even if the learning rate has decayed).
    """

    events: Sequence[Mapping[str, Any]] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "events", tuple(self.events))
        for event in self.events:
            unknown = set(event) - {"tick", "layer", "chunks", "force"}
            if unknown or not {"tick", "layer"} <= set(event):
                raise ValueError(
                    "`tamiyo.events`: an entry has `tick`, `layer` and, if wanted, `chunks` and `force`, "
                    f"got {dict(event)}."
                )

    def grow(self, observation: Observation) -> Sequence[Germinate]:
        """What the script says for this tick.

        Raises:
            ValueError: If it names a layer that is not a hybrid one.
        """
        names = [layer.name for layer in observation.layers]
        wanted = [event for event in self.events if event["tick"] == observation.tick]
        unknown = sorted({event["layer"] for event in wanted} - set(names))
        if unknown:
            raise ValueError(f"`tamiyo.events` names the layers {unknown}; the hybrid layers are {names}.")
        return [
            Germinate(
                layer=event["layer"],
                chunks=None if event.get("chunks") is None else tuple(event["chunks"]),
                reason=f"scripted for tick {event['tick']}",
                force=bool(event.get("force", False)),
            )
            for event in wanted
        ]
