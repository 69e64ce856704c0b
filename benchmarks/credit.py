"""Leave-one-out of many seeds: a pass for each against many in one pass."""

import torch
from torch import Tensor, nn

from benchmarks.harness import Bench, main
from lightning_morpho import BlueprintConfig, LayersConfig, MorphoConfig, hybrid_layers, morph_
from lightning_morpho.credit import measure


def net(width: int, depth: int) -> nn.Sequential:
    """An MLP with a classifier on top."""
    hidden = [module for _ in range(depth) for module in (nn.Linear(width, width), nn.ReLU())]
    return nn.Sequential(*hidden, nn.Linear(width, 10))


def grown(model: nn.Sequential, seeds: int) -> nn.Sequential:
    """Its seeds live, in every layer."""
    morph_(model, MorphoConfig(layers=LayersConfig(num_seeds=seeds), blueprint=BlueprintConfig(kind="neurons")))
    for layer in hybrid_layers(model).values():
        layer.request_germination()
        for parameter in layer.morpho.parameters():
            nn.init.normal_(parameter, std=0.05)
    return model


def one_size(bench: Bench, width: int, rows: int, batches: int) -> None:
    model = grown(net(width, depth=3), seeds=4).to(bench.device)
    layers = hybrid_layers(model)
    groups = [((name, chunk),) for name, layer in layers.items() for chunk in range(layer.num_seeds)]
    data = [
        (torch.randn(rows, width, device=bench.device), torch.randint(10, (rows,), device=bench.device))
        for _ in range(batches)
    ]

    def loss(batch: tuple[Tensor, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    def by(replicas: int) -> None:
        measure(model, layers, groups, data, loss, confidence=0.95, replicas=replicas)

    variants = {"one by one": lambda: by(1), "8 a pass": lambda: by(8), "16 a pass": lambda: by(16)}
    bench.compare("credit", variants, bare="one by one", D=width, M=rows, seeds=len(groups), batches=batches)


def run(bench: Bench) -> None:
    sizes = ((32, 32), (128, 64), (512, 128), (2048, 512))
    last = 2 if bench.quick else 4 if bench.device.type == "cuda" else 3
    for width, rows in sizes[:last]:
        one_size(bench, width, rows, batches=4 if bench.quick else 8)


if __name__ == "__main__":
    main(run)
