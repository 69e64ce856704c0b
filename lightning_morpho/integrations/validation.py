"""Held-out losses from a Trainer: its validation batches, run through the module's own validation step."""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torchmetrics import Metric

from lightning_morpho.config import CreditConfig
from lightning_morpho.credit import affordable, group_seeds, measure
from lightning_morpho.integrations.compilation import is_compiled
from lightning_morpho.integrations.ranks import gather_objects
from lightning_morpho.integrations.sharding import reshard_
from lightning_morpho.integrations.tick_clock import TickClock
from lightning_morpho.isolation import isolated
from lightning_morpho.layers import HybridKasminaLayer
from lightning_morpho.random_state import preserved_random_state
from lightning_morpho.tamiyo import Measurement
from lightning_morpho.tamiyo.observation import Group, SeedKey

LossFunction = Callable[[LightningModule, Any], Tensor]
"""Held-out loss of one validation batch."""

MOST_KEPT = 2**28
"""Bytes of batches that are kept for the rest of a tick; larger ones are read each time anew."""


class HeldOut:
    """Held-out losses of one tick, on the first batches of the Trainer's first validation loader, in its precision.

    All that is asked at a tick sees the same batches; small ones are read once.

    Args:
        trainer: The Trainer, between two training steps.
        pl_module: Its module.
        config: How many batches; the name of the loss.
        loss_fn: The user's loss; None: the one of ``validation_step``.
        clock: Says how much fits into the tick; None: all does.
    """

    def __init__(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        config: CreditConfig,
        loss_fn: LossFunction | None,
        clock: TickClock | None = None,
    ) -> None:
        self.trainer, self.pl_module = trainer, pl_module
        self.config, self.loss_fn = config, loss_fn
        self.clock = clock or TickClock()

    @property
    def count(self) -> int:
        """How many batches there are, at most."""
        return int(min(self.config.batches, self.trainer.num_val_batches[0]))

    @cached_property
    def _small(self) -> list[Any] | None:
        """The batches; None if they are too large to be kept."""
        kept: list[Any] = []
        room = MOST_KEPT
        with preserved_random_state():
            for batch in self._read():
                room -= sum(leaf.nbytes for leaf in tree_leaves(batch) if isinstance(leaf, Tensor))
                if room < 0:
                    return None
                kept.append(batch)
        return kept

    def _read(self) -> Iterator[Any]:
        return held_out_batches(self.trainer, self.pl_module, self.config.batches)

    def batches(self) -> Iterator[Any]:
        """The batches, on their device."""
        return self._read() if self._small is None else iter(self._small)

    def step(self, batch: Any) -> tuple[Tensor | None, dict[str, Any]]:
        """The loss of a batch, None if there is none, and what ``validation_step`` logged."""
        with self.trainer.precision_plugin.val_step_context():
            if self.loss_fn is not None:
                return _scalar(self.loss_fn(self.pl_module, batch), "`loss_fn`"), {}
            return run_validation_step(self.pl_module, batch, self.config.monitor)

    def loss(self, batch: Any) -> Tensor:
        """The loss of a batch.

        Raises:
            ValueError: If ``validation_step`` neither returns one nor logs it.
        """
        loss, _ = self.step(batch)
        if loss is None:
            raise ValueError(f"`validation_step` must return a loss or log `{self.config.monitor}`, it did neither.")
        return loss


class HeldOutCredit:
    """Measurements of one tick.

    Args:
        held_out: Batches and their losses.
        layers: The hybrid layers by name.
    """

    def __init__(self, held_out: HeldOut, layers: Mapping[str, HybridKasminaLayer]) -> None:
        self.held_out, self.layers = held_out, layers
        self.left = held_out.config.measurements

    def __call__(self, seeds: Sequence[SeedKey], together: Sequence[Group] = ()) -> list[Measurement]:
        """Leave seeds out one by one, and groups as such, as far as the tick's measurements go."""
        config, model = self.held_out.config, self.held_out.pl_module
        singles = group_seeds(seeds, self.layers, config.max_groups)
        groups = affordable(singles, config.measurements // 3, least=1) if singles else []
        groups += affordable(together, self.left - len(groups))
        groups = self._in_time(groups)
        if not groups:
            return []
        self.left -= 1 + len(groups)
        compiled = is_compiled(model)
        with self.held_out.clock.answering("measurement", 1 + len(groups)):
            results = measure(
                model,
                self.layers,
                groups,
                self.held_out.batches(),
                self.held_out.loss,
                confidence=config.confidence,
                replicas=1 if compiled else config.replicas,
                probe=bool(singles) and not compiled,  # hooks would compile the model again
                gather=gather_objects,
            )
            reshard_(model)
        return results

    def _in_time(self, groups: Sequence[Group]) -> list[Group]:
        """The first groups that fit into the time of the tick, the loss of the whole model beside them included."""
        clock = self.held_out.clock
        room = clock.room("measurement", self.held_out.count) - 1
        fitting = list(groups[: int(max(0, min(room, len(groups))))])
        if len(fitting) < len(groups):
            clock.cuts.append(f"{len(fitting)} of {len(groups)} held-out measurements made, the others wait")
        return fitting

    def losses(self) -> list[float]:
        """Held-out loss on each of the batches of all ranks, nothing left out."""
        with isolated(self.held_out.pl_module):
            own = [self.held_out.loss(batch).double() for batch in self.held_out.batches()]
        return [loss for part in gather_objects([float(loss) for loss in own]) for loss in part]


def loss_of(outputs: Any) -> Tensor | None:
    """The loss in what ``validation_step`` returned, None if there is none."""
    if isinstance(outputs, dict):
        outputs = outputs.get("loss")
    return outputs if isinstance(outputs, Tensor) and outputs.numel() == 1 else None


def run_validation_step(pl_module: LightningModule, batch: Any, monitor: str) -> tuple[Tensor | None, dict[str, Any]]:
    """Run ``validation_step`` on one batch with ``log`` muted.

    Args:
        pl_module: The module, in eval mode.
        batch: A batch on its device.
        monitor: Name under which the loss is looked for among what the step logs, if it returns none.

    Returns:
        Its loss, None if there is none, and what it logged.
    """
    with muted_log(pl_module) as logged:
        try:
            loss = loss_of(call_step(pl_module.validation_step, batch))
        except AttributeError as error:
            raise RuntimeError(
                f"`validation_step` can't be run between two epochs, where seeds are judged by it: {error}. What it "
                "needs must outlast a validation; or give the callback `loss_fn=(module, batch) -> loss`."
            ) from error
    if loss is None and monitor in logged:
        value = logged[monitor]
        loss = _loss_of_metric(value) if isinstance(value, Metric) else _scalar(value, f"What is logged as `{monitor}`")
    return loss, logged


def _scalar(value: Any, subject: str) -> Tensor:
    """A loss as a tensor.

    Raises:
        TypeError: If it is not a single number.
    """
    if isinstance(value, (int, float)) or (isinstance(value, Tensor) and value.numel() == 1):
        return torch.as_tensor(value)
    got = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
    raise TypeError(f"{subject} must be a single number, as a tensor or plain, got {got}.")


def _loss_of_metric(metric: Metric) -> Tensor | None:
    """What a logged torchmetrics object makes of this batch, on this rank; None if it took no update.

    The metric is a clone (:func:`~lightning_morpho.isolation.isolated`); the next batch starts afresh.
    """
    if not metric.update_called:
        return None
    own = metric.clone()
    own.distributed_available_fn = lambda: False
    metric.reset()
    return _scalar(own.compute(), f"`{type(metric).__name__}`, logged as the loss,")


def call_step(step: Callable[..., Any], batch: Any) -> Any:
    """Call a step of a module with a batch, and with its other arguments as far as it takes them."""
    arguments = (batch, 0, 0)
    return step(*arguments[: max(1, len(inspect.signature(step).parameters))])


@contextlib.contextmanager
def muted_log(pl_module: LightningModule) -> Iterator[dict[str, Any]]:
    """Let what a module logs go nowhere but into the dictionary that is given."""
    logged: dict[str, Any] = {}

    def log_one(name: str, value: Any, *_: Any, **__: Any) -> None:
        logged[name] = value

    def log_all(dictionary: Any, *_: Any, **__: Any) -> None:
        logged.update(dictionary)

    pl_module.__dict__.update(log=log_one, log_dict=log_all)
    try:
        yield logged
    finally:
        del pl_module.__dict__["log"], pl_module.__dict__["log_dict"]


def on_device(trainer: Trainer, pl_module: LightningModule, batch: Any) -> Any:
    """A batch of a loader as a step gets it."""
    batch = trainer.precision_plugin.convert_input(batch)
    batch = pl_module.on_before_batch_transfer(batch, 0)
    return trainer.strategy.batch_to_device(batch, dataloader_idx=0)


def held_out_batches(trainer: Trainer, pl_module: LightningModule, most: int) -> Iterator[Any]:
    """The first batches of validation, of its first loader if one follows the other; their random state is put back."""
    batches, loaders, limit = _held_out(trainer)
    samplers = [getattr(loader, "sampler", None) for loader in loaders]
    generators = {id(g): g for held in (*loaders, *samplers) if (g := getattr(held, "generator", None)) is not None}
    states = [(g, g.get_state()) for g in generators.values()]
    try:
        for index, batch in enumerate(batches):
            if index >= min(most, limit):
                break
            yield on_device(trainer, pl_module, batch)
    finally:
        for generator, state in states:
            generator.set_state(state)


def _held_out(trainer: Trainer) -> tuple[Iterable[Any], list[Any], float]:
    """Batches as ``validation_step`` gets them, the loaders that they come from, and how many there are at most."""
    given: Any = trainer.val_dataloaders
    limits = trainer.num_val_batches
    loop = trainer.fit_loop.epoch_loop.val_loop
    mode: Any = getattr(loop._combined_loader, "_mode", "sequential")  # Lightning tells it nowhere in public
    if mode != "sequential":
        combined = CombinedLoader(given, mode)
        combined.limits = limits
        return (batch for batch, *_ in combined), combined.flattened, math.inf
    while isinstance(given, (list, tuple, dict, CombinedLoader)):
        given = given.flattened if isinstance(given, CombinedLoader) else given
        given = next(iter(given.values())) if isinstance(given, dict) else given[0]
    return given, [given], limits[0]
