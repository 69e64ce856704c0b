"""A trained host that no longer suffices: grown, against a fresh net of the final size with the same steps.

Letter Recognition (UCI): 16 features, 26 letters, 20 000 samples: 14 000 to train, 3 000 to choose the learning
rate, 3 000 to test. The host, 16-8-26, is trained for 3 300 steps; then it grows to 12 or 16 hidden units, and
trains on for 110, 330 or 1 100 steps, as the fresh net does. Both arms sweep the same learning rates.

The data are a table of the R package mlbench (Debian: r-cran-mlbench, LetterRecognition.rda). As CSV:

python -c "import rdata; rdata.read_rda('LetterRecognition.rda')['LetterRecognition'].to_csv('letter.csv', index=False)"
python benchmarks/growth_letter.py --data letter.csv
"""

from __future__ import annotations

import argparse
import copy
import csv
import time
from pathlib import Path

import torch
from growth_lab import Split, accuracy, best, germinate, interval, prepare, train, write
from torch import nn

from lightning_morpho import BlueprintConfig, MorphoConfig, WarmupConfig

SEEDS = range(12)
RATES = (0.01, 0.03, 0.1, 0.3)
BUDGETS = (110, 330, 1100)
SIZES = (12, 16)
BATCH = 128


def load(path: Path) -> tuple[Split, Split, Split]:
    """Training, validation and test samples, standardised by the training ones."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    label = next(iter(rows[0]))
    x = torch.tensor([[float(v) for k, v in row.items() if k != label] for row in rows])
    y = torch.tensor([ord(row[label]) - ord("A") for row in rows])
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x, y = x[order], y[order]
    x = (x - x[:14000].mean(0)) / x[:14000].std(0)
    return (x[:14000], y[:14000]), (x[14000:17000], y[14000:17000]), (x[17000:], y[17000:])


def net(hidden: int, seed: int) -> nn.Module:
    """One hidden layer."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(16, hidden), nn.ReLU(), nn.Linear(hidden, 26))


def main() -> None:
    """Run all arms and write ``results/growth_letter.json``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=len(SEEDS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    start, seeds = time.perf_counter(), range(arguments.seeds)
    training, validation, test = load(arguments.data)
    hosts = {seed: net(8, seed) for seed in seeds}
    for seed, host in hosts.items():
        train(host, training, 3300, 0.01, seed, BATCH)
    cells, runs = {}, {}
    for budget in BUDGETS:
        for size in SIZES:
            arms: dict[str, dict[str, list[dict[str, float]]]] = {"grown": {}, "fresh": {}}
            for rate in RATES:
                for arm, made in arms.items():
                    made[str(rate)] = []
                    for seed in seeds:
                        if arm == "fresh":
                            model = net(size, 100 + seed)
                            train(model, training, budget, rate, 1000 + seed, BATCH)
                        else:
                            # The host has steps behind it, so a newborn may warm up over a fifth of the new ones.
                            warmup = WarmupConfig(steps=budget // 5, min_steps=budget // 5)
                            config = MorphoConfig(blueprint=BlueprintConfig(hidden=size - 8), warmup=warmup, seed=seed)
                            model = prepare(copy.deepcopy(hosts[seed]), config, training[0][:8])
                            train(model, training, budget, rate, 1000 + seed, BATCH, 0, germinate)
                        made[str(rate)].append({"val": accuracy(model, validation), "test": accuracy(model, test)})
            (rate_g, grown), (rate_f, fresh) = best(arms["grown"]), best(arms["fresh"])
            differences = [g["test"] - f["test"] for g, f in zip(grown, fresh, strict=True)]
            key = f"{size} units, {budget} steps"
            cells[key] = interval(differences) | {"rate_grown": rate_g, "rate_fresh": rate_f}
            runs[key] = arms
            print(key, cells[key], flush=True)
            host = [accuracy(model, test) for model in hosts.values()]
            write("growth_letter", {"cells": cells, "host_test": host, "runs": runs}, start)


if __name__ == "__main__":
    main()
