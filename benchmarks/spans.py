"""Layers widened by spans against the plain net of the same width, which is what they fold into, and the narrow one."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.harness import Bench, Run, main, training_pass
from lightning_morpho import BlueprintConfig, BudgetConfig, MorphoConfig, confirm_pairs_, export, hybrid_layers, morph_

SIZES: dict[str, tuple[Callable[[int], nn.Module], int, int, tuple[int, ...]]] = {
    "MLP 1024": (lambda width: mlp(1024, width), 1024, 256, (4096, 1024)),
    "feed-forward 512-2048": (lambda width: feed_forward(512, width), 2048, 512, (8, 1024, 512)),
    "convolutions 64": (lambda width: convolutions(64, width), 64, 16, (32, 64, 32, 32)),
}
"""Net of a hidden width, that width, units that a span adds, shape of a batch."""

QUICK: dict[str, tuple[Callable[[int], nn.Module], int, int, tuple[int, ...]]] = {
    "MLP 64": (lambda width: mlp(64, width), 64, 32, (64, 64)),
}


def mlp(features: int, hidden: int) -> nn.Module:
    return nn.Sequential(nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, features))


def feed_forward(features: int, hidden: int) -> nn.Module:
    return nn.Sequential(nn.Linear(features, hidden), nn.GELU(), nn.Linear(hidden, features))


def convolutions(channels: int, hidden: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(channels, hidden, 3, padding=1, bias=False),
        nn.BatchNorm2d(hidden),
        nn.ReLU(),
        nn.Conv2d(hidden, channels, 3, padding=1),
    )


def widened(net: nn.Module, units: int, x: Tensor) -> nn.Module:
    """The net with one live span that gives something else than zero."""
    morph_(
        net,
        MorphoConfig(blueprint=BlueprintConfig(kind="span", hidden=units), budget=BudgetConfig(parameters=10_000_000)),
    )
    confirm_pairs_(net, x[:2])
    (consumer,) = (layer for layer in hybrid_layers(net).values() if len(layer.morpho.beds))
    consumer.request_germination()
    nn.init.normal_(consumer.morpho.beds[0].w_out, std=0.01)
    return net


def autocast(run: Run, device: torch.device) -> Run:
    def wrapped() -> None:
        with torch.autocast(device.type, torch.bfloat16):
            run()

    return wrapped


def run(bench: Bench) -> None:
    cuda = bench.device.type == "cuda"
    for name, (build, width, units, shape) in (QUICK if bench.quick or not cuda else SIZES).items():
        x = torch.randn(shape, device=bench.device)
        grown = widened(build(width).to(bench.device), units, x)
        nets = {"plain, wide": export(grown), "grown": grown, "plain, narrow": build(width).to(bench.device)}
        for half in (False, True) if cuda else (False,):
            variants = {key: training_pass(net, x) for key, net in nets.items()}
            if half:
                variants = {key: autocast(run, bench.device) for key, run in variants.items()}
            size = {"hidden": width, "units": units, "dtype": "bfloat16 autocast" if half else "float32"}
            bench.compare(f"{name}, training pass", variants, bare="plain, wide", **size)
            if cuda:
                bench.compare(f"{name}, training pass", variants, bare="plain, wide", graph=True, **size)


if __name__ == "__main__":
    main(run)
