"""Layers with live seeds against bare ones: many seeds, few seeds, large and small layers."""

import torch
from torch import nn

from benchmarks.harness import Bench, Run, growing, inference, main, training_pass
from benchmarks.loop import LoopLayer


def linear(bench: Bench, features: int, dtype: torch.dtype) -> nn.Linear:
    return nn.Linear(features, features, device=bench.device, dtype=dtype)


def in_one_thread(run: Run) -> Run:
    """Autograd takes another thread for a GPU: two processor cores then hand Python's objects to and fro."""

    def alone() -> None:
        with torch.autograd.set_multithreading_enabled(False):
            run()

    return alone


def thousand_seeds(bench: Bench, dtype: torch.dtype, rows: int) -> None:
    """1000 seeds of 2 or 3 features: bound by launches on a GPU."""
    features, seeds = 2048, 1000
    bare, layer = linear(bench, features, dtype), growing(linear(bench, features, dtype), seeds)
    loop = LoopLayer(linear(bench, features, dtype), seeds)
    x = torch.randn(rows, features, device=bench.device, dtype=dtype)
    size = {"D": features, "M": rows, "N": seeds, "dtype": str(dtype).removeprefix("torch.")}
    for name, make in (("forward", inference), ("forward+backward", training_pass)):
        variants = {"bare": make(bare, x), "all live": make(layer, x)}
        bench.compare(f"1000 seeds, {name}", variants, **size)
        if bench.device.type == "cuda":
            bench.compare(f"1000 seeds, {name}", variants, graph=True, **size)
            if make is training_pass:
                alone = {key: in_one_thread(run) for key, run in variants.items()}
                bench.compare(f"1000 seeds, {name}, backward in the caller's thread", alone, **size)
        rounds, bench.rounds = bench.rounds, 3 if bench.device.type == "cuda" else bench.rounds
        bench.compare(f"1000 seeds, {name}", {"per-seed loop": make(loop, x)}, bare=None, **size)
        bench.rounds = rounds


def some_of_many(bench: Bench) -> None:
    """64 of 1024 seeds, next to each other or spread over the layer."""
    features, rows, dtype = 4096, 8192, torch.bfloat16
    bare, x = linear(bench, features, dtype), torch.randn(rows, features, device=bench.device, dtype=dtype)
    spread = torch.randperm(1024, generator=torch.Generator().manual_seed(0))[:64].tolist()
    layers = {
        "64 neighbours": growing(linear(bench, features, dtype), 1024, list(range(64))),
        "64 spread": growing(linear(bench, features, dtype), 1024, sorted(spread)),
    }
    size = {"D": features, "M": rows, "N": 1024}
    for name, make in (("forward", inference), ("forward+backward", training_pass)):
        variants = {"bare": make(bare, x)} | {key: make(layer, x) for key, layer in layers.items()}
        bench.compare(f"64 of 1024 live, {name}", variants, **size)


def run(bench: Bench) -> None:
    cuda = bench.device.type == "cuda"
    for rows in (256,) if bench.quick else (256, 32):
        thousand_seeds(bench, torch.float32, rows)
    if cuda:
        thousand_seeds(bench, torch.bfloat16, 256)
        some_of_many(bench)


if __name__ == "__main__":
    main(run)
