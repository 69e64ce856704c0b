"""Train the same narrow net twice, without and with growth, and draw what happened.

Writes ``runs/demo/{static,grown}`` (CSV and TensorBoard logs, events) and ``runs/demo/growth.png``.
"""

import logging
import shutil
import sys
import time
from collections import Counter
from pathlib import Path

from hydra import compose, initialize_config_module

from lightning_morpho.telemetry import EVENTS_FILE, read_events
from lightning_morpho.telemetry.plots import plot_growth
from lightning_morpho.train import train

ROOT = Path("runs/demo")
RUNS = {"static": ["~morpho"], "grown": []}


def run(name: str, overrides: list[str]) -> dict[str, float]:
    """Train one of the two nets; both see the same batches for the same number of steps."""
    folder = ROOT / name
    shutil.rmtree(folder, ignore_errors=True)
    logs = ["logger=csv_tensorboard", f"output_dir={folder}"]
    return train(compose("train", ["experiment=mnist1d", *logs, *overrides]))


def count_stages(events: Path) -> Counter[str]:
    """Number of seeds that entered each stage."""
    return Counter(event["to"] for event in read_events(events) if event["event"] == "transition")


def main() -> int:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    results = {}
    with initialize_config_module("lightning_morpho.configs", version_base="1.3"):
        for name, overrides in RUNS.items():
            print(f"\n=== {name} ===", flush=True)
            start = time.perf_counter()
            results[name] = run(name, overrides)
            results[name]["seconds"] = time.perf_counter() - start
    picture = plot_growth(
        {name: ROOT / name / "csv" for name in RUNS},
        ROOT / "growth.png",
        title="MNIST-1D, three convolutions of 4 channels: validation accuracy",
    )

    print()
    for name, result in results.items():
        accuracy, parameters = result["test_acc"], int(result["trainable_parameters"])
        print(f"{name:>6}: test accuracy {accuracy:.3f}, {parameters} parameters, {result['seconds']:.0f} s")
    stages = count_stages(ROOT / "grown" / "csv" / EVENTS_FILE)
    print(f" seeds: {stages['LOADING']} germinated, {stages['FOSSILIZED']} kept, {stages['CULLED']} culled")
    print(f"  logs: {ROOT} (tensorboard --logdir {ROOT}), picture: {picture}")
    if not stages["FOSSILIZED"] or results["grown"]["test_acc"] <= results["static"]["test_acc"]:
        print("Growth did not pay: no seed was kept, or the grown net is no better.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
