"""``morpho watch``: a run followed in the terminal while it goes on."""

from __future__ import annotations

import argparse
import io
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live

from lightning_morpho.cli.parsing import add_command
from lightning_morpho.telemetry.follow import Follower
from lightning_morpho.telemetry.happenings import happenings
from lightning_morpho.telemetry.run_folders import find_run
from lightning_morpho.telemetry.saved_run import SavedRun
from lightning_morpho.telemetry.terminal import RunView, state_of

DESCRIPTION = """Follow a run in the terminal: its figures, a curve, the seeds of each layer, the last events.
It may be started before the run, and ends when the run ends or at Ctrl-C. Of several runs below the
folder the newest is followed. Where there is no terminal (a pipe, a job's log) each event is one line.

exit code: 0, or 1 if the run ended by an error"""
EPILOG = """examples:
  morpho watch runs/demo                  the newest run below that folder
  morpho watch lightning_logs/version_3
  morpho watch runs/demo/grown --once     its present state, then end
"""


def add_parser(commands: Any) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "watch",
        run,
        help="follow a run in the terminal",
        description=DESCRIPTION,
        epilog=EPILOG,
    )
    parser.add_argument("folder", type=Path, metavar="RUN", help="folder of the run, or one above it")
    parser.add_argument("--once", action="store_true", help="print the present state and end")
    parser.add_argument("--every", type=float, default=1.0, metavar="SECONDS", help="how often to look (default: 1)")


def run(options: argparse.Namespace) -> int:
    """Follow the run until one of the two ends."""
    if not options.every > 0:
        raise ValueError(f"`--every` must be above 0 seconds, got {options.every:g}.")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # names of layers may hold what the terminal can't show
    console, follower = Console(), Follower(options.folder)
    if options.once:
        now = follower.look()
        if now is None:
            find_run(options.folder)  # says what was expected
        assert now is not None
        console.print(RunView(now))
        return _code(now)
    last: SavedRun | None = None
    try:
        show = _on_screen if console.is_terminal else _in_lines
        last = show(console, follower, options.every)
    except KeyboardInterrupt:
        last = follower.look()
    if last is not None and console.is_terminal:
        console.print(RunView(last))
    return 0 if last is None else _code(last)


def _code(run: SavedRun) -> int:
    return 0 if run.outcome in (None, "finished") or run.outcome.startswith("KeyboardInterrupt") else 1


def _on_screen(console: Console, follower: Follower, every: float) -> SavedRun:
    """One screen, drawn anew as the run goes on."""
    with Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            found = follower.look()
            if found is not None and found.outcome is not None:
                return found
            waiting = f"waiting for a run in {follower.path} (Ctrl-C ends)"
            live.update(waiting if found is None else RunView(found, rows=console.size.height), refresh=True)
            time.sleep(every)


def _in_lines(console: Console, follower: Follower, every: float) -> SavedRun:
    """One line an event, for pipes and logs."""
    told: set[str] = set()
    if follower.look() is None:
        print(f"waiting for a run in {follower.path}", flush=True)
    while True:
        found = follower.look()
        if found is not None:
            for happening in happenings(found.entries):
                line = str(happening)
                if line not in told:
                    told.add(line)
                    print(line, flush=True)
            if found.outcome is not None:
                print(f"step {found.last_step:,}: {state_of(found, time.time())}", flush=True)
                return found
        time.sleep(every)
