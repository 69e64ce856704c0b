"""Statistics of a layer's output against one read of it."""

import torch

from benchmarks.harness import Bench, main
from lightning_morpho import ChunkManager, ChunkStatistics


def one_dtype(bench: Bench, rows: int, features: int, dtype: torch.dtype) -> None:
    cuda = bench.device.type == "cuda"
    # Several tensors in turn, so that caches hold none of them.
    samples = [torch.randn(rows, features, device=bench.device, dtype=dtype) for _ in range(4 if cuda else 2)]
    targets = [torch.empty_like(sample) for sample in samples]
    statistics = ChunkStatistics(ChunkManager(features, 1024)).to(bench.device)

    def update() -> None:
        for sample in samples:
            statistics.update(sample)

    def copy() -> None:
        for sample, target in zip(samples, targets, strict=True):
            target.copy_(sample)

    def three_passes() -> None:
        for sample in samples:
            sample.float().mean(0), sample.float().var(0), sample.amax(0)

    size = {"D": features, "M": rows, "dtype": str(dtype).removeprefix("torch."), "calls": len(samples)}
    variants = {"copy": copy, "statistics": update, "three passes": three_passes}
    for graph in (False, True) if cuda else (False,):
        times = bench.compare("telemetry pass", variants, bare="copy", graph=graph, **size)
        facts = {"achieved": times["copy"] / 2 / times["statistics"], "graph": graph}
        bench.add({"name": "share of one read", "variant": "statistics", "us": times["statistics"]} | size | facts)


def run(bench: Bench) -> None:
    cuda = bench.device.type == "cuda"
    rows, features = (8192, 4096) if cuda and not bench.quick else (2048, 2048)
    for dtype in (torch.float32, torch.bfloat16) if cuda else (torch.float32,):
        one_dtype(bench, rows, features, dtype)


if __name__ == "__main__":
    main(run)
