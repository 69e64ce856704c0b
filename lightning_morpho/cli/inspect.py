"""``morpho inspect``: every module of a model, and what would grow there."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import Any

from lightning_morpho.chunks import ChunkManager
from lightning_morpho.cli.compose import add_config_arguments, load_config, model_and_config
from lightning_morpho.cli.parsing import add_command
from lightning_morpho.eligibility import EligibilityReport
from lightning_morpho.surgery import hybrid_layers, morph_
from lightning_morpho.wording import plural

EPILOG = """examples:
  morpho inspect train experiment=mnist1d
  morpho inspect runs/train/2026-01-31_12-00-00/.hydra/config.yaml --json
  morpho inspect my_config --config-dir configs    a config of your own
"""


def add_parser(commands: Any) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "inspect",
        run,
        help="list every module with eligibility, cohort, chunks and budget",
        description="Build the model of a configuration and say of every module whether it would grow, and why.",
        epilog=EPILOG,
    )
    add_config_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(options: argparse.Namespace) -> int:
    """Build the model, swap its layers as a run would, and print the report."""
    model, config = model_and_config(load_config(options.config, options.overrides, options.config_dir))
    report = morph_(model, config)
    layouts = {name: layout(layer.chunks) for name, layer in hybrid_layers(model).items()}
    if options.json:
        modules = [asdict(m) | {"chunks": layouts.get(m.name)} for m in report.modules]
        print(json.dumps({"budget": report.budget, "allocated": report.allocated, "modules": modules}, indent=2))
    else:
        print("\n".join(_lines(report, layouts)))
    return 0


def layout(chunks: ChunkManager) -> str:
    """Chunks of a layer in words.

    Example:
        >>> layout(ChunkManager(130, 4)), layout(ChunkManager(64, 1))
        ('130 features: 2 chunks of 33, 2 of 32', '64 features: 1 chunk of 64')
    """
    parts = [(chunks.num_wide, chunks.width + 1), (chunks.num_chunks - chunks.num_wide, chunks.width)]
    words = [f"{plural(count, 'chunk')} of {width}" for count, width in parts if count]
    shortened = [words[0], *(word.replace("chunks ", "").replace("chunk ", "") for word in words[1:])]
    return f"{chunks.num_features} features: {', '.join(shortened)}"


def _lines(report: EligibilityReport, layouts: dict[str, str]) -> list[str]:
    lines = str(report).splitlines()
    details = [f"      {layouts[m.name]}; {m.cohort}" if m.taken else "" for m in report.modules]
    body = [line for pair in zip(lines[1:], details, strict=True) for line in pair if line]
    return [lines[0], *body]
