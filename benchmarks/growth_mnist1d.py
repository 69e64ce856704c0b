"""MNIST-1D: three convolutions of 4 channels, grown to 25 at a quarter of training, against 25 from the start.

Arms: ``static`` (25 channels from step 0), ``grown`` (spans, linked, warmed up), ``unlinked``, ``unwarmed``. The
first two sweep the same learning rates, the best on validation counts; the other two stand beside them at 0.03.
1 000 steps of 100 samples, paired random seeds.

python benchmarks/growth_mnist1d.py
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch
from growth_lab import Split, accuracy, best, drop_links, germinate, interval, prepare, train, write
from torch import nn

from lightning_morpho import BlueprintConfig, MorphoConfig, WarmupConfig
from lightning_morpho.tasks import MNIST1D, ConvClassifier

STEPS, BATCH = 1000, 100
ARMS = {"static": (0.01, 0.03, 0.06), "grown": (0.01, 0.03, 0.06), "unlinked": (0.03,), "unwarmed": (0.03,)}


def splits() -> tuple[Split, Split, Split]:
    """Training, validation and test samples."""
    data = MNIST1D()
    data.setup()
    return data.train.dataset.tensors, data.validation.tensors, data.test.tensors  # type: ignore[attr-defined]


def run(arm: str, rate: float, seed: int, data: tuple[Split, Split, Split]) -> dict[str, float]:
    """Train one net."""
    training, validation, test = data
    torch.manual_seed(seed)
    model: nn.Module = ConvClassifier(channels=25 if arm == "static" else 4).net
    options: dict[str, Any] = {}
    if arm != "static":
        warmup = WarmupConfig(steps=0) if arm == "unwarmed" else WarmupConfig(steps=100, min_steps=100)
        prepare(model, MorphoConfig(blueprint=BlueprintConfig(hidden=21), warmup=warmup, seed=seed), training[0][:8])

        def grow(model: nn.Module) -> None:
            germinate(model)
            if arm == "unlinked":
                drop_links(model)

        options = {"grow_at": STEPS // 4, "grow": grow}
    train(model, training, STEPS, rate, seed, BATCH, **options)
    return {"val": accuracy(model, validation), "test": accuracy(model, test)}


def main() -> None:
    """Run all arms and write ``results/growth_mnist1d.json``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=20)
    seeds = range(parser.parse_args().seeds)
    torch.set_num_threads(1)
    start, data = time.perf_counter(), splits()
    runs: dict[str, dict[str, list[dict[str, float]]]] = {
        arm: {str(rate): [] for rate in rates} for arm, rates in ARMS.items()
    }
    for seed in seeds:
        for arm, rates in ARMS.items():
            for rate in rates:
                runs[arm][str(rate)].append(run(arm, rate, seed, data))
        chosen = {arm: best(runs[arm]) for arm in ARMS}
        summary = {
            arm: {"rate": rate, "test": sum(r["test"] for r in made) / len(made)}
            for arm, (rate, made) in chosen.items()
        }
        if seed:
            for arm in list(ARMS)[1:]:
                pairs = zip(chosen[arm][1], chosen["static"][1], strict=True)
                summary[arm] |= {"minus_static": interval([a["test"] - b["test"] for a, b in pairs])}
        print(seed, summary, flush=True)
        write("growth_mnist1d", {"seeds": seed + 1, "summary": summary, "runs": runs}, start)


if __name__ == "__main__":
    main()
