"""What experiments in plain loops share: training with a constant, then falling rate; paired intervals; context."""

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

from lightning_morpho import __version__
from lightning_morpho.evidence import student_t_quantile

Split = tuple[Tensor, Tensor]


def wsd(step: int, total: int) -> float:
    """Share of the peak learning rate: constant, then falling linearly in the last 30 %."""
    return min(1.0, (total - step) / (0.3 * total))


def train(model: nn.Module, data: Split, steps: int, lr: float, seed: int, batch: int) -> None:
    """Adam on random batches."""
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    draw = torch.Generator().manual_seed(seed)
    x, y = data
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * wsd(step, steps)
        chosen = torch.randint(len(x), (batch,), generator=draw)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[chosen]), y[chosen]).backward()
        optimizer.step()


@torch.no_grad()
def accuracy(model: nn.Module, data: Split) -> float:
    """Share of right answers, in percent."""
    model.eval()
    right = (model(data[0]).argmax(1) == data[1]).double().mean().item()
    model.train()
    return 100 * right


def interval(differences: Sequence[float]) -> dict[str, float]:
    """Mean of paired differences and half the width of its 95 % interval."""
    half = student_t_quantile(0.975, len(differences) - 1) * statistics.stdev(differences) / math.sqrt(len(differences))
    return {"mean": statistics.fmean(differences), "half_width": half}


def tasks_in(path: Path) -> dict[str, Any]:
    """What a file holds of each task; nothing if there is no such file."""
    tasks: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["tasks"] if path.exists() else {}
    return tasks


def write_tasks(path: Path, tasks: dict[str, Any], start: float) -> None:
    """Write what is known of each task, with its context."""
    path.write_text(json.dumps(context(start) | {"tasks": tasks}, indent=1) + "\n", encoding="utf-8")


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
