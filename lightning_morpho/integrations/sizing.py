"""Held-out errors in points from a Trainer's validation batches, for the sizing rule."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torchmetrics import Metric

from lightning_morpho.config import AUTO
from lightning_morpho.integrations.ranks import gather_objects
from lightning_morpho.integrations.validation import HeldOut
from lightning_morpho.isolation import isolated
from lightning_morpho.layers import HybridKasminaLayer
from lightning_morpho.sizing import assess, resize_
from lightning_morpho.tamiyo import Assessment, Resize, Resizing

SCORES = 5
"""About how often validation is scored for each layer that is sized."""
NATS = 0.02
"""A point of a loss on classes: about what it costs to be wrong on one more sample in a hundred, and unsure of it."""


class HeldOutSizer:
    """Sizes a module's hidden layers by its Trainer's validation batches, between two training steps.

    Args:
        held_out: Batches and their losses.
        layers: The hybrid layers by name.
        seed: Random seed of the units that are tried.
    """

    def __init__(self, held_out: HeldOut, layers: Mapping[str, HybridKasminaLayer], seed: int) -> None:
        self.held_out, self.layers, self.seed = held_out, layers, seed

    def assess(self) -> list[Assessment] | None:
        """What new hidden units would explain of the held-out residual, in each pair; None: no time at this tick."""
        if not self._fits("assessment", 3 * self.held_out.count, "what new units would explain is not asked yet"):
            return None

        def losses() -> Iterator[Tensor]:
            yield from map(self.held_out.loss, self.held_out.batches())

        with self.held_out.clock.answering("assessment", 1), self._isolated():
            return assess(self.layers.values(), losses, seed=self.seed, reduce=self._sum_over_ranks)

    def resize(self, decision: Resize) -> list[Resizing] | None:
        """Remove the hidden units that validation does not miss; None: no time at this tick."""
        steps = (1 + SCORES * len(self.layers)) * self.held_out.count
        if not self._fits("sizing", steps, "hidden layers are not sized yet"):
            return None
        with self.held_out.clock.answering("sizing", 1), self._isolated():
            score = PointScore(self.held_out, decision)
            return resize_(
                self.layers.values(),
                score,
                host=decision.host,
                grown=decision.grown,
                tolerance=decision.tolerance,
                reduce=self._sum_over_ranks,
            )

    def _fits(self, kind: str, steps: int, otherwise: str) -> bool:
        fits = self.held_out.clock.room(kind, steps) >= 1
        if not fits:
            self.held_out.clock.cuts.append(otherwise)
        return fits

    @contextlib.contextmanager
    def _isolated(self) -> Iterator[None]:
        # Hooks must be seen: a compiled forward pass would not call them.
        with isolated(self.held_out.pl_module), torch.compiler.set_stance("force_eager"):
            yield

    def _sum_over_ranks(self, flat: Tensor) -> Tensor:
        if not (dist.is_available() and dist.is_initialized()):
            return flat
        device = self.held_out.pl_module.device
        total = flat.to(device) if device.type != "mps" else flat
        dist.all_reduce(total)
        return total.cpu()


class PointScore:
    """Held-out errors in points: of the loss, over that of a point, and 100 times what a logged share lacks to 1.

    Args:
        held_out: Batches and how to run a step on them.
        decision: Which metric, and what a point of the loss is.
    """

    def __init__(self, held_out: HeldOut, decision: Resize) -> None:
        self.held_out = held_out
        self.batches = list(held_out.batches())
        self.metric = decision.metric
        self.point = _point(self.batches) if decision.point == AUTO else float(decision.point)

    def __call__(self) -> list[float]:
        """The errors over all batches of all ranks: the share's first, if one is logged, then the loss's."""
        for module in self.held_out.pl_module.modules():
            if isinstance(module, Metric):
                module.reset()  # these are clones
        metrics: dict[int, Metric] = {}
        rows = [self._of(batch, metrics) for batch in self.batches]
        computed = [100 * (1 - float(metric.compute())) for metric in metrics.values()][:1]
        parts = gather_objects([[float(value) for value in row] for row in rows])
        columns = zip(*(row for part in parts for row in part), strict=True)
        return computed + [statistics.fmean(column) for column in columns]

    def _of(self, batch: Any, metrics: dict[int, Metric]) -> list[float | Tensor]:
        """Errors of one batch in points; a torchmetrics object that was logged is put aside, to be asked at the end."""
        loss, logged = self.held_out.step(batch)
        errors: list[float | Tensor] = [] if loss is None else [loss / self.point]
        name = _share_name(logged) if self.metric == AUTO else self.metric
        if name is None or self.held_out.loss_fn is not None:
            assert errors, "validation gives neither a loss nor a share"
            return errors
        if name not in logged:
            raise ValueError(
                f"`tamiyo.metric` must be logged by `validation_step`, got {name!r}; it logs {sorted(logged)}."
            )
        share = logged[name]
        if isinstance(share, Metric):
            metrics[id(share)] = share
            return errors
        return [100 * (1 - float(share)), *errors]


def _share_name(logged: Mapping[str, Any]) -> str | None:
    """The first logged name that looks like a share of 1."""
    return next((name for name in logged if "acc" in name.lower() or "r2" in name.lower()), None)


def _point(batches: Sequence[Any]) -> float:
    """A point of a loss: 0.01 of the variance of real targets (R² under a squared error), else 0.02 nats."""
    targets = [batch[-1] for batch in batches if isinstance(batch, (tuple, list)) and isinstance(batch[-1], Tensor)]
    if not targets or not targets[0].is_floating_point():
        return NATS
    parts = gather_objects(torch.cat([t.detach().reshape(len(t), -1).double().cpu() for t in targets]))
    return max(0.01 * float(torch.cat(parts).var(0, correction=0).mean()), torch.finfo(torch.float32).tiny)
