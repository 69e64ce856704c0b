"""A run folder read back: what happened, to which seeds, under which configuration.

Every reader of runs goes through here: the report, ``morpho watch`` and the pictures. Whatever is missing is
missing, never an error: a run may have had no logger, may have been killed, or may still be going on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lightning_morpho.lifecycle import LIFECYCLES, Stage
from lightning_morpho.telemetry.events import EVENTS_FILE, read_events
from lightning_morpho.telemetry.metric_files import Curve, Point, curves_by_name, joined, read_metrics
from lightning_morpho.telemetry.run_folders import find_run, logger_folders, run_name
from lightning_morpho.telemetry.run_log import METRICS_FILE

_LIVE = {stage.name for table in LIFECYCLES.values() for stage in table.live}

Entry = Mapping[str, Any]
"""One line of the event log, which has ``event``, or of the figures, which has ``kind``."""


@dataclass(frozen=True)
class Spell:
    """The time that a seed spent in one stage.

    Attributes:
        stage: Name of the stage.
        start: Optimizer steps done when it entered.
        end: Steps done when it left; None if it is there still.
    """

    stage: str
    start: int
    end: int | None


@dataclass(frozen=True, kw_only=True)
class SeedLife:
    """A seed that left dormancy, from its germination to its end.

    Attributes:
        layer: Its layer.
        chunk: Its chunk.
        generation: How many seeds the chunk had before.
        blueprint: What it grew.
        spells: Its stages in order, DORMANT left out.
        reason: Why it entered the last one.
        figures: The numbers that decided it: ``rise``, ``lower`` and what else the judgement gave.
    """

    layer: str
    chunk: int
    generation: int
    blueprint: str
    spells: tuple[Spell, ...]
    reason: str
    figures: Mapping[str, float | None]

    @property
    def stage(self) -> str:
        """Its present or last stage."""
        return self.spells[-1].stage

    @property
    def living(self) -> bool:
        """Whether it is neither kept nor on its way back to dormancy."""
        return self.stage in _LIVE

    @property
    def name(self) -> str:
        """Layer, chunk and, if there was one before, generation."""
        return f"{self.layer}[{self.chunk}]" + (f" #{self.generation}" if self.generation else "")


@dataclass(frozen=True, kw_only=True)
class SavedRun:
    """What a run folder tells.

    Attributes:
        name: What a person calls the run: the last parts of its path.
        folder: Folder of the event log.
        entries: The lines of the event log that stand, in order, then those of the figures.
        replaced: Lines that don't: the run was resumed from a checkpoint before them, or begun anew.
        lives: The seeds that left dormancy, in order of germination.
        metrics: Curves by name, those of the loggers and those of the ticks.
        source: Where the curves are from, in words.
    """

    name: str
    folder: Path
    entries: tuple[Entry, ...]
    replaced: int
    lives: tuple[SeedLife, ...]
    metrics: Mapping[str, Curve] = field(default_factory=dict)
    source: str = ""

    def of_kind(self, kind: str) -> list[Entry]:
        """Entries of one kind.

        Args:
            kind: ``fit_start``, ``transition``, ``refused`` or ``rollout`` of the event log; ``start``, ``metrics``,
                ``tick`` or ``end`` of the figures.
        """
        return [entry for entry in self.entries if kind_of(entry) == kind]

    @property
    def modules(self) -> Sequence[Entry]:
        """What was decided about each module; empty if nobody wrote it."""
        reports = [start["eligibility"] for start in self.of_kind("start") if start.get("eligibility")]
        return reports[-1]["modules"] if reports else ()

    @property
    def outcome(self) -> str | None:
        """How the last fit ended: ``finished``, or what interrupted it; None if it goes on, or was killed."""
        ends = [entry["outcome"] for entry in self.entries if kind_of(entry) in ("start", "end") and "outcome" in entry]
        last = [kind_of(entry) for entry in self.entries if kind_of(entry) in ("start", "end")][-1:]
        return ends[-1] if last == ["end"] else None

    @property
    def seconds(self) -> float | None:
        """Time that its fits took together, as far as they are known; None if no clock was read."""
        stretches: list[list[float]] = []
        for entry in self.entries:
            if "time" in entry:
                if kind_of(entry) == "start" or not stretches:
                    stretches.append([])
                stretches[-1].append(entry["time"])
        return sum(times[-1] - times[0] for times in stretches) if stretches else None

    @property
    def last_step(self) -> int:
        """Optimizer steps done when the last thing was written."""
        # What was logged once only, such as a test after the fit, is not a moment of the training.
        logged = [curve.steps[-1] for curve in self.metrics.values() if len(curve.steps) > 1]
        return max([*(entry["step"] for entry in self.entries), *logged], default=0)


def standing(entries: Iterable[Entry]) -> tuple[list[Entry], int]:
    """The entries that count, and how many don't.

    The start of a fit says from which tick and step a run goes on. What was written beyond is history that the
    run no longer has: it was resumed from an earlier checkpoint, or begun anew in the same folder.

    Example:
        >>> log = [{"event": "fit_start", "tick": 0, "step": 0}, {"event": "tick", "tick": 1, "step": 40},
        ...        {"event": "tick", "tick": 2, "step": 80}, {"event": "fit_start", "tick": 1, "step": 40}]
        >>> kept, replaced = standing(log)
        >>> [entry["event"] for entry in kept], replaced
        (['fit_start', 'tick', 'fit_start'], 1)
    """
    kept: list[Entry] = []
    replaced = 0
    for entry in entries:
        if kind_of(entry) in ("fit_start", "start"):
            tick, step = entry["tick"], entry["step"]
            before = len(kept)
            anew = tick == step == 0
            kept = [] if anew else [old for old in kept if old["tick"] <= tick and old["step"] <= step]
            replaced += before - len(kept)
        kept.append(entry)
    return kept, replaced


def kind_of(entry: Entry) -> str:
    """What an entry tells of.

    Example:
        >>> kind_of({"event": "fit_start"}), kind_of({"kind": "tick"})
        ('fit_start', 'tick')
    """
    kind: str = entry.get("kind") or entry.get("event") or ""
    return kind


def _read(path: Path) -> list[Entry]:
    return [entry for entry in read_events(path) if is_whole(entry)] if path.is_file() else []


def is_whole(entry: object) -> bool:
    """Whether a line is an entry, not the remains of one."""
    if not isinstance(entry, dict) or not isinstance(kind_of(entry), str) or not kind_of(entry):
        return False
    return all(isinstance(entry.get(key), int) for key in ("tick", "step"))


def lives_of(entries: Iterable[Entry]) -> list[SeedLife]:
    """What the transitions in an event log add up to for each seed.

    Example:
        >>> born = {"event": "transition", "step": 600, "layer": "net.2", "chunk": 0, "generation": 0,
        ...         "blueprint": "span", "from": "DORMANT", "to": "LOADING", "reason": "plateau", "figures": {}}
        >>> active = born | {"step": 720, "from": "LOADING", "to": "ACTIVE", "reason": "warm-up over"}
        >>> lives_of([born, active])[0].spells
        (Spell(stage='LOADING', start=600, end=720), Spell(stage='ACTIVE', start=720, end=None))
    """
    histories: dict[tuple[str, int, int], list[Entry]] = {}
    start = 0
    for entry in entries:
        if kind_of(entry) == "fit_start":
            start = start or entry["step"]
        if kind_of(entry) == "transition":
            key = (entry["layer"], entry["chunk"], entry["generation"])
            histories.setdefault(key, []).append(entry)
    return [_life(history, start) for history in histories.values()]


def _life(history: Sequence[Entry], start: int) -> SeedLife:
    first = history[0]
    # A log that begins with a resumed run does not have the earlier events of seeds that live.
    known = [(first["from"], start)] if first["from"] != Stage.DORMANT.name else []
    entered = [*known, *((entry["to"], entry["step"]) for entry in history)]
    ends = [step for _, step in entered[1:]] + [None]
    spells = [Spell(stage, step, end) for (stage, step), end in zip(entered, ends, strict=True)]
    told = [entry for entry in history if entry["to"] != Stage.DORMANT.name]
    judged = [entry["figures"] for entry in told if entry.get("figures")]
    return SeedLife(
        layer=first["layer"],
        chunk=first["chunk"],
        generation=first["generation"],
        blueprint=first["blueprint"],
        spells=tuple(spell for spell in spells if spell.stage != Stage.DORMANT.name),
        reason=(told or history)[-1]["reason"],
        figures=judged[-1] if judged else {},
    )


def curves_of(figures: Iterable[Entry]) -> dict[str, Curve]:
    """Curves of what a run wrote itself, with or without a logger: its metrics, and the figures of its ticks."""
    points: dict[str, list[Point]] = {}
    for entry in figures:
        if kind_of(entry) not in ("metrics", "tick"):
            continue
        done = entry["epoch"] + 1 if "epoch" in entry else None
        for name, value in _values(entry):
            if value is not None:
                points.setdefault(name, []).append((entry["step"], value, done))
    return curves_by_name(points)


def _values(entry: Entry) -> Iterator[tuple[str, float | None]]:
    yield from entry.get("values", {}).items()
    for name, value in entry.get("run", {}).items():
        yield f"morpho/run/{name}", value
    for layer, figures in entry.get("layers", {}).items():
        for name, value in figures.get("values", {}).items():
            yield f"morpho/{layer}/{name}", value


def read_run(path: str | Path) -> SavedRun:
    """Read a run.

    Args:
        path: As for :func:`find_run`.

    Raises:
        ValueError: If there is no run.
    """
    path = Path(path)
    folder = find_run(path)
    run = run_of(_read(folder / EVENTS_FILE), _read(folder / METRICS_FILE), folder, run_name(path, folder))
    logged, source = read_metrics([folder, *logger_folders(path if path.is_dir() else folder)])
    if not logged:
        return run if run.metrics else replace(run, source=source)
    metrics = {name: joined(run.metrics.get(name), curve) for name, curve in logged.items()}
    return replace(run, metrics={**run.metrics, **metrics}, source=source)


def run_of(events: Iterable[Entry], figures: Iterable[Entry], folder: Path, name: str) -> SavedRun:
    """What the lines of the two files of a run add up to, without what its loggers have.

    Args:
        events: Lines of the event log, in the order in which they were written.
        figures: Lines of the figures.
        folder: Where they lie.
        name: What a person calls the run.
    """
    told, replaced = standing(events)
    told_figures, _ = standing(figures)
    return SavedRun(
        name=name,
        folder=folder,
        entries=(*told, *told_figures),
        replaced=replaced,
        lives=tuple(lives_of(told)),
        metrics=curves_of(told_figures),
        source=METRICS_FILE,
    )
