"""Does a trial earn its cost? One layer of a narrow net grows: by trial, the narrowest, or all a little.

.. code-block:: bash

    python -m benchmarks.trial --seeds 8 --json trial.json

Arms are paired by seed and all get the same learning rate. ``trial, charged`` trains fewer steps: those that its trials
took are taken off, so that all arms make the same total of optimizer steps.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import statistics
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_morpho import (
    BlueprintConfig,
    LifecycleConfig,
    MorphoCallback,
    Placed,
    Tamiyo,
    TelemetryConfig,
    Trial,
    Uniform,
    hybrid_layers,
)
from lightning_morpho.tasks.mnist1d import MNIST1D, ConvClassifier

STEPS = 1000
UNITS = 12
"""New hidden units of the layer that grows; shared among the layers by ``uniform``."""


class Classifier(ConvClassifier):
    """The host of MNIST-1D with a net of one's own."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__(lr=1e-2, schedule="wsd")
        self.net = net


def conv_net() -> nn.Sequential:
    """Three convolutions, the one in the middle narrow."""
    return nn.Sequential(
        *(nn.Conv1d(1, 8, 5, stride=2, padding=1), nn.ReLU()),
        *(nn.Conv1d(8, 3, 3, stride=2, padding=1), nn.ReLU()),
        *(nn.Conv1d(3, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(40, 10)),
    )


def deep_net() -> nn.Sequential:
    """Six linear layers, one of them narrow."""
    widths = (16, 20, 20, 20, 4, 20, 10)
    parts: list[nn.Module] = []
    for inputs, outputs in zip(widths, widths[1:], strict=False):
        parts += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*parts[:-1])


def teacher_data(count: int, seed: int) -> TensorDataset:
    """Classes that a random net of two hidden layers gives."""
    g = torch.Generator().manual_seed(77)
    first, second, last = (
        torch.randn(16, 40, generator=g),
        torch.randn(40, 40, generator=g) / 6,
        torch.randn(40, 10, generator=g),
    )
    x = torch.randn(count, 16, generator=torch.Generator().manual_seed(seed))
    logits = F.relu(F.relu(x @ first) @ second) @ last
    return TensorDataset(x, (logits - logits.mean(0)).argmax(1))


def loaders(task: str, seed: int) -> list[DataLoader[Any]]:
    """Training, validation and test data."""
    if task == "conv":
        module = MNIST1D(seed=seed)
        module.setup()
        return [module.train_dataloader(), module.val_dataloader(), module.test_dataloader()]
    sets = [teacher_data(count, number) for number, count in enumerate((8000, 2000, 4000))]
    order = torch.Generator().manual_seed(seed)
    return [DataLoader(part, 100, shuffle=not i, generator=order) for i, part in enumerate(sets)]


def run(task: str, policy: Tamiyo, hidden: int, seed: int, steps: int) -> tuple[float, int, int]:
    """One training: test accuracy in points, steps of its trials, parameters added."""
    L.seed_everything(seed, verbose=False)
    callback = MorphoCallback(
        tamiyo=policy,
        blueprint=BlueprintConfig(hidden=hidden),
        lifecycle=LifecycleConfig(active_ticks=100),  # nothing is judged: the place alone is compared
        telemetry=TelemetryConfig(table=False, events=False, log=False),
        every_n_steps=50,
    )
    trainer = L.Trainer(
        max_steps=steps,
        accelerator="cpu",
        callbacks=[callback],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    module = Classifier(conv_net() if task == "conv" else deep_net())
    train, validation, test = loaders(task, seed)
    trainer.fit(module, train, validation)
    cost = sum(entry["steps"] for entry in callback.state_dict()["engine"]["trials"])
    accuracy = trainer.test(module, test, verbose=False)[0]["test_acc"]
    return 100 * accuracy, cost, sum(layer.morpho.live_parameters for layer in hybrid_layers(module).values())


def arms(task: str, seed: int) -> dict[str, dict[str, float]]:
    """All arms of one seed."""
    places = 3 if task == "conv" else 5
    found = {
        "uniform": run(task, Uniform(), UNITS // places, seed, STEPS),
        "narrowest": run(task, Placed(), UNITS, seed, STEPS),
        "trial": run(task, Trial(), UNITS, seed, STEPS),
    }
    found["trial, charged"] = run(task, Trial(), UNITS, seed, STEPS - found["trial"][1])
    return {name: dict(zip(("accuracy", "cost", "added"), values, strict=True)) for name, values in found.items()}


def told(rows: list[dict[str, dict[str, float]]], arm: str, other: str) -> str:
    """Mean paired difference and its 95 % interval."""
    differences = [row[arm]["accuracy"] - row[other]["accuracy"] for row in rows]
    if len(differences) < 2:
        return f"{differences[0]:+.2f}"
    quantile = {8: 2.365, 12: 2.201}.get(len(rows), 2.1)
    return (
        f"{statistics.mean(differences):+.2f} ± {quantile * statistics.stdev(differences) / math.sqrt(len(rows)):.2f}"
    )


def main() -> None:
    """Run all seeds of both tasks and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    results = {task: [arms(task, seed) for seed in range(options.seeds)] for task in ("conv", "deep")}
    for task, rows in results.items():
        print(f"{task}: points of test accuracy over {len(rows)} seeds")
        for arm in rows[0]:
            mean = {key: statistics.mean(row[arm][key] for row in rows) for key in ("accuracy", "cost", "added")}
            against = ", ".join(f"{told(rows, arm, other)} against {other}" for other in ("uniform", "narrowest"))
            print(f"  {arm:15} {mean['accuracy']:.2f} ({against}); {mean['cost']:.0f} steps of trials")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(results, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
