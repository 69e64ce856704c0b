"""Train a narrow net without growth, the same net with it, and a wide one from scratch; draw what happened.

Writes ``runs/demo/{small,grown,wide}`` (CSV and TensorBoard logs, events), ``runs/demo/growth.png`` and the report of
the net that grew, ``runs/demo/grown/report.html``.
"""

import logging
import shutil
import sys
import time
from collections import Counter
from pathlib import Path

import torch
from hydra import compose, initialize_config_module
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lightning_morpho.tasks import ConvClassifier
from lightning_morpho.telemetry import EVENTS_FILE, read_events, write_report
from lightning_morpho.telemetry.plots import plot_growth
from lightning_morpho.train import train

ROOT = Path("runs/demo")
NARROW, WIDE = 4, 25
RUNS = {
    "small": ["~morpho"],
    "grown": [f"morpho.blueprint.hidden={WIDE - NARROW}"],
    "wide": ["~morpho", f"model.channels={WIDE}"],
}


def run(name: str, overrides: list[str]) -> dict[str, float]:
    """Train one of the nets; all see the same batches for the same number of steps."""
    folder = ROOT / name
    shutil.rmtree(folder, ignore_errors=True)
    logs = ["logger=csv_tensorboard", f"output_dir={folder}"]
    start = time.perf_counter()
    result = train(compose("train", ["experiment=mnist1d", *logs, *overrides]))
    return result | {"seconds": time.perf_counter() - start}


def step_flops(channels: int) -> float:
    """Floating-point operations of one training step of a net of that width, in millions."""
    net: nn.Module = ConvClassifier(channels=channels).net
    with FlopCounterMode(display=False) as counter:
        net(torch.zeros(100, 1, 40)).sum().backward()
    return counter.get_total_flops() / 1e6


def training_flops(name: str, steps: int, transitions: list[dict]) -> float:
    """Floating-point operations of a whole run, in billions; a grown net is narrow until it germinates."""
    small, wide = step_flops(NARROW), step_flops(WIDE)
    if name != "grown":
        return steps * (small if name == "small" else wide) / 1e3
    born = min((e["step"] for e in transitions if e["to"] == "LOADING"), default=steps)
    return (born * small + (steps - born) * wide) / 1e3


def main() -> int:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    results = {}
    with initialize_config_module("lightning_morpho.configs", version_base="1.3"):
        for name, overrides in RUNS.items():
            print(f"\n=== {name} ===", flush=True)
            results[name] = run(name, overrides)
        cfg = compose("train", ["experiment=mnist1d"])
    steps = cfg.trainer.max_epochs * (cfg.data.num_train // cfg.data.batch_size)
    picture = plot_growth(
        {name: ROOT / name / "csv" for name in RUNS},
        ROOT / "growth.png",
        title=f"MNIST-1D, three convolutions of {NARROW} or {WIDE} channels: validation accuracy",
    )
    events = read_events(ROOT / "grown" / "csv" / EVENTS_FILE)
    transitions = [event for event in events if event["event"] == "transition"]

    print()
    for name, result in results.items():
        accuracy, parameters = result["test_acc"], int(result["trainable_parameters"])
        flops = training_flops(name, steps, transitions)
        print(
            f"{name:>6}: test accuracy {accuracy:.3f}, {parameters} parameters, "
            f"{flops:.0f} billion training FLOPs, {result['seconds']:.0f} s"
        )
    stages = Counter(event["to"] for event in transitions)
    print(f" seeds: {stages['LOADING']} germinated, {stages['FOSSILIZED']} kept, {stages['CULLED']} culled")
    print(f"  logs: {ROOT} (tensorboard --logdir {ROOT}), picture: {picture}")
    print(f"report: {write_report(ROOT / 'grown')} (morpho report {ROOT / 'grown'})")
    if not stages["FOSSILIZED"] or results["grown"]["test_acc"] <= results["small"]["test_acc"]:
        print("Growth did not pay: no seed was kept, or the grown net is no better.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
