"""Trials in a Trainer: growth for a short time, judged on held-out data, and put back."""

from __future__ import annotations

import contextlib
import copy
import itertools
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.data import DataLoader, IterableDataset
from torch.utils.flop_counter import FlopCounterMode

from lightning_morpho.integrations.tick_clock import TickClock
from lightning_morpho.integrations.validation import HeldOutCredit, call_step, loss_of, muted_log, on_device
from lightning_morpho.layers import HybridKasminaLayer
from lightning_morpho.lifecycle import Stage
from lightning_morpho.optim import OptimizerLink, average_over_ranks
from lightning_morpho.rewind import rewound
from lightning_morpho.tamiyo.observation import Place, Tried, Try

log = logging.getLogger(__name__)


class TrainerTrials:
    """Trials between two training steps: steps as the Trainer makes them, none of which it ever learns of.

    The learning rate falls linearly to 0 over a trial, so that the loss at its end is not that of the last few
    batches, and newborns have no warm-up: a short trial then chooses like one several times as long.

    All trials of a tick see the same batches, in the order of an epoch that starts anew, and the same random state.
    The loader that the training reads is not touched: its sampler is copied, its data are read by index.

    Args:
        trainer: The Trainer, between two training steps.
        pl_module: Its module.
        layers: The hybrid layers by name.
        link: Link to the run's optimizers.
        credit: Measures held-out losses; None: there are none.
        before_step: Called before each training step.
    """

    def __init__(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        layers: Mapping[str, HybridKasminaLayer],
        link: OptimizerLink,
        credit: HeldOutCredit | None,
        before_step: Callable[[], None] = lambda: None,
    ) -> None:
        self.trainer, self.pl_module, self.layers = trainer, pl_module, layers
        self.link, self.credit, self.before_step = link, credit, before_step

    @property
    def refused(self) -> str | None:
        """Why nothing can be tried in this run, None if it can."""
        if self.credit is None:
            return "there is no held-out loss"
        if not self.pl_module.automatic_optimization:
            return "optimization is manual"
        if len(self.trainer.optimizers) != 1:
            return f"there are {len(self.trainer.optimizers)} optimizers"
        if isinstance(self.trainer.strategy, ModelParallelStrategy):
            return "the model is sharded"
        if is_overridden("optimizer_step", self.pl_module):
            return "the module has an `optimizer_step` of its own"
        return _no_second_reading(self.trainer.train_dataloader)

    def __call__(self, decision: Try) -> list[Tried]:
        """Try each place, or the first for which there is time, or all together. None of it leaves a trace.

        Nothing is tried if the data's sampler can't be copied, or if there is no time for two, or for the shared one.
        """
        places = self._in_time(decision)
        if not places:
            return []
        try:
            _copied_sampler(self.trainer.train_dataloader)
        except Exception as error:  # whatever a user's sampler holds
            log.warning("Nothing can be tried, the sampler of the training data can't be copied: %r", error)
            return []
        try:
            with self._clock.answering("trial", 1 if decision.shared else len(places)):
                if decision.shared:
                    return self._try_together(places, decision.steps)
                return [self._try(place, decision.steps) for place in places]
        except torch.OutOfMemoryError:
            if self.trainer.world_size > 1:
                raise  # the other ranks wait in a step
            return []
        finally:
            self.link.note_dead_units()

    @property
    def _clock(self) -> TickClock:
        assert self.credit is not None
        return self.credit.held_out.clock

    def _in_time(self, decision: Try) -> Sequence[Place]:
        """The places for which there is time: all or none if they share a trial, else at least two."""
        wanted = 1 if decision.shared else len(decision.places)
        count = min(self._clock.room("trial", decision.steps), wanted)
        if count < min(2, wanted):
            count = 0
        if count < wanted:
            self._clock.cuts.append(f"{int(count)} of {wanted} trials made")
        if decision.shared:
            return decision.places if count >= 1 else ()
        return decision.places[: int(count)]

    def _try(self, place: Place, steps: int) -> Tried:
        """One place alone."""
        assert self.credit is not None
        began = time.perf_counter()
        with self._grown([place], steps) as flops:
            losses = tuple(self.credit.losses())
        seconds = round(time.perf_counter() - began, 3)
        return Tried(place=place, losses=losses, steps=steps, seconds=seconds, flops=flops)

    def _try_together(self, places: Sequence[Place], steps: int) -> list[Tried]:
        """All places in one trial; what no measurement was left for has no rise."""
        assert self.credit is not None
        began = time.perf_counter()
        groups = [tuple((name, c) for name in place for c in self._dormant(name)) for place in places]
        with self._grown(places, steps) as flops:
            found = {m.seeds: m for m in self.credit((), groups)}
        seconds = round(time.perf_counter() - began, 3)
        return [
            Tried(
                place=place,
                losses=found[group].losses if group in found else (),
                steps=steps,
                seconds=seconds,
                flops=flops,
                rise=found[group].rise if group in found else math.nan,
            )
            for place, group in zip(places, groups, strict=True)
        ]

    def _dormant(self, name: str) -> list[int]:
        """Chunks of a layer in which a trial grows."""
        chunks: list[int] = self.layers[name].morpho.state.where(Stage.DORMANT).tolist()
        return chunks

    @contextlib.contextmanager
    def _grown(self, places: Sequence[Place], steps: int) -> Iterator[float]:
        """Grown and trained inside, put back afterwards; gives the floating-point operations of the steps."""
        optimizer = self.trainer.optimizers[0]
        eager = torch.compiler.set_stance("force_eager")  # each place would be compiled anew
        with rewound(self.pl_module, self.layers, [optimizer]), muted_log(self.pl_module), eager:
            self._germinate(dict.fromkeys(name for place in places for name in place))
            batches, rates = self._batches(steps), [group["lr"] for group in optimizer.param_groups]
            with FlopCounterMode(display=False) as counter:
                self._step(optimizer, batches)
            for step in range(1, steps):
                for group, rate in zip(optimizer.param_groups, rates, strict=True):
                    group["lr"] = rate * (1 - step / steps)
                self._step(optimizer, batches)
            yield float(steps * counter.get_total_flops())

    def _germinate(self, names: Iterable[str]) -> None:
        """Grow for a trial: so short a time leaves none for a warm-up."""
        for name in names:
            self.layers[name].morpho.germinate(reason="on trial")
        for layer in self.layers.values():
            for born in layer.morpho.grown():
                if born.stale and born.newborn:
                    born.warmup = 0
        self.link.drop_stale_state()

    # ------------------------------------------------------------------ one optimizer step
    def _step(self, optimizer: Optimizer, batches: Iterator[Any]) -> None:
        """One optimizer step as Lightning's automatic optimization makes it."""
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        scale = 1.0 if scaler is None else float(scaler.get_scale())
        self.before_step()

        def closure() -> Tensor | None:
            optimizer.zero_grad()
            loss = None
            for batch in itertools.islice(batches, self.trainer.accumulate_grad_batches):
                loss = self._backward(batch, scale)
            self._settle_gradients(optimizer, scale)
            return loss

        if scaler is None:
            optimizer.step(closure)  # type: ignore[arg-type]
            return
        closure()
        if all(bool(p.grad.isfinite().all()) for p in _with_gradient(optimizer)):
            optimizer.step()

    def _backward(self, batch: Any, scale: float) -> Tensor | None:
        module = self.pl_module
        batch = on_device(self.trainer, module, batch)
        with self.trainer.precision_plugin.train_step_context():
            loss = loss_of(call_step(module.training_step, batch))
        if loss is not None:
            module.backward(loss * (scale / self.trainer.accumulate_grad_batches))
            module.on_after_backward()
        return loss

    def _settle_gradients(self, optimizer: Optimizer, scale: float) -> None:
        """What stands between a backward pass and the optimizer's step."""
        self.link.settle_gradients(optimizer)  # averages those of beds
        if dist.is_available() and dist.is_initialized():
            beds = {id(p) for layer in self.layers.values() for p in layer.morpho.parameters()}
            held = (p for group in optimizer.param_groups for p in group["params"])
            average_over_ranks(p for p in held if p.requires_grad and id(p) not in beds)
        if scale != 1.0:
            torch._foreach_div_([p.grad for p in _with_gradient(optimizer)], scale)
        self.pl_module.on_before_optimizer_step(optimizer)
        trainer = self.trainer
        self.pl_module.configure_gradient_clipping(
            optimizer, trainer.gradient_clip_val, trainer.gradient_clip_algorithm
        )

    # ------------------------------------------------------------------ data
    def _batches(self, steps: int) -> Iterator[Any]:
        """Training batches of an epoch that starts anew, and of further ones if they do not suffice."""
        loader = self.trainer.train_dataloader
        assert isinstance(loader, DataLoader)
        most = steps * self.trainer.accumulate_grad_batches
        sampler, limit = _copied_sampler(loader), self.trainer.num_training_batches
        indices: list[Any] = []
        while len(indices) < most:
            epoch = list(itertools.islice(sampler, min(most - len(indices), int(min(limit, most)))))
            if not epoch:
                raise RuntimeError("The sampler of the training data gives no batch, so nothing can be tried.")
            indices += epoch
        return iter(
            DataLoader(
                loader.dataset,
                batch_sampler=indices,
                collate_fn=loader.collate_fn,
                num_workers=loader.num_workers,
                pin_memory=loader.pin_memory,
                worker_init_fn=loader.worker_init_fn,
                multiprocessing_context=loader.multiprocessing_context,
            )
        )


def _with_gradient(optimizer: Optimizer) -> list[Any]:
    return [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]


def _copied_sampler(loader: Any) -> Any:
    """The sampler of batches with a random state of its own; the data are not copied."""
    return copy.deepcopy(loader.batch_sampler, {id(loader.dataset): loader.dataset})


def _no_second_reading(loader: object) -> str | None:
    """Why training data can't be read beside the training, None if they can."""
    if not isinstance(loader, DataLoader):
        return f"the training data come from a {type(loader).__name__}, not from one DataLoader"
    if isinstance(loader.dataset, IterableDataset) or loader.batch_sampler is None:
        return "the training data can be read once only, in order"
    return None
