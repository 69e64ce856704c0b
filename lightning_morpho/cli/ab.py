"""``morpho ab``: two configurations compared by paired runs, in one command."""

from __future__ import annotations

import argparse
import importlib
import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from lightning_morpho.ab import Result, compare_pairs, metric_values, run_pairs
from lightning_morpho.cli.compose import add_config_arguments, load_config
from lightning_morpho.cli.parsing import add_command

DESCRIPTION = """Train two configurations with the same random seeds and say, from the differences of the pairs,
whether one is better. Runs that a log in --out holds already are not repeated."""
EPILOG = """example:
  morpho ab train experiment=mnist1d --a "~morpho" --b "" --seeds 8 --metric test_acc
"""


def add_parser(commands: Any) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "ab",
        run,
        help="compare two configurations by paired runs",
        description=DESCRIPTION,
        epilog=EPILOG,
    )
    add_config_arguments(parser)
    parser.add_argument("--a", required=True, help="overrides of A, the baseline, separated by blanks")
    parser.add_argument("--b", required=True, help="overrides of B")
    parser.add_argument("--seeds", type=int, default=8, help="pairs of runs, with the random seeds 0, 1, ... (>= 2)")
    parser.add_argument("--metric", default="test_acc", help="what is compared")
    parser.add_argument("--lower-is-better", action="store_true", help="whether a fall of the metric is good")
    parser.add_argument("--confidence", type=float, default=0.95, help="level of the interval, in (0.5, 1)")
    parser.add_argument("--out", type=Path, default=Path("runs/ab"), help="folder of logs, results and verdict")
    parser.add_argument(
        "--train",
        default="lightning_morpho.train:train",
        help="module:function that takes a configuration and returns metrics",
    )
    parser.add_argument(
        "--require",
        choices=["better", "not-worse"],
        help="exit with 1 unless B is that; not-worse: or better",
    )


def run(options: argparse.Namespace) -> int:
    """Run what is missing, and print the verdict."""
    if options.seeds < 2:
        raise ValueError(f"`--seeds` must be at least 2 pairs, got {options.seeds}.")
    arms = {"a": shlex.split(options.a), "b": shlex.split(options.b)}
    train = _function(options.train)
    log = options.out / "results.jsonl"
    key = {"config": options.config, "overrides": options.overrides, **arms}

    def one(variant: str, seed: int) -> Result:
        return train(_compose(options, variant, arms[variant], seed))

    def note(variant: str, seed: int, result: Result) -> None:
        options.out.mkdir(parents=True, exist_ok=True)
        with log.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"key": key, "variant": variant, "seed": seed, "result": dict(result)}) + "\n")
        print(f"{variant} seed {seed}: {options.metric} {result.get(options.metric)}", file=sys.stderr, flush=True)

    results = run_pairs(one, list(arms), range(options.seeds), note, _finished(log, key))
    a, b = (metric_values(results[variant], options.metric) for variant in ("a", "b"))
    comparison = compare_pairs(
        a,
        b,
        metric=options.metric,
        higher_is_better=not options.lower_is_better,
        confidence=options.confidence,
    )
    (options.out / "verdict.json").write_text(json.dumps(comparison.to_dict(), indent=2) + "\n", encoding="utf-8")
    print(comparison)
    allowed = {"better": {"better"}, "not-worse": {"better", "no difference shown"}}
    return 0 if options.require is None or comparison.verdict in allowed[options.require] else 1


def _compose(options: argparse.Namespace, variant: str, overrides: list[str], seed: int) -> DictConfig:
    folder = options.out / f"{variant}-{seed}"
    own = [*options.overrides, *overrides, f"seed={seed}", f"output_dir={folder}"]
    return load_config(options.config, own, options.config_dir)


def _finished(log: Path, key: dict[str, Any]) -> dict[tuple[str, int], Result]:
    """Results of the same comparison that was interrupted."""
    if not log.exists():
        return {}
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    return {(line["variant"], line["seed"]): line["result"] for line in lines if line["key"] == key}


def _function(name: str) -> Callable[[DictConfig], Result]:
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"`--train` must be module:function, got {name!r}: {error}") from error
