"""``morpho flags``: look at the flags of a YAML file and change them, safely while runs read it."""

from __future__ import annotations

import argparse
import csv
import math
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from lightning_morpho.checks import is_percentage, suggest
from lightning_morpho.cli.compose import load_config, model_and_config
from lightning_morpho.cli.parsing import add_command
from lightning_morpho.cli.yaml_edit import set_value, write_atomically
from lightning_morpho.rollout import (
    decide,
    decide_layer,
    feature_environment,
    flag_of,
    parse_flags,
    with_environment,
)
from lightning_morpho.rollout.flag_file import rollout_node, rollout_path, with_overlay
from lightning_morpho.rollout.flags import CHUNKED_LAYERS
from lightning_morpho.rollout_config import FLAGS, GUARDED, FlagConfig, RolloutConfig
from lightning_morpho.surgery import hybrid_layers, morph_

ACTIONS = {
    "show": "print the flags; with --model, which of its layers would be on",
    "enable": "enabled: true",
    "disable": "enabled: false, the kill switch",
    "rollout": "set the percentage",
    "allow": "add globs to the allowlist",
    "block": "add globs to the blocklist",
    "unblock": "remove globs from the blocklist",
    "verify": "check keys and values; exit code 1 if something is wrong",
    "baseline": "record the values that a ramp's guard compares with, from metrics.csv of a run without growth",
}

EPILOG = """examples:
  morpho flags show flags.yaml
  morpho flags disable flags.yaml                  the kill switch
  morpho flags rollout flags.yaml 25 --dry-run     what it would write
"""


def add_parser(commands: Any) -> None:
    """Add the command and its actions."""
    parser = add_command(
        commands,
        "flags",
        run,
        help="show and change the flags of a YAML file",
        description="Look at the flags of a YAML file and change them, safely while runs read it.",
        epilog=EPILOG,
    )
    actions = parser.add_subparsers(dest="action", required=True)
    for name, text in ACTIONS.items():
        action = actions.add_parser(name, help=text, description=text)
        action.add_argument("file", type=Path, help="flag file, rollout preset or whole configuration")
        if name == "rollout":
            action.add_argument("percentage", type=float, help="in [0, 100]")
        elif name in ("allow", "block", "unblock"):
            action.add_argument("patterns", nargs="+", help="globs over unit ids")
        elif name == "baseline":
            action.add_argument("metrics", type=Path, help="metrics.csv of a run without growth")
            action.add_argument("--monitor", default="val_loss", help="column of the validation loss")
            action.add_argument("--step-time", type=float, help="median duration of its training steps, in seconds")
        if name not in ("verify", "baseline"):
            action.add_argument("--flag", default=CHUNKED_LAYERS, help="which flag")
        if name not in ("verify", "show"):
            action.add_argument("--dry-run", action="store_true", help="print the new text, write nothing")
            action.add_argument("--create", action="store_true", help="make the file if it is missing")
        if name not in ("verify", "baseline"):
            action.add_argument("--model", nargs="+", metavar="CONFIG", help="config and overrides: list its layers")
            action.add_argument("--config-dir", type=Path, help="folder of your own configs, for --model")
        if name == "show":
            action.add_argument("--is-on", metavar="UNIT", help="exit with 0 if this unit is on, else with 1")


def run(options: argparse.Namespace) -> int:
    """Carry out one action."""
    if options.action == "verify":
        return _verify(options.file)
    text = _read(options)
    parse_flags(text, str(options.file))
    if options.action == "show":
        return _show(options, text)
    changed = _changed(options, text)
    parse_flags(changed, str(options.file))
    if options.dry_run:
        print(changed, end="" if changed.endswith("\n") else "\n")
    elif changed != text:
        write_atomically(options.file, changed)
        print(f"{options.file}: {options.action} done")
    else:
        print(f"{options.file}: nothing to change")
    if getattr(options, "model", None):
        _list_layers(options, changed)
    return 0


def _read(options: argparse.Namespace) -> str:
    try:
        return str(options.file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if getattr(options, "create", False):
            return ""
        raise ValueError(
            f"There is no file `{options.file}`. Is it the one that runs read (`rollout.flag_file`)? "
            "`--create` makes a new one."
        ) from None


def _changed(options: argparse.Namespace, text: str) -> str:
    """The text after the action."""
    content = yaml.safe_load(text) or {}
    top = rollout_path(content)
    if options.action == "baseline":
        return _with_baseline(options, text, top)
    path = [*top, *_flag_path(options.flag)]
    if options.action in ("enable", "disable"):
        return set_value(text, [*path, "enabled"], options.action == "enable")
    if options.action == "rollout":
        if not is_percentage(options.percentage):
            raise ValueError(f"`percentage` must be in [0, 100], got {options.percentage:g}.")
        return set_value(text, [*path, "percentage"], options.percentage)
    key = "allowlist" if options.action == "allow" else "blocklist"
    present = _list_at(content, [*path, key])
    if options.action == "unblock":
        missing = [p for p in options.patterns if p not in present]
        if missing:
            raise ValueError(f"{missing} not on the blocklist, which is {present}.")
        return set_value(text, [*path, key], [p for p in present if p not in options.patterns])
    added = [p for p in dict.fromkeys(options.patterns) if p not in present]
    return set_value(text, [*path, key], [*present, *added]) if added else text


def _flag_path(flag: str) -> list[str]:
    known = [CHUNKED_LAYERS, *FLAGS]
    if flag not in known:
        raise ValueError(f"No flag `{flag}`: {suggest(flag, known)}")
    return [] if flag == CHUNKED_LAYERS else ["flags", flag]


def _list_at(content: Any, path: Sequence[str]) -> list[str]:
    for key in path:
        content = (content or {}).get(key)
    return [content] if isinstance(content, str) else list(content or [])


def _with_baseline(options: argparse.Namespace, text: str, top: Sequence[str]) -> str:
    with options.metrics.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    values = [float(row[options.monitor]) for row in rows if row.get(options.monitor)]
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        columns = list(rows[0]) if rows else []
        raise ValueError(f"`{options.metrics}` has no values of `{options.monitor}`; its columns are {columns}.")
    recorded = {"val_loss": min(finite), "step_time": options.step_time}
    content = yaml.safe_load(text) or {}
    if rollout_node(content).get("ramp") is None:
        raise ValueError(
            f"`{options.file}` has no `ramp` whose guard could use a baseline; start from morpho/rollout=ramp."
        )
    for name in GUARDED:
        if recorded[name] is not None:
            text = set_value(text, [*top, "ramp", "guard", "baseline", name], recorded[name])
    return text


# ---------------------------------------------------------------------------------------- looking
def _flag(name: str, text: str, base: RolloutConfig | None = None) -> tuple[FlagConfig, str]:
    flag = with_overlay(name, flag_of(base or _file_config(text), name), parse_flags(text))
    return with_environment(name, flag, feature_environment())


def _file_config(text: str) -> RolloutConfig:
    """The configuration whose keys a file replaces; keys that it lacks have the defaults of the code."""
    given = {name: FlagConfig(**keys) for name, keys in parse_flags(text).items() if name != CHUNKED_LAYERS}
    return RolloutConfig(flags=given)


def _show(options: argparse.Namespace, text: str) -> int:
    for name in (CHUNKED_LAYERS, *FLAGS):
        flag, note = _flag(name, text)
        keys = [f"{item.name} {_plain(getattr(flag, item.name))}" for item in fields(FlagConfig)]
        print(f"{name}: {', '.join(keys)}{note}")
    if options.model:
        _list_layers(options, text)
    if options.is_on is None:
        return 0
    flag, note = _flag(options.flag, text)
    on, why = decide(options.is_on, flag)
    print(f"{options.is_on}: {'on' if on else 'off'}, {why}{note}")
    return 0 if on else 1


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def _list_layers(options: argparse.Namespace, text: str) -> None:
    """What if: the layers of a model that this file would switch on."""
    config, *overrides = options.model
    everybody = [*overrides, "morpho.rollout.enabled=true", "morpho.rollout.percentage=100"]
    model, morpho = model_and_config(load_config(config, everybody, options.config_dir))
    morph_(model, morpho)
    flag, note = _flag(options.flag, text, morpho.rollout if options.action != "show" else None)
    layers = list(hybrid_layers(model))
    decisions = {name: decide_layer(morpho.model_id, name, flag) for name in layers}
    print(f"{sum(on for on, _ in decisions.values())} of {len(layers)} layers of `{morpho.model_id}` would be on:")
    width = max(map(len, layers), default=0)
    for name, (on, why) in decisions.items():
        print(f"  {'+' if on else '-'} {name:<{width}}  {why}{note}")


def _verify(path: Path) -> int:
    """Say whether the file and the environment would be understood."""
    problems = []
    try:
        text = path.read_text(encoding="utf-8")
        parse_flags(text, str(path))
        RolloutConfig(ramp=rollout_node(yaml.safe_load(text) or {}, str(path)).get("ramp"))
    except (ValueError, TypeError, OSError) as error:
        problems.append(str(error))
    try:
        for key, value in feature_environment().items():
            print(f"environment: {key}={value}")
    except ValueError as error:
        problems.append(str(error))
    for problem in problems:
        print(problem)
    if not problems:
        print(f"{path}: all keys and values are valid")
    return 1 if problems else 0
