"""Where a run lies: the folder that a person means, and the folders of its loggers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from lightning_morpho.telemetry.events import EVENTS_FILE
from lightning_morpho.telemetry.metric_files import CSV_FILE, TENSORBOARD_FILES

DEPTH = 4
"""How deep below a folder a run is looked for: ``runs/<name>/<time>/<logger>/``."""


def find_run(path: Path) -> Path:
    """The folder of the event log that a person means by ``path``.

    Args:
        path: The log itself, its folder, or a folder above it that holds no other.

    Raises:
        ValueError: If there is none, or more than one, with the runs that are near.
    """
    if path.name == EVENTS_FILE and path.is_file():
        return path.parent
    if not path.is_dir():
        raise ValueError(f"`{path}` must be the folder of a run, and there is no such folder.{_nearby(path.parent)}")
    found = runs_below(path)
    if len(found) == 1:
        return found[0]
    if found:
        listed = "".join(f"\n  {folder}" for folder in found[:20])
        more = f"\n  ... and {len(found) - 20} more" if len(found) > 20 else ""
        raise ValueError(f"`{path}` must be the folder of one run, and it holds {len(found)}:{listed}{more}")
    logged = [name for name in (CSV_FILE, TENSORBOARD_FILES) if any(_walk(path, name))]
    if logged:
        raise ValueError(
            f"`{path}` holds metrics ({', '.join(logged)}) but no `{EVENTS_FILE}`: that run trained without "
            "MorphoCallback, with `telemetry.events` off, or has another logger first, whose folder takes the log."
        )
    raise ValueError(
        f"`{path}` holds no run: no `{EVENTS_FILE}` in it or {DEPTH} folders deep. A run writes it to the folder of "
        f"its first logger (`runs/<name>/<time>/csv`, `lightning_logs/version_0`), without one to `default_root_dir`."
        f"{_nearby(path.parent)}"
    )


def _walk(path: Path, pattern: str) -> Iterator[Path]:
    for depth in range(DEPTH + 1):
        yield from path.glob("/".join(["*"] * depth + [pattern]))


def runs_below(path: Path) -> list[Path]:
    """Folders with an event log, the newest first; one at ``path`` itself is the only one that counts."""
    if (path / EVENTS_FILE).is_file():
        return [path]
    return [log.parent for log in sorted(_walk(path, EVENTS_FILE), key=os.path.getmtime, reverse=True)]


def _nearby(path: Path) -> str:
    found = runs_below(path)[:5] if path.is_dir() else []
    return " Runs nearby:" + "".join(f"\n  {folder}" for folder in found) if found else ""


def logger_folders(path: Path) -> list[Path]:
    """Folders below ``path`` in which a logger left metrics."""
    return [file.parent for name in (CSV_FILE, TENSORBOARD_FILES) for file in sorted(_walk(path, name))]


def run_name(path: Path, folder: Path) -> str:
    """What a person calls a run: the folder that was asked for, if it is not the log's own.

    That one is often just a logger's or a version, so the one above it is named too.
    """
    asked, of_log = path.resolve(), folder.resolve()
    return "/".join(of_log.parts[-2:]) if asked in (of_log, of_log / EVENTS_FILE) else asked.name
