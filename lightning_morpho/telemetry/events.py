"""Events of a run: one JSON line each, and what they add up to for each seed."""

from __future__ import annotations

import contextlib
import json
import math
import os
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, Literal, get_args

from lightning_morpho.layers import Transition
from lightning_morpho.lifecycle import Stage

EVENTS_FILE = "morpho_events.jsonl"

FindingKind = Literal["assessed", "tried", "resized", "cut"]
"""What can be found out about a layer: the worth of growing, how a trial went, how many units were needed."""

NoticeKind = Literal["deferred", "starved"]
"""What is to be known of a seed and is no transition."""

EVENT_KINDS: tuple[str, ...] = (
    "fit_start", "transition", "refused", "restored", "rollout", *get_args(FindingKind), *get_args(NoticeKind)
)  # fmt: skip
"""What an event log tells a reader of, by ``event``; ``decided`` is Tamiyo's journal, for ``morpho replay``."""


@dataclass(frozen=True, kw_only=True)
class Event:
    """A transition, and when it happened.

    Attributes:
        tick: Decision tick, 0 before the first.
        step: Optimizer steps done.
        transition: What happened.
    """

    tick: int
    step: int
    transition: Transition

    def to_dict(self, **context: Any) -> dict[str, Any]:
        """Plain values, as they stand in the event log."""
        t = self.transition
        return {
            "event": "transition",
            "tick": self.tick,
            "step": self.step,
            **context,
            "layer": t.layer,
            "chunk": t.chunk,
            "generation": t.generation,
            "blueprint": t.blueprint,
            "from": t.source.name,
            "to": t.target.name,
            "reason": t.reason,
            "figures": plain_figures(t.figures),
        }


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """A germination that was asked for and not made.

    Attributes:
        tick: Decision tick.
        step: Optimizer steps done.
        layer: Name of the layer.
        reason: Why.
    """

    tick: int
    step: int
    layer: str
    reason: str

    def to_dict(self, **context: Any) -> dict[str, Any]:
        """Plain values, as they stand in the event log."""
        plain = {"tick": self.tick, "step": self.step, **context, "layer": self.layer, "reason": self.reason}
        return {"event": "refused", **plain}


@dataclass(frozen=True, kw_only=True)
class Notice:
    """Something that is to be known of a seed and is no transition.

    Attributes:
        event: What it is about.
        tick: Decision tick.
        step: Optimizer steps done.
        layer: Name of the layer.
        chunk: Chunk of the seed.
        reason: Why.
        figures: The numbers behind it.
    """

    event: NoticeKind
    tick: int
    step: int
    layer: str
    chunk: int
    reason: str
    figures: Mapping[str, float] = field(default_factory=dict)

    def to_dict(self, **context: Any) -> dict[str, Any]:
        """Plain values, as they stand in the event log."""
        now = {"event": self.event, "tick": self.tick, "step": self.step, **context}
        seed = {"layer": self.layer, "chunk": self.chunk, "reason": self.reason}
        return now | seed | {"figures": plain_figures(self.figures)}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What was found out about a layer.

    Attributes:
        tick: Decision tick.
        step: Optimizer steps done.
        kind: What was asked.
        layer: Name of the layer.
        figures: The numbers.
        text: The same in words.
    """

    tick: int
    step: int
    kind: FindingKind
    layer: str
    figures: Mapping[str, float]
    text: str

    def to_dict(self, **context: Any) -> dict[str, Any]:
        """Plain values, as they stand in the event log."""
        plain = {"tick": self.tick, "step": self.step, **context, "layer": self.layer, "figures": dict(self.figures)}
        return {"event": self.kind, **plain, "text": self.text}


@dataclass(frozen=True, kw_only=True)
class Restored:
    """A run that had diverged was taken back; the transitions of the seeds that ended by it are events of their own.

    Attributes:
        tick: Decision tick.
        step: Optimizer steps done.
        snapshot_step: Optimizer steps done when the snapshot was made, None if there was none to go back to.
        reason: Why.
        figures: The numbers behind it.
    """

    tick: int
    step: int
    snapshot_step: int | None
    reason: str
    figures: Mapping[str, float] = field(default_factory=dict)

    def to_dict(self, **context: Any) -> dict[str, Any]:
        """Plain values, as they stand in the event log."""
        now = {"event": "restored", "tick": self.tick, "step": self.step, **context}
        return now | {
            "snapshot_step": self.snapshot_step,
            "reason": self.reason,
            "figures": plain_figures(self.figures),
        }

    def __str__(self) -> str:
        if self.snapshot_step is None:
            return f"diverged ({self.reason}); there is no snapshot to go back to"
        return f"diverged ({self.reason}); host and fossils are back at step {self.snapshot_step}"


AnyEvent = Event | Finding | Notice | Refusal | Restored


def plain_figures(figures: Mapping[str, float]) -> dict[str, float | None]:
    """Figures as JSON can hold them: what is missing or not finite is None."""
    return {name: value if math.isfinite(value) else None for name, value in figures.items()}


@dataclass(frozen=True, kw_only=True)
class SeedRecord:
    """The life of one seed that has left dormancy.

    Attributes:
        layer: Its layer.
        chunk: Its chunk.
        generation: How many seeds the chunk had before.
        blueprint: What it grew.
        born_tick: Tick of its germination.
        born_step: Optimizer steps done then.
        stage: Name of its present or last stage.
        tick: Tick at which it entered that.
        reason: Why it entered that.
        figures: The numbers that decided it.
    """

    layer: str
    chunk: int
    generation: int
    blueprint: str
    born_tick: int
    born_step: int
    stage: str
    tick: int
    reason: str
    figures: Mapping[str, float] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, int, int]:
        """Layer, chunk and generation."""
        return self.layer, self.chunk, self.generation

    @classmethod
    def born(cls, event: Event) -> SeedRecord:
        """The record of a seed that germinates."""
        t = event.transition
        return cls(
            layer=t.layer,
            chunk=t.chunk,
            generation=t.generation,
            blueprint=t.blueprint,
            born_tick=event.tick,
            born_step=event.step,
            stage=t.target.name,
            tick=event.tick,
            reason=t.reason,
        )

    def updated(self, event: Event) -> SeedRecord:
        """The record after one more transition; the return to DORMANT is the next seed's matter."""
        t = event.transition
        if t.target is Stage.DORMANT:
            return self
        figures = dict(t.figures) or dict(self.figures)
        return replace(self, stage=t.target.name, tick=event.tick, reason=t.reason, figures=figures)


def append_event(path: Path, entry: Mapping[str, Any]) -> None:
    """Add one line to an event log; the file and its folder are made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        if file.tell() and _last_byte(file) != b"\n":  # a kill cut the last line off
            file.write(b"\n")
        file.write(json.dumps(entry).encode() + b"\n")


class LogFile:
    """A log of a run. Where a line can't be written the run goes on without it: a full disk must not end a training.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._warned = False

    def add(self, entry: Mapping[str, Any]) -> None:
        """Add one line; the first failure is told, later lines are tried again."""
        try:
            append_event(self.path, entry)
        except OSError as error:
            if not self._warned:
                warnings.warn(f"`{self.path}` can't be written, lines are missing there: {error}.", stacklevel=2)
            self._warned = True


def _last_byte(file: BinaryIO) -> bytes:
    file.seek(-1, os.SEEK_END)
    return file.read(1)


def read_events(path: str | Path) -> Iterator[dict[str, Any]]:
    """The entries of an event log, in order; lines cut off by a kill are left out."""
    with Path(path).open(encoding="utf-8") as file:
        for line in file:
            with contextlib.suppress(json.JSONDecodeError):
                yield json.loads(line)
