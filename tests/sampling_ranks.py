"""Run by ``test_sampling.py`` as a script: one rank of two that sample different data of the same layers."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from hosts import leave_processes
from lightning_morpho import BlueprintConfig, HybridKasminaLayer, LayersConfig, MorphoConfig
from lightning_morpho.integrations import gather_objects
from lightning_morpho.telemetry import LayerGrowth, RunGrowth, Sampler, SeedCredit, SeedStates

SIZES = {0: {"a": (5, 3), "b": (4,)}, 1: {"a": (7,), "b": ()}}  # rank -> layer -> positions of each batch


def layers() -> dict[str, HybridKasminaLayer]:
    torch.manual_seed(0)
    config = MorphoConfig(layers=LayersConfig(num_seeds=2), blueprint=BlueprintConfig(kind="mlp"))
    made = {name: HybridKasminaLayer(nn.Linear(4, 6), config, name) for name in "ab"}
    for layer in made.values():
        layer.request_germination([1])
        nn.init.normal_(layer.morpho.beds[0].w_out)
    return made


def sample(ranks: list[int]) -> dict[str, torch.Tensor]:
    made = layers()
    sampler = Sampler(made, 1, torch.device("cpu"), detailed=True)
    optimizer = torch.optim.SGD([p for layer in made.values() for p in layer.parameters()], lr=0.0)
    for rank in ranks:
        for name, sizes in SIZES[rank].items():
            for index, size in enumerate(sizes):
                draw = torch.Generator().manual_seed(100 * rank + 10 * index + ord(name))
                sampler.open(0)
                made[name](torch.randn(size, 4, generator=draw)).square().mean().backward()
                sampler.take_gradients(optimizer)
                sampler.close()
                optimizer.zero_grad()
    sampler.collect(gather_objects)
    found = {f"{n}/{key}": values for n, layer in made.items() for key, values in layer.morpho.health.items()}
    return found | growth(made, ranks)


def growth(made: dict[str, HybridKasminaLayer], ranks: list[int]) -> dict[str, torch.Tensor]:
    """What the metrics of growth say, which all ranks see alike, and of credit, which each sees in data of its own."""
    states, layer, run, credit = SeedStates(2), LayerGrowth(), RunGrowth(100), SeedCredit()
    states.update(made["a"])
    layer.update(made["a"])
    run.update(made)
    for rank in ranks:
        losses = torch.rand(3 + rank, 2, generator=torch.Generator().manual_seed(rank))
        credit.update(*losses.unbind(1))
    metrics = {"states": states, "layer": layer, "run": run, "credit": credit}
    return {f"{of}/{name}": value for of, m in metrics.items() for name, value in m.compute().items()}


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, rank = Path(sys.argv[1]), int(sys.argv[2])
    if rank == 0:
        torch.save(sample([0, 1]), folder / "alone.pt")
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.save(sample([rank]), folder / f"{rank}.pt")
    leave_processes()
