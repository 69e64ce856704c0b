"""Whole training steps, optimizer included: a dormant MLP, and a convolution with some live seeds."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.harness import Bench, Run, growing, main


def step(model: nn.Module, x: Tensor, target: Tensor) -> Run:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, fused=True)

    def run() -> None:
        optimizer.zero_grad()
        F.mse_loss(model(x), target).backward()
        optimizer.step()

    return run


def mlp(bench: Bench, features: int, rows: int) -> None:
    def net(grow: bool) -> nn.Module:
        layers = [nn.Linear(features, features, device=bench.device) for _ in range(2)]
        if grow:
            layers = [growing(layer, min(features, 1000), germinate=False) for layer in layers]
        return nn.Sequential(layers[0], nn.ReLU(), layers[1])

    x, target = (torch.randn(rows, features, device=bench.device) for _ in range(2))
    variants = {"bare": step(net(False), x, target), "dormant": step(net(True), x, target)}
    bench.compare("train step, MLP", variants, D=features, M=rows)


def convolution(bench: Bench, memory_format: torch.memory_format) -> None:
    def net(grow: bool) -> nn.Module:
        layer = nn.Conv2d(64, 128, 3, padding=1, device=bench.device).to(memory_format=memory_format)
        return growing(layer, 64, list(range(0, 64, 4))) if grow else layer

    x = torch.randn(32, 64, 32, 32, device=bench.device).to(memory_format=memory_format)
    target = torch.randn(32, 128, 32, 32, device=bench.device).to(memory_format=memory_format)
    for half in (False, True) if bench.device.type == "cuda" else (False,):
        variants = {"bare": step(net(False), x, target), "16 of 64 live": step(net(True), x, target)}
        if half:
            variants = {key: autocast(run) for key, run in variants.items()}
        layout = str(memory_format).removeprefix("torch.")
        precision = "bfloat16 autocast" if half else "float32"
        bench.compare("train step, convolution", variants, layout=layout, dtype=precision)
        if bench.device.type == "cuda":
            bench.compare("train step, convolution", variants, graph=True, layout=layout, dtype=precision)


def autocast(run: Run) -> Run:
    def wrapped() -> None:
        with torch.autocast("cuda", torch.bfloat16):
            run()

    return wrapped


def run(bench: Bench) -> None:
    cpu = bench.device.type == "cpu"
    for features, rows in [(128, 32)] if bench.quick else [(128, 32), (4096, 64 if cpu else 8192)]:
        mlp(bench, features, rows)
    if cpu and bench.quick:
        return
    for memory_format in (torch.contiguous_format, torch.channels_last):
        convolution(bench, memory_format)


if __name__ == "__main__":
    main(run)
