"""Layers widened by spans against the plain net of the same width, which is what they fold into, and the narrow one.

Where gromo is installed (`benchmarks/growth_gromo.py` says how) its nets take turns with ours: while it tries the same
number of new units (`extended_forward`), and after it has put them into its layers.
"""

import importlib.util
from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.harness import Bench, Run, inference, kept_for_backward, main, training_pass
from lightning_morpho import (
    BlueprintConfig,
    BudgetConfig,
    MorphoConfig,
    Stage,
    confirm_pairs_,
    export,
    hybrid_layers,
    morph_,
)

SIZES: dict[str, tuple[Callable[[int], nn.Module], int, int, tuple[int, ...]]] = {
    "MLP 1024": (lambda width: mlp(1024, width), 1024, 256, (4096, 1024)),
    "feed-forward 512-2048": (lambda width: feed_forward(512, width), 2048, 512, (8, 1024, 512)),
    "convolutions 64": (lambda width: convolutions(64, width), 64, 16, (32, 64, 32, 32)),
}
"""Net of a hidden width, that width, units that a span adds, shape of a batch."""

QUICK: dict[str, tuple[Callable[[int], nn.Module], int, int, tuple[int, ...]]] = {
    "MLP 64": (lambda width: mlp(64, width), 64, 32, (64, 64)),
}

CPU = QUICK | {
    "MLP 1024": (lambda width: mlp(1024, width), 1024, 256, (256, 1024)),
    "feed-forward 512-2048": (lambda width: feed_forward(512, width), 2048, 512, (256, 512)),
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


def widened(net: nn.Module, units: int, x: Tensor, *, keep: bool = False) -> nn.Module:
    """The net with one span that gives something else than zero: live, or a fossil that trains on."""
    morph_(
        net,
        MorphoConfig(blueprint=BlueprintConfig(kind="span", hidden=units), budget=BudgetConfig(parameters=10_000_000)),
    )
    confirm_pairs_(net, x[:2])
    (consumer,) = (layer for layer in hybrid_layers(net).values() if len(layer.morpho.beds))
    consumer.request_germination()
    nn.init.normal_(consumer.morpho.beds[0].w_out, std=0.01)
    if keep:
        while not consumer.morpho.state.where(Stage.ACTIVE).size:
            consumer.advance()
        consumer.morpho.keep(range(consumer.num_seeds), reason="benchmark")
    return net


def nets_of_gromo(plain: nn.Module, units: int) -> dict[str, nn.Module]:
    """gromo's nets of the same two layers; none without gromo, or for what its multilayer perceptron is not."""
    first, activation, last = plain[0], plain[1], plain[-1]
    if importlib.util.find_spec("gromo") is None or not isinstance(first, nn.Linear):
        return {}
    from gromo.containers.growing_mlp import GrowingMLP

    nets = {}
    for name in ("gromo, units tried", "gromo, units taken"):
        sizes = first.in_features, last.out_features, first.out_features
        net = GrowingMLP(*sizes, 1, activation=activation, flatten=False, device=first.weight.device)
        net.layers[1].create_layer_extensions(units)
        net.set_scaling_factor(1.0)
        if name == "gromo, units tried":
            net.forward = net.extended_forward
        else:
            net.layers[1].apply_change(extension_size=units)
            net.layers[1].delete_update(include_previous=True)
        nets[name] = net
    return nets


def autocast(run: Run, device: torch.device) -> Run:
    def wrapped() -> None:
        with torch.autocast(device.type, torch.bfloat16):
            run()

    return wrapped


def sizes(bench: Bench) -> dict[str, tuple[Callable[[int], nn.Module], int, int, tuple[int, ...]]]:
    if bench.quick:
        return QUICK
    return SIZES if bench.device.type == "cuda" else CPU


def run(bench: Bench) -> None:
    cuda = bench.device.type == "cuda"
    for name, (build, width, units, shape) in sizes(bench).items():
        x = torch.randn(shape, device=bench.device)
        grown, fossil = (widened(build(width).to(bench.device), units, x, keep=keep) for keep in (False, True))
        narrow = build(width).to(bench.device)
        nets = {"plain, wide": export(grown), "grown": grown, "grown, kept": fossil, "plain, narrow": narrow}
        nets |= nets_of_gromo(narrow, units)
        first = len(bench.rows)
        for half in (False, True) if cuda else (False,):
            for title, make in (("forward", inference), ("training pass", training_pass)):
                variants = {key: make(net, x) for key, net in nets.items()}
                if half:
                    variants = {key: autocast(run, bench.device) for key, run in variants.items()}
                size = {"hidden": width, "units": units, "dtype": "bfloat16 autocast" if half else "float32"}
                bench.compare(f"{name}, {title}", variants, bare="plain, wide", **size)
                if cuda:
                    bench.compare(f"{name}, {title}", variants, bare="plain, wide", graph=True, **size)
        for key, net in nets.items():
            kept = kept_for_backward(net, x) / 2**20
            print(f"{name:<28} {key:<24} {kept:12.2f} MiB kept for the backward pass")
            for row in bench.rows[first:]:
                row |= {"kept_mib": kept} if row["variant"] == key and "training" in row["name"] else {}


if __name__ == "__main__":
    main(run)
