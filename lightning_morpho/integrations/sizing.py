"""Held-out errors in points from a Trainer's validation batches, for the sizing rule."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torchmetrics import Metric

from lightning_morpho.config import AUTO, CreditConfig
from lightning_morpho.integrations.ranks import gather_objects
from lightning_morpho.integrations.validation import (
    LossFunction,
    held_out_batches,
    run_validation_step,
    validation_loss,
)
from lightning_morpho.isolation import isolated
from lightning_morpho.layers import HybridKasminaLayer
from lightning_morpho.sizing import assess, resize_
from lightning_morpho.tamiyo import Assessment, Resize, Resizing

NATS = 0.02
"""A point of a loss on classes: about what it costs to be wrong on one more sample in a hundred, and unsure of it."""


class HeldOutSizer:
    """Sizes a module's hidden layers by its Trainer's validation batches, between two training steps.

    Args:
        trainer: The Trainer.
        pl_module: Its module.
        layers: The hybrid layers by name.
        config: Validation batches to use; name of the loss.
        loss_fn: The user's loss; None: the one of ``validation_step``.
        seed: Random seed of the units that are tried.
    """

    def __init__(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        layers: Mapping[str, HybridKasminaLayer],
        config: CreditConfig,
        loss_fn: LossFunction | None,
        seed: int,
    ) -> None:
        self.trainer = trainer
        self.pl_module = pl_module
        self.layers = layers
        self.config = config
        self.loss_fn = loss_fn
        self.seed = seed

    def assess(self) -> list[Assessment]:
        """What new hidden units would explain of the held-out residual, in each pair."""

        def losses() -> Iterator[Tensor]:
            for batch in held_out_batches(self.trainer, self.pl_module, self.config.batches):
                yield self._loss(batch)

        with self._isolated():
            return assess(self.layers.values(), losses, seed=self.seed, reduce=self._sum_over_ranks)

    def resize(self, decision: Resize) -> list[Resizing]:
        """Remove the hidden units that validation does not miss."""
        with self._isolated():
            batches = list(held_out_batches(self.trainer, self.pl_module, self.config.batches))
            score = PointScore(self, batches, decision)
            return resize_(
                self.layers.values(),
                score,
                host=decision.host,
                grown=decision.grown,
                tolerance=decision.tolerance,
                reduce=self._sum_over_ranks,
            )

    @contextlib.contextmanager
    def _isolated(self) -> Iterator[None]:
        # Hooks must be seen: a compiled forward pass would not call them.
        with isolated(self.pl_module), torch.compiler.set_stance("force_eager"):
            yield

    def _loss(self, batch: Any) -> Tensor:
        with self.trainer.precision_plugin.val_step_context():
            if self.loss_fn is not None:
                return self.loss_fn(self.pl_module, batch)
            return validation_loss(self.pl_module, batch, self.config.monitor)

    def _sum_over_ranks(self, flat: Tensor) -> Tensor:
        if not (dist.is_available() and dist.is_initialized()):
            return flat
        device = self.pl_module.device
        total = flat.to(device) if device.type != "mps" else flat
        dist.all_reduce(total)
        return total.cpu()


class PointScore:
    """Held-out errors in points: of the loss, over that of a point, and 100 times what a logged share lacks to 1.

    Args:
        sizer: How to run a step.
        batches: The batches.
        decision: Which metric, and what a point of the loss is.
    """

    def __init__(self, sizer: HeldOutSizer, batches: Sequence[Any], decision: Resize) -> None:
        self.sizer = sizer
        self.batches = batches
        self.metric = decision.metric
        self.point = _point(batches) if decision.point == AUTO else float(decision.point)

    def __call__(self) -> list[float]:
        """The errors over all batches of all ranks: the share's first, if one is logged, then the loss's."""
        for module in self.sizer.pl_module.modules():
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
        if self.sizer.loss_fn is not None:
            return [self.sizer._loss(batch) / self.point]
        with self.sizer.trainer.precision_plugin.val_step_context():
            loss, logged = run_validation_step(self.sizer.pl_module, batch, self.sizer.config.monitor)
        errors: list[float | Tensor] = [] if loss is None else [loss / self.point]
        name = _share_name(logged) if self.metric == AUTO else self.metric
        if name is None:
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
