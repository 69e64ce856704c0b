"""Entry point ``morpho``: arguments in, exit code out."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from lightning_morpho.cli import ab, export, flags, inspect, reference, replay, report, watch


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: Command line; None: this process's.

    Returns:
        0 if all went well, 1 if the answer is no (``flags verify``, ``flags show --is-on``, ``ab --require``,
        ``replay``),
        2 if something is wrong with the command, its files or its values.
    """
    parser = argparse.ArgumentParser(prog="morpho", description="Steer and look at networks that grow.")
    commands = parser.add_subparsers(dest="command", required=True)
    for module in (report, watch, inspect, export, flags, ab, replay, reference):
        module.add_parser(commands)
    options = parser.parse_args(arguments)
    try:
        code: int = options.run(options)
    except (ValueError, TypeError, OSError) as error:
        print(f"morpho {options.command}: {_in_words(error)}", file=sys.stderr)
        return 2
    return code


def _in_words(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"`{error.filename}`: {error.strerror}."
    return str(error)
