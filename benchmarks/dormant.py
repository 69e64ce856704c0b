"""What a layer whose seeds are all dormant costs, with and without telemetry."""

import torch
from torch import nn

from benchmarks.harness import Bench, Run, growing, inference, main, training_pass
from lightning_morpho import HybridKasminaLayer
from lightning_morpho.telemetry.sampling import LayerSampler

EVERY = 16


def observed(layer: HybridKasminaLayer, single: Run) -> Run:
    """One pass in sixteen is looked at, as the callback does it; timed as sixteen passes."""
    sampler = LayerSampler(layer, layer.weight.device, activations=True, gradients=False, detailed=False)

    def run() -> None:
        sampler.open()
        single()
        sampler.close()
        for _ in range(EVERY - 1):
            single()

    return run


def sixteen(single: Run) -> Run:
    def run() -> None:
        for _ in range(EVERY):
            single()

    return run


def run(bench: Bench) -> None:
    cpu = bench.device.type == "cpu"
    sizes = [(128, 32)] if bench.quick else [(128, 32), (1024, 256), (4096, 64 if cpu else 8192)]
    for features, rows in sizes:
        torch.manual_seed(0)
        bare, base = (nn.Linear(features, features, device=bench.device) for _ in range(2))
        layer = growing(base, min(features, 1000), germinate=False)
        x = torch.randn(rows, features, device=bench.device)
        size = {"D": features, "M": rows, "N": layer.num_seeds}
        for name, make in (("infer", inference), ("train", training_pass)):
            pair = {"bare": make(bare, x), "dormant": make(layer, x)}
            bench.compare(f"dormant, {name}", pair, **size)
            looked = {"bare": sixteen(make(bare, x)), "telemetry 1 in 16": observed(layer, make(layer, x))}
            bench.compare(f"dormant, {name}, x16", looked, **size)


if __name__ == "__main__":
    main(run)
