"""Field reports: what each seed was worth and what it cost, kept for later runs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any

from lightning_morpho.checks import is_number
from lightning_morpho.lifecycle import Stage
from lightning_morpho.telemetry.events import SeedRecord, read_events

FIELD_REPORTS_FILE = "morpho_field_reports.jsonl"

ENDED = frozenset(
    stage.name for stage in (Stage.FOSSILIZED, Stage.CULLED, Stage.CANCELLED, Stage.ROLLED_BACK, Stage.ERROR_RECOVERY)
)
"""Stages in which a seed leaves its report."""


@dataclass(frozen=True, kw_only=True)
class TrialCost:
    """What the trials of one tick have cost.

    Attributes:
        tick: The tick.
        trials: How many there were.
        steps: Optimizer steps of all of them.
        seconds: Time that they took.
        flops: Floating-point operations of their steps on one rank, 0 where they could not be counted.
    """

    tick: int
    trials: int
    steps: int
    seconds: float
    flops: float


@dataclass(frozen=True, kw_only=True)
class FieldReport:
    """The record that a seed leaves when it ends.

    Attributes:
        layer: Name of its layer.
        chunk: Its chunk.
        generation: How many seeds the chunk had before.
        kind: Blueprint that it grew.
        position: Place of its layer among the model's layers, from 0, and of how many.
        layers: Layers of the model in which seeds grow.
        end: Name of the stage in which it ended.
        reason: Why.
        before: Validation loss at its germination, None if there was none.
        after: Validation loss at its end, likewise.
        rise: Mean rise of the held-out loss without it, None if it was not measured.
        lower: One-sided lower confidence bound of that, likewise.
        upper: ... and the upper one.
        confidence: Level of each bound, likewise.
        parameters: Parameters that it holds: its part of the bed.
        ticks: Ticks from germination to end.
        steps: Optimizer steps.
        seconds: Time on the clock, None if the run was interrupted in between.
        trial_steps: Its share of the optimizer steps of the trials at its germination; all seeds of that tick share
            alike.
        trial_seconds: ... of their time.
        trial_flops: ... of their floating-point operations, as far as they could be counted.
    """

    layer: str
    chunk: int
    generation: int
    kind: str
    position: int
    layers: int
    end: str
    reason: str
    before: float | None
    after: float | None
    rise: float | None
    lower: float | None
    upper: float | None
    confidence: float | None
    parameters: float
    ticks: int
    steps: int
    seconds: float | None
    trial_steps: float = 0.0
    trial_seconds: float = 0.0
    trial_flops: float = 0.0

    @property
    def gain(self) -> float | None:
        """Rise of the loss without it as a share of the loss at its germination, in [-1, 1]; None if not measured."""
        if self.rise is None or not self.before:
            return None
        return max(-1.0, min(1.0, self.rise / abs(self.before)))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as they stand in the file."""
        return asdict(self)


def field_report(
    record: SeedRecord,
    losses: Sequence[float | None],
    *,
    place: tuple[int, int],
    parameters: float,
    step: int,
    seconds: float | None,
    trial: TrialCost | None = None,
    sharing: int = 1,
) -> FieldReport:
    """The report of a seed that has ended.

    Args:
        record: Its record.
        losses: Validation loss at each tick.
        place: Position of its layer, and how many there are.
        parameters: Parameters that it holds.
        step: Optimizer steps done.
        seconds: Time since its germination.
        trial: What the trials at its germination cost; None if there were none.
        sharing: Seeds that share that cost.
    """
    cost = (0, 0.0, 0.0) if trial is None else (trial.steps, trial.seconds, trial.flops)
    figures = record.figures
    rise, lower = _finite(figures.get("rise")), _finite(figures.get("lower"))
    upper = None if rise is None or lower is None else 2 * rise - lower  # the bound is symmetric
    return FieldReport(
        layer=record.layer,
        chunk=record.chunk,
        generation=record.generation,
        kind=record.blueprint,
        position=place[0],
        layers=place[1],
        end=record.stage,
        reason=record.reason,
        before=_at(losses, record.born_tick),
        after=_at(losses, record.tick),
        rise=rise,
        lower=lower,
        upper=upper,
        confidence=_finite(figures.get("confidence")),
        parameters=parameters,
        ticks=record.tick - record.born_tick,
        steps=step - record.born_step,
        seconds=seconds,
        trial_steps=cost[0] / sharing,
        trial_seconds=cost[1] / sharing,
        trial_flops=cost[2] / sharing,
    )


def _at(losses: Sequence[float | None], tick: int) -> float | None:
    return losses[tick - 1] if 1 <= tick <= len(losses) else None


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def read_field_reports(path: Path) -> list[FieldReport]:
    """The reports in a file, or in all files of that name under a folder.

    Raises:
        ValueError: If there is none, or a line is no field report.
    """
    files = [path] if path.is_file() else sorted(path.rglob(FIELD_REPORTS_FILE))
    try:
        reports = [_parse(entry, file) for file in files for entry in read_events(file)]
    except UnicodeDecodeError as error:
        raise ValueError(f"`{path}` must hold field reports, one a line as JSON; it holds no text: {error}.") from error
    if not reports:
        raise ValueError(
            f"`{path}` must be a file of field reports or a folder with {FIELD_REPORTS_FILE}; it holds no report."
        )
    return reports


def _parse(entry: object, file: Path) -> FieldReport:
    known = [item.name for item in fields(FieldReport)]
    needed = [item.name for item in fields(FieldReport) if item.default is MISSING]
    got = sorted(entry) if isinstance(entry, dict) else entry
    if not isinstance(entry, dict) or not set(needed) <= set(entry) <= set(known):
        raise ValueError(f"`{file}` holds a line that is no field report: it has {got}, expected {known}.")
    for item in fields(FieldReport):
        if item.name in entry and not _fits(entry[item.name], str(item.type)):
            raise ValueError(f"`{file}`: `{item.name}` of a field report is {item.type}, got {entry[item.name]!r}.")
    return FieldReport(**entry)


def _fits(value: object, kind: str) -> bool:
    """Whether a value is of a field's type; a number is finite, as NaN would pass for a gain."""
    if kind == "str":
        return isinstance(value, str)
    return is_number(value) or (value is None and kind.endswith("| None"))


def by_kind_and_layer(reports: Iterable[FieldReport]) -> dict[tuple[str, str], list[FieldReport]]:
    """Reports with a measured gain by blueprint and layer, in their order."""
    groups: dict[tuple[str, str], list[FieldReport]] = {}
    for report in reports:
        if report.gain is not None:
            groups.setdefault((report.kind, report.layer), []).append(report)
    return groups
