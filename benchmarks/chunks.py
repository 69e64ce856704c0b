"""Splitting a feature axis into chunks."""

import torch

from benchmarks.harness import Bench, main
from lightning_morpho import ChunkManager


def run(bench: Bench) -> None:
    for features, seeds in ((2048, 512), (2048, 1000), (16384, 10_000), (100_000, 1)):
        chunks, x = ChunkManager(features, seeds), torch.randn(32, features, device=bench.device)
        bench.compare("split", {"two stacked views": lambda c=chunks, x=x: c.split(x)}, bare=None, D=features, N=seeds)
    chunks, x = ChunkManager(2048, 1000), torch.randn(32, 2048, device=bench.device)
    bench.compare("split", {"list of views": lambda: chunks.split_list(x)}, bare=None, D=2048, N=1000)


if __name__ == "__main__":
    main(run)
