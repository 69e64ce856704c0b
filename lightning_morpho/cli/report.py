"""``morpho report``: a run as one page that can be sent to a colleague."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from lightning_morpho.cli.parsing import add_command
from lightning_morpho.telemetry.report import write_report
from lightning_morpho.wording import memory

DESCRIPTION = """Write the report of a run: its story, curves with the events of growth, every seed's life,
the seed map, credit, size and time, modules and configuration. One HTML file that needs no network."""
EPILOG = """examples:
  morpho report runs/demo/grown                    writes runs/demo/grown/report.html
  morpho report lightning_logs/version_3 --out growth.html
"""


def add_parser(commands: Any) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "report",
        run,
        help="write a run's report, one HTML file",
        description=DESCRIPTION,
        epilog=EPILOG,
    )
    parser.add_argument(
        "folder", type=Path, metavar="RUN", help="folder of the run, or one above it that holds no other"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="file of the report (default: RUN/report.html)")


def run(options: argparse.Namespace) -> int:
    """Write the report and say where it is."""
    path = write_report(options.folder, options.out)
    print(f"{path} ({memory(path.stat().st_size)}): open it in a browser, or send it.")
    return 0
