"""What the parsers of all commands have in common."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any


def add_command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], int], *, help: str, description: str, epilog: str = ""
) -> argparse.ArgumentParser:
    """Add a command whose help keeps its line breaks.

    Args:
        commands: The subparsers of ``morpho``.
        name: Name of the command.
        run: What it does; it gives the exit code.
        help: One line for the list of commands.
        description: What it does, for its own help.
        epilog: Exit codes and examples.
    """
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=help, description=description, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.set_defaults(run=run)
    return parser
