"""What the growth experiments share: training with a constant, then falling rate; paired intervals; results."""

from __future__ import annotations

import json
import math
import platform
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_morpho import MorphoConfig, OptimizerLink, __version__, confirm_pairs_, hybrid_layers, morph_
from lightning_morpho.evidence import student_t_quantile

Split = tuple[Tensor, Tensor]
RESULTS = Path(__file__).parent / "results"


def wsd(step: int, total: int) -> float:
    """Share of the peak learning rate: constant, then falling linearly in the last 30 %."""
    return min(1.0, (total - step) / (0.3 * total))


def train(
    model: nn.Module, data: Split, steps: int, lr: float, seed: int, batch: int, grow_at: int = -1, grow: Any = None
) -> None:
    """Adam on random batches; ``grow(model)`` is called before step ``grow_at``."""
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    layers = hybrid_layers(model)
    link = OptimizerLink(layers, [optimizer]) if layers else None
    draw = torch.Generator().manual_seed(seed)
    x, y = data
    for step in range(steps):
        if step == grow_at:
            grow(model)
        for group in optimizer.param_groups:
            group["lr"] = lr * wsd(step, steps)
        chosen = torch.randint(len(x), (batch,), generator=draw)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[chosen]), y[chosen]).backward()
        optimizer.step()
    if link is not None:
        link.close()


@torch.no_grad()
def accuracy(model: nn.Module, data: Split) -> float:
    """Share of right answers, in percent."""
    model.eval()
    right = (model(data[0]).argmax(1) == data[1]).double().mean().item()
    model.train()
    return 100 * right


def prepare(model: nn.Module, config: MorphoConfig, example: Tensor) -> nn.Module:
    """Swap the layers and confirm the pairs."""
    morph_(model, config)
    refused = confirm_pairs_(model, (example,))
    assert not refused, refused
    return model


def germinate(model: nn.Module) -> None:
    """One round: every pair at once."""
    for layer in hybrid_layers(model).values():
        if layer.morpho.free_beds:
            layer.request_germination()


def drop_links(model: nn.Module) -> None:
    """Take the links away, for the arm that goes without."""
    for layer in hybrid_layers(model).values():
        for link in layer.morpho.links.all_links():
            if not link.free:
                link.give_back()
        layer.morpho.refresh()


def interval(differences: Sequence[float]) -> dict[str, float]:
    """Mean of paired differences and half the width of its 95 % interval."""
    half = student_t_quantile(0.975, len(differences) - 1) * statistics.stdev(differences) / math.sqrt(len(differences))
    return {"mean": statistics.fmean(differences), "half_width": half}


def best(arm: dict[str, list[dict[str, float]]]) -> tuple[str, list[dict[str, float]]]:
    """The runs of an arm at the learning rate that is best on validation."""
    lr = max(arm, key=lambda rate: statistics.fmean(run["val"] for run in arm[rate]))
    return lr, arm[lr]


def write(name: str, results: dict[str, Any], start: float) -> None:
    """Write a result with all that is needed to repeat it."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(context(start) | results, indent=1) + "\n", encoding="utf-8")


def context(start: float) -> dict[str, Any]:
    """Command, versions and time of a result."""
    return {
        "command": " ".join(["python", *(Path(a).name if "/" in a else a for a in sys.argv)]),
        "versions": {
            "lightning_morpho": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "seconds": round(time.perf_counter() - start),
    }
