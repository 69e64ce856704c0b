"""What is done with a net in the growth experiments.

An arm is a name, a width where it needs one, and `@steps` where it trains for another number of steps than the plan's:

- `64`, `64@680`: a static net of that width;
- `auto`: starts at the plan's `host` width, `AutoSize()`, the budget that of the widest static net;
- `shrink`: starts at the widest width, `AutoSize(sizing="shrink")`;
- `uniform`, `random`, `periodic`: as auto, filled to the budget in one round at 15 %, or in four parts at random ticks
  and layers, or in four parts in turn, without sizing;
- `uniform4`, `narrowest24`, `earliest24`, `lot24`, `trial24`: starts at `host`, one round at 15 %: so many new units in
  each layer, in the narrowest, in the first, in one drawn by lot, or in that which is best when each is tried for 2 %
  of the steps;
- `round25`: starts at `host`, one round at 35 % to that width;
- `onward12@330`: a net of `host` units that was trained before goes on for that many steps, grown to that width at the
  first tick, after 5 % of them.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from growth_tasks import Task
from lightning_morpho import (
    AllAtStart,
    AutoSize,
    BlueprintConfig,
    BudgetConfig,
    LayersConfig,
    Periodic,
    Placed,
    RandomPlace,
    Tamiyo,
    Trial,
    Uniform,
    WarmupConfig,
)
from lightning_morpho.tamiyo import Germinate, Observation

Job = dict[str, Any]


def size(net: nn.Module) -> int:
    """Parameters of a net."""
    return sum(p.numel() for p in net.parameters())


@dataclass(frozen=True, kw_only=True)
class ByLot(Tamiyo):
    """One round at 15 % in a layer drawn by lot: chance, at the same moment as the others."""

    seed: int

    def grow(self, observation: Observation) -> Sequence[Germinate]:
        """In that layer."""
        assert observation.total_steps is not None
        if observation.germinations or observation.step < 0.15 * observation.total_steps:
            return []
        names = sorted(layer.name for layer in observation.layers if layer.growable)
        return [Germinate(layer=random.Random(self.seed).choice(names), reason="drawn by lot")]


@dataclass(frozen=True)
class Arm:
    """What is done with a net.

    Attributes:
        kind: ``"static"`` or one of the words above.
        number: The width, or the number of new units.
        steps: Training steps, if not the plan's.
    """

    kind: str
    number: int | None
    steps: int | None

    @classmethod
    def parse(cls, name: str) -> Arm:
        """Read an arm's name.

        Example:
            >>> Arm.parse("onward12@330")
            Arm(kind='onward', number=12, steps=330)
        """
        found = re.fullmatch(r"([a-z]*)(\d*)(?:@(\d+))?", name)
        if found is None:
            raise ValueError(f"`arm` must be a word, a number and `@steps`, some of them left out, got {name!r}.")
        word, number, steps = found.groups()
        return cls(word or "static", int(number) if number else None, int(steps) if steps else None)

    def width(self, job: Job) -> int:
        """Units of each hidden layer when the run starts."""
        if self.kind == "static":
            assert self.number is not None
            return self.number
        return job["widest"] if self.kind == "shrink" else job["host"]

    def policy(self, job: Job, layers: int) -> Tamiyo:
        """The controller."""
        policies = {
            "auto": AutoSize(),
            "shrink": AutoSize(sizing="shrink"),
            "uniform": Uniform(reopen=None),
            "random": RandomPlace(rate=0.5, seed=job["seed"]),
            "periodic": Periodic(start=2, every=3, events=layers),
            "narrowest": Placed(by="narrowest", reopen=None),
            "earliest": Placed(by="earliest", reopen=None),
            "lot": ByLot(seed=job["seed"]),
            "trial": Trial(reopen=None),
            "round": Uniform(at=0.35, reopen=None),
            "onward": AllAtStart(),
        }
        return policies[self.kind]

    def options(self, job: Job, task: Task, steps: int) -> dict[str, Any]:
        """The callback's arguments that differ from arm to arm."""
        if self.kind in ("round", "onward"):
            assert self.number is not None
            # A trained host has steps behind it that the Trainer of this run knows nothing of.
            warmup = WarmupConfig(steps=steps // 5, min_steps=steps // 5) if self.kind == "onward" else None
            return {"blueprint": BlueprintConfig(hidden=self.number - job["host"]), "warmup": warmup}
        if self.kind in ("uniform", "narrowest", "earliest", "lot", "trial") and self.number is not None:
            return {"blueprint": BlueprintConfig(hidden=self.number)}
        fills = self.kind in ("uniform", "random", "periodic")
        return {
            "layers": LayersConfig(beds=4 if self.kind in ("random", "periodic") else 1, num_seeds=1),
            "blueprint": BlueprintConfig(hidden="budget" if fills else "auto"),
            "budget": BudgetConfig(parameters=size(task.net(job["widest"]))),
        }
