"""``morpho reference``: the page of all settings, made from the dataclasses themselves."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import re
from collections.abc import Mapping
from typing import Any

from lightning_morpho import config
from lightning_morpho.callback import MorphoCallback
from lightning_morpho.cli.parsing import add_command
from lightning_morpho.tamiyo import (
    AllAtStart,
    AutoSize,
    Bandit,
    Never,
    Periodic,
    Placed,
    Plateau,
    Probation,
    RandomPlace,
    Scripted,
    Trial,
    Uniform,
)

SECTIONS: tuple[tuple[str, type], ...] = (
    ("morpho.layers", config.LayersConfig),
    ("morpho.blueprint", config.BlueprintConfig),
    ("morpho.lifecycle", config.LifecycleConfig),
    ("morpho.grafting", config.GraftingConfig),
    ("morpho.warmup", config.WarmupConfig),
    ("morpho.starvation", config.StarvationConfig),
    ("morpho.budget", config.BudgetConfig),
    ("morpho.rollout", config.RolloutConfig),
    ("morpho.rollout.flags.<name>", config.FlagConfig),
    ("morpho.rollout.ramp", config.RampConfig),
    ("morpho.rollout.ramp.guard", config.GuardConfig),
    ("morpho.tamiyo (auto)", AutoSize),
    ("morpho.tamiyo (uniform, balanced)", Uniform),
    ("morpho.tamiyo (periodic, conservative, eager)", Periodic),
    ("morpho.tamiyo (narrowest, earliest, gradient)", Placed),
    ("morpho.tamiyo (trial)", Trial),
    ("morpho.tamiyo (plateau)", Plateau),
    ("morpho.tamiyo (bandit)", Bandit),
    ("morpho.tamiyo (random)", RandomPlace),
    ("morpho.tamiyo (scripted)", Scripted),
    ("morpho.tamiyo (all_at_start)", AllAtStart),
    ("morpho.tamiyo (probation)", Probation),
    ("morpho.tamiyo (never)", Never),
    ("morpho.credit", config.CreditConfig),
    ("morpho.governor", config.GovernorConfig),
    ("morpho.telemetry", config.TelemetryConfig),
)
HEAD = """# Configuration

Every setting, as a key in YAML and as a keyword argument in Python. Made by `morpho reference` from the docstrings
of the code; don't edit it by hand. [How a rollout works](rollout.md).
"""


def add_parser(commands: Any) -> None:
    """Add the command."""
    add_command(
        commands,
        "reference",
        run,
        help="print every setting with its default, as Markdown",
        description="Print every setting with its default, as Markdown.",
    )


def run(options: argparse.Namespace) -> int:
    """Print the page."""
    print(reference_page(), end="")
    return 0


def reference_page() -> str:
    """All configuration classes as one Markdown page."""
    return HEAD + callback_section() + "".join(section(key, cls) for key, cls in SECTIONS)


def callback_section() -> str:
    """The callback's own arguments, those that are no section."""
    texts = arguments(inspect.getdoc(MorphoCallback) or "")
    sections = {key.removeprefix("morpho.").split(" ")[0] for key, _ in SECTIONS}
    own = [p for name, p in inspect.signature(MorphoCallback).parameters.items() if name not in sections]
    rows = [f"| `{p.name}` | `{_plain(p.default)}` | {texts[p.name]} |" for p in own]
    head = "\n## `morpho`\n\n`lightning_morpho.MorphoCallback`: the callback itself; its sections follow.\n"
    return "\n".join([head, "| key | default | |", "|---|---|---|", *rows]) + "\n"


def section(key: str, cls: type) -> str:
    """One class: its summary and a table of its keys.

    Example:
        >>> print(section("morpho.tamiyo", Never))
        <BLANKLINE>
        ## `morpho.tamiyo`
        <BLANKLINE>
        `lightning_morpho.Never`: Grows nothing: seeds stay dormant.
        <BLANKLINE>
    """
    documentation = inspect.getdoc(cls) or ""
    summary = " ".join(documentation.split("\nArgs:")[0].split()).replace("``", "`")
    summary = re.sub(r":(?:class|func):`~?([^`]*)`", r"`\1`", summary)
    head = f"\n## `{key}`\n\n`lightning_morpho.{cls.__name__}`: {summary}\n"
    items = dataclasses.fields(cls)
    if not items:
        return head
    texts = {key: text for base in reversed(cls.__mro__) for key, text in arguments(inspect.getdoc(base) or "").items()}
    rows = [f"| `{item.name}` | `{_default(item)}` | {texts[item.name]} |" for item in items]
    return "\n".join([head, "| key | default | |", "|---|---|---|", *rows]) + "\n"


def arguments(documentation: str) -> Mapping[str, str]:
    r"""Texts of a docstring's ``Args`` by name, each on one line.

    Example:
        >>> arguments("Summary.\n\nArgs:\n    a: First,\n        in steps.\n    b: Second.")
        {'a': 'First, in steps.', 'b': 'Second.'}
    """
    block = re.split(r"\n\w+:\n", documentation.partition("\nArgs:\n")[2] + "\n")[0]
    found = re.findall(r"^ {4}(\w+): (.*(?:\n {8,}.*)*)", block, re.MULTILINE)
    return {name: " ".join(text.split()).replace("``", "`").replace("|", "\\|") for name, text in found}


def _default(item: dataclasses.Field[Any]) -> str:
    value = item.default
    if item.default_factory is not dataclasses.MISSING:
        value = item.default_factory()
    if dataclasses.is_dataclass(value):
        return "see below"
    return _plain(value)


def _plain(value: Any) -> str:
    """A value as YAML has it."""
    if isinstance(value, tuple):
        value = list(value)
    return {"None": "null", "True": "true", "False": "false"}.get(str(value), str(value))
