"""What a run leaves for later: decisions that can be made again, and what its seeds were worth."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning_morpho.engine import GrowthEngine
from lightning_morpho.tamiyo import Decision, Observation
from lightning_morpho.tamiyo.replay import tick_entry
from lightning_morpho.telemetry.events import LogFile
from lightning_morpho.telemetry.field_reports import FIELD_REPORTS_FILE

SeedId = tuple[str, int, int]


class Journal:
    """Writes each tick's observation and decisions, and a field report when a seed ends.

    Args:
        engine: The engine, its state restored.
        write: Adds an entry to the event log.
        folder: Where field reports go; None: nowhere.
    """

    def __init__(self, engine: GrowthEngine, write: Callable[[dict[str, Any]], None], folder: Path | None) -> None:
        self._engine, self._write = engine, write
        self._reports = None if folder is None else LogFile(folder / FIELD_REPORTS_FILE)
        self._whole = True
        self._told: set[SeedId] = set(engine.reports())
        self._births: dict[SeedId, float] = {}
        engine.on_decided = self._decided if folder is not None else None

    def _decided(self, observation: Observation, decisions: Sequence[Decision]) -> None:
        now = {"tick": observation.tick, "step": observation.step}
        self._write({**tick_entry(observation, decisions, whole=self._whole), **now})
        self._whole = False

    def tell(self) -> None:
        """Write the reports of the seeds that have ended since the last call."""
        now = time.monotonic()
        for record in self._engine.records:
            if record.born_tick == self._engine.ticks:
                self._births.setdefault(record.key, now)
        for key, report in self._engine.reports().items():
            if key not in self._told:
                self._told.add(key)
                born = self._births.pop(key, None)
                if self._reports is not None:
                    seconds = None if born is None else round(now - born, 3)
                    self._reports.add(replace(report, seconds=seconds).to_dict())
