"""What the governor costs: a training step with it, and a snapshot against a training step."""

import torch
from torch import nn

from benchmarks.harness import Bench, main
from lightning_morpho import Governor, GovernorConfig


def one_size(bench: Bench, width: int, rows: int) -> None:
    model = nn.Sequential(*[m for _ in range(4) for m in (nn.Linear(width, width), nn.ReLU())]).to(bench.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    x = torch.randn(rows, width, device=bench.device)
    quiet = Governor(GovernorConfig(), model, [optimizer])
    watching = Governor(GovernorConfig(always=True, every_n_steps=10**9), model, [optimizer])

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        optimizer.step()
        return loss

    step()
    watching.take(0)
    assert watching.snapshot is not None
    weights = sum(p.nbytes for p in model.parameters())
    facts = {"D": width, "M": rows, "MiB": watching.snapshot.nbytes / 2**20, "weights": weights / 2**20}
    variants = {
        "bare": step,
        "nothing lives": lambda: quiet.observe(step(), 1),
        "seeds live": lambda: watching.observe(step(), 1),
        "snapshot": lambda: watching.take(1),
    }
    bench.compare("governor", variants, **facts)


def run(bench: Bench) -> None:
    for width, rows in ((64, 64), (512, 128)) if bench.quick else ((64, 64), (512, 128), (1024, 256)):
        one_size(bench, width, rows)


if __name__ == "__main__":
    main(run)
