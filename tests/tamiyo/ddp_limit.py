"""Run by ``test_tick_time.py`` as a script: two processes whose clocks differ, under a limit that bites."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import torch
from ddp_trial import net
from lightning.pytorch.strategies import DDPStrategy
from torch.utils.data import DataLoader

from ddp_run import SGDHost, shard
from hosts import leave_processes, make_data, make_trainer, quick
from lightning_morpho import AutoSize, BlueprintConfig, BudgetConfig, Tamiyo, Trial, Uniform, hybrid_layers
from lightning_morpho.integrations import run as run_module
from lightning_morpho.integrations.tick_clock import TickClock
from lightning_morpho.tamiyo.plain import decisions_to_plain

POLICIES: dict[str, Tamiyo] = {
    "uniform": Uniform(at=0.0),
    "trial": Trial(at=0.0, share=0.1),
    "shared": Trial(at=0.0, share=0.1, shared=True),
    "auto": AutoSize(at=0.0),
}


class Uneven(TickClock):
    """On the second rank time passes in ticks ten times as fast: by its own clock nothing would ever fit."""

    rank = 0

    def __init__(self, limit: float | None, **options: Any) -> None:
        self.skipped = 0.0
        super().__init__(limit, lambda: time.perf_counter() + self.skipped, **options)

    @contextmanager
    def tick(self, steps: int) -> Iterator[None]:
        with super().tick(steps):
            self.skipped += 1e4 * self.rank
            yield


def run(out: Path, policy: Tamiyo, limit: float) -> tuple[dict[str, Any], int]:
    """A run; the decisions and the weights of this rank."""
    L.seed_everything(0)
    module = SGDHost(net())
    kind = BlueprintConfig(kind="auto", hidden="budget" if policy.fills_budget else "auto")
    callback = quick(tamiyo=policy, budget=BudgetConfig(parameters=2000, tick_share=limit), blueprint=kind)
    told: list[Any] = []

    class Told(L.Callback):
        def on_train_start(self, *_: Any) -> None:
            engine = callback.engine
            assert engine is not None
            before = engine.on_decided

            def note(seen: Any, decisions: Any) -> None:
                told.append([seen.tick, decisions_to_plain(decisions)])
                if before is not None:
                    before(seen, decisions)

            engine.on_decided = note

    options: dict[str, Any] = {"devices": 2, "strategy": DDPStrategy(), "use_distributed_sampler": False}
    trainer = make_trainer(out, callback, Told(), max_epochs=8, **options)
    Uneven.rank = trainer.global_rank
    train, held_out = (DataLoader(shard(make_data(n, s), 2), batch_size=16) for n, s in ((320, 0), (128, 1)))
    trainer.fit(module, train, held_out)
    weights = {name: p.detach() for name, p in module.named_parameters()}
    grown = sorted(name for name, layer in hybrid_layers(module).items() if not layer.morpho.dormant)
    return {"decisions": json.dumps(told), "weights": weights, "grown": grown}, trainer.global_rank


def main(out: Path) -> None:
    run_module.TickClock = Uneven  # type: ignore[misc]
    found: dict[str, Any] = {}
    rank = 0
    for limit in (1e-9, 0.9):
        for name, policy in POLICIES.items():
            found[f"{name} {limit}"], rank = run(out / f"{name} {limit}", policy, limit)
    torch.save(found, out / f"rank{rank}.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
    leave_processes()
