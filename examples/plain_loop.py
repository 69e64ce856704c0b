"""A plain PyTorch loop, without Lightning: two spirals, and a net too narrow to tell them apart until it grows.

python examples/plain_loop.py

Printed, among other lines, in ten seconds on one core:

step 300: accuracy 0.867
step 450: layer 2 DORMANT -> LOADING (one round at 15% of training)
step 600: accuracy 0.992
step 700: layer 2 ACTIVE -> FOSSILIZED (proven gain of the group, judged with 2[0], 4[0])
exported: accuracy 0.997 Sequential(
  (0): Linear(in_features=2, out_features=14, bias=True)
"""

import argparse
import math

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lightning_morpho import (
    GrowthEngine,
    MorphoConfig,
    OptimizerLink,
    Uniform,
    confirm_pairs_,
    export,
    hybrid_layers,
    morph_,
)
from lightning_morpho.credit import measure
from lightning_morpho.telemetry.events import AnyEvent

STEPS_A_TICK = 50


def spirals(samples: int, seed: int) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    y = torch.randint(2, (samples,), generator=draw)
    radius = torch.rand(samples, generator=draw).sqrt()
    angle = 3 * math.pi * radius + math.pi * y
    x = torch.stack([radius * angle.cos(), radius * angle.sin()], 1)
    return 2 * (x + 0.02 * torch.randn(x.shape, generator=draw)), y


def tell(event: AnyEvent) -> None:
    told = event.to_dict()
    if told["event"] == "transition":
        print(f"step {event.step}: layer {told['layer']} {told['from']} -> {told['to']} ({told['reason']})")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=3000)
    steps = parser.parse_args(argv).steps
    torch.manual_seed(0)
    (x, y), (x_val, y_val) = spirals(2000, 0), spirals(1000, 1)
    net = nn.Sequential(nn.Linear(2, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2))

    morph_(net, MorphoConfig())  # 1. swap the layers, before the optimizer is made
    confirm_pairs_(net, (x[:8],))  #    and confirm which feed which, on any batch
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    layers = hybrid_layers(net)
    engine = GrowthEngine(layers, Uniform(), OptimizerLink(layers, [optimizer]), on_event=tell)

    def held_out(batch: tuple[Tensor, Tensor]) -> Tensor:
        return cross_entropy(net(batch[0]), batch[1])

    def measurer(seeds, groups):
        batches = list(zip(x_val.split(100), y_val.split(100), strict=True))
        return measure(net, layers, [*((key,) for key in seeds), *groups], batches, held_out, confidence=0.95)

    def accuracy(model: nn.Module) -> float:
        with torch.no_grad():
            return (model(x_val).argmax(1) == y_val).float().mean().item()

    for step in range(1, steps + 1):
        chosen = torch.randint(len(x), (100,))
        optimizer.zero_grad()
        cross_entropy(net(x[chosen]), y[chosen]).backward()
        optimizer.step()
        if step % STEPS_A_TICK == 0:  # 2. ask Tamiyo now and then
            with torch.no_grad():
                loss = held_out((x_val, y_val)).item()
            engine.tick(step=step, total_steps=steps, loss=loss, measure=measurer)
        if step % (steps // 10) == 0:
            print(f"step {step}: accuracy {accuracy(net):.3f}")
    engine.close()
    plain = export(net)  # 3. a plain model
    print(f"exported: accuracy {accuracy(plain):.3f}", plain)


if __name__ == "__main__":
    main()
