"""A run followed while it goes on: only what was added to its files is read."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

from lightning_morpho.telemetry.events import EVENTS_FILE
from lightning_morpho.telemetry.run_folders import run_name, runs_below
from lightning_morpho.telemetry.run_log import METRICS_FILE
from lightning_morpho.telemetry.saved_run import Entry, SavedRun, is_whole, run_of


class Tail:
    """The lines of a file that grows.

    Args:
        path: The file; it may come into being later.

    Attributes:
        entries: The whole lines so far.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries: list[Entry] = []
        self._offset = 0

    def read(self) -> bool:
        """Take what was added; whether that was anything."""
        try:
            size = self.path.stat().st_size
        except FileNotFoundError:
            return False
        if size < self._offset:  # written anew
            self.entries.clear()
            self._offset = 0
        if size == self._offset:
            return False
        with self.path.open("rb") as file:
            file.seek(self._offset)
            added = file.read()
        whole = added[: added.rfind(b"\n") + 1]  # the writer may be in the middle of a line
        self._offset += len(whole)
        for line in whole.splitlines():
            with contextlib.suppress(ValueError):
                entry = json.loads(line)
                if is_whole(entry):
                    self.entries.append(entry)
        return bool(whole)


class Follower:
    """Follows the newest run in a folder.

    Args:
        path: Folder of the run or one above it, or its event log; it may come into being later.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._folder: Path | None = None
        self._events = self._figures = Tail(path)
        self._run: SavedRun | None = None

    def look(self) -> SavedRun | None:
        """The run as it is now, the same object if nothing was added; None while there is none."""
        if self._folder is None and not self._find():
            return None
        assert self._folder is not None
        changed = [tail.read() for tail in (self._events, self._figures)]
        if any(changed) or self._run is None:
            name = run_name(self.path, self._folder)
            self._run = run_of(self._events.entries, self._figures.entries, self._folder, name)
        return self._run

    def _find(self) -> bool:
        if self.path.name == EVENTS_FILE:
            found = [self.path.parent] if self.path.is_file() else []
        else:
            found = runs_below(self.path)
        if found:
            self._folder = found[0]
            self._events, self._figures = Tail(found[0] / EVENTS_FILE), Tail(found[0] / METRICS_FILE)
        return bool(found)
