"""A fleet of runs of one job: those without growth are the baseline of those with it."""

from __future__ import annotations

import json
import math
import re
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from lightning_morpho.rollout.guard import Baseline, RunHealth
from lightning_morpho.rollout_config import GUARDED


@dataclass
class _Run:
    """What a file of another run says so far."""

    offset: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)


class CohortLog:
    """The figures of all runs of one job, in one folder that they share.

    Each run appends one line a tick to a file of its own, so no two processes write to one file. A run is
    part of the baseline up to the tick at which its first layer was switched on. It is compared at the same
    optimizer step: its last line at or before that step counts if it is at most one tick of the asking run old,
    so that a run which stopped early is left out, and one that trains alongside may lag a little.

    Args:
        folder: The folder; made if it is missing.
        model_id: Id of this run's model, part of its file's name.

    Example:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> off, on = CohortLog(folder, "off"), CohortLog(folder, "on")
        >>> off.write(100, RunHealth(val_loss=0.5), grown=False)
        >>> on.write(100, RunHealth(val_loss=0.7), grown=True)
        >>> on.baseline(100)
        Baseline(values={'val_loss': 0.5}, runs=1)
    """

    def __init__(self, folder: str, model_id: str) -> None:
        self.folder = Path(folder)
        name = re.sub(r"[^\w.-]", "_", model_id)
        self.path = self.folder / f"{name}-{uuid.uuid4().hex[:12]}.jsonl"
        self._last, self._interval = 0, 0
        self._others: dict[Path, _Run] = {}

    def write(self, step: int, health: RunHealth, *, grown: bool) -> None:
        """Add this run's figures of one tick; a step is written once.

        Args:
            step: Optimizer steps done.
            health: The figures.
            grown: Whether a layer is on, or was before.

        Raises:
            OSError: If the folder can't be written to.
        """
        if step <= self._last:
            return
        self._interval, self._last = max(1, step - self._last), step
        row = {"step": step, "grown": grown, "errors": health.errors}
        row |= {name: getattr(health, name) for name in GUARDED}
        self.folder.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def baseline(self, step: int) -> Baseline:
        """Median over the runs without growth of each figure at this optimizer step."""
        rows = [row for row in map(lambda run: self._at(run, step), self._runs()) if row is not None]
        values = {}
        for name in GUARDED:
            known = [row[name] for row in rows if row[name] is not None and math.isfinite(row[name])]
            if known:
                values[name] = median(known)
        return Baseline(values, len(rows))

    def _at(self, run: _Run, step: int) -> dict[str, Any] | None:
        last = None
        for row in run.rows:
            if row["grown"] or row["step"] > step:
                break
            last = row
        return last if last is not None and last["step"] >= step - self._interval else None

    def _runs(self) -> Iterator[_Run]:
        """The other runs; of each file only what is new is read."""
        for path in sorted(self.folder.glob("*.jsonl")):
            if path != self.path:
                run = self._others.setdefault(path, _Run())
                self._read(path, run)
                yield run

    @staticmethod
    def _read(path: Path, run: _Run) -> None:
        with path.open("rb") as file:
            file.seek(run.offset)
            for line in file:
                if not line.endswith(b"\n"):  # its writer is not done with it
                    return
                run.offset += len(line)
                row = _parsed(line)
                if row is not None:
                    run.rows.append(row)


def _parsed(line: bytes) -> dict[str, Any] | None:
    """A line as :meth:`CohortLog.write` makes it; None for anything else, which a shared folder may hold."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    known = isinstance(row, dict) and {"step", "grown", *GUARDED} <= row.keys()
    return row if known else None
