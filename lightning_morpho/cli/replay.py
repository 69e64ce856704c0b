"""``morpho replay``: decide a recorded run again, offline."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lightning_morpho.cli.compose import build
from lightning_morpho.cli.parsing import add_command
from lightning_morpho.tamiyo import Tamiyo
from lightning_morpho.tamiyo.replay import Redecided, in_words, read_ticks, recorded_policy, redecide
from lightning_morpho.telemetry.run_folders import find_run

GROUP = Path(__file__).parent.parent / "configs" / "morpho" / "tamiyo"
DESCRIPTION = """Decide a recorded run again, tick by tick, with its own policy, other settings or another policy,
and show where the decisions differ. Nothing is trained."""
EPILOG = """exit code: 0 all ticks are decided alike, 1 some are not, 2 an error.

examples:
  morpho replay runs/a                                   the run's own policy: does it decide as it did?
  morpho replay runs/a --set at=0.3                      ... with another setting
  morpho replay runs/a --tamiyo=plateau --set patience=2 another policy
  morpho replay runs/a --tamiyo=my_package.MyPolicy      one of your own
"""


def add_parser(commands: Any) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "replay",
        run,
        help="decide a recorded run again with the same or another policy",
        description=DESCRIPTION,
        epilog=EPILOG,
    )
    parser.add_argument("folder", metavar="RUN", type=Path, help="folder of the run or one above it, or its event log")
    parser.add_argument("--tamiyo", help="policy: a name in morpho/tamiyo, or a dotted class (default: the run's own)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of the policy")
    parser.add_argument("--all", action="store_true", help="show the ticks that are decided alike too")


def run(options: argparse.Namespace) -> int:
    """Print where the decisions differ."""
    log = options.folder if options.folder.is_file() else find_run(options.folder)
    policy = find_policy(options.tamiyo, options.set, log)
    ticks = list(redecide(read_ticks(log), policy))
    if not ticks:
        raise ValueError(f"`{options.folder}` holds no decisions: the run had `telemetry.events: false`, or no tick.")
    differing = [tick for tick in ticks if not tick.same]
    if differing or options.all:
        Console().print(_table(ticks if options.all else differing))
    print(f"{len(ticks)} ticks, {len(differing)} decided otherwise by {policy}.")
    if differing:
        print(f"From tick {differing[0].tick} on a run under this policy would have seen something else.")
    return 1 if differing else 0


def find_policy(name: str | None, settings: Sequence[str], run: Path) -> Tamiyo:
    """The policy that is asked for.

    Args:
        name: Name in the config group, dotted class, or None for the run's own.
        settings: ``key=value`` for some of its keys.
        run: The recorded run.

    Raises:
        ValueError: If there is no such policy or key, or a value is refused.
    """
    node: Mapping[str, Any] | None
    if name is None:
        node = recorded_policy(run)
        if node is None:
            raise ValueError(f"`{run}` does not say which policy it ran with; name one with `--tamiyo`.")
    elif "." in name:
        node = {"_target_": name}
    else:
        node = _from_group(name)
    policy = build(OmegaConf.merge(OmegaConf.create(dict(node)), OmegaConf.from_dotlist(list(settings))))
    if not isinstance(policy, Tamiyo):
        raise ValueError(f"`--tamiyo` must name a Tamiyo policy, `{name}` gives a {type(policy).__name__}.")
    return policy


def _from_group(name: str) -> Mapping[str, Any]:
    path = GROUP / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in GROUP.glob("*.yaml")))
        raise ValueError(f"`--tamiyo` must be one of {known}, or a dotted class, got {name!r}.")
    node: Any = OmegaConf.to_container(OmegaConf.load(path))
    return dict(node)


def _table(ticks: Sequence[Redecided]) -> Table:
    table = Table()
    for title in ("tick", "step", "recorded", "replayed"):
        table.add_column(title, justify="right" if title in ("tick", "step") else "left")
    for tick in ticks:
        recorded, replayed = (escape(in_words(decisions)) for decisions in (tick.recorded, tick.replayed))
        table.add_row(str(tick.tick), str(tick.step), recorded, replayed if not tick.same else "the same")
    return table
