"""One fit of a growing model, from its start to its end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch.optim import Optimizer

from lightning_morpho.checkpoint import LoadsGrown
from lightning_morpho.confirmation import fallbacks, review
from lightning_morpho.eligibility import EligibilityReport
from lightning_morpho.engine import GrowthEngine
from lightning_morpho.flops import counted_positions
from lightning_morpho.freezing import FrozenHost
from lightning_morpho.governor import Governor
from lightning_morpho.integrations.averaging import align_averages, averaged_models
from lightning_morpho.integrations.compilation import allow_recompilations, is_compiled
from lightning_morpho.integrations.description import describe_run
from lightning_morpho.integrations.duration import few_ticks, tick_steps, total_steps
from lightning_morpho.integrations.journal import Journal
from lightning_morpho.integrations.pair_watch import MOST_BATCHES, PairWatch
from lightning_morpho.integrations.ranks import gather_objects
from lightning_morpho.integrations.reporting import Reporter
from lightning_morpho.integrations.rollout import TrainerRollout
from lightning_morpho.integrations.scaling import agree_on_overflow, tell_loss_scale
from lightning_morpho.integrations.sharding import reshard_
from lightning_morpho.integrations.sizing import HeldOutSizer
from lightning_morpho.integrations.tick_clock import TickClock
from lightning_morpho.integrations.training import TrainingLoss, ValidationLoss, restart_patience, stop_patience
from lightning_morpho.integrations.trials import TrainerTrials
from lightning_morpho.integrations.unread import Unread, unread_parts
from lightning_morpho.integrations.validation import HeldOut, HeldOutCredit, loss_of
from lightning_morpho.layers import clear_taps
from lightning_morpho.optim import OptimizerLink
from lightning_morpho.run_config import RunConfig
from lightning_morpho.surgery import hybrid_layers
from lightning_morpho.tamiyo import Never
from lightning_morpho.tamiyo.replay import describe_policy
from lightning_morpho.telemetry import Finding
from lightning_morpho.views import live_chunks


class GrowthRun:
    """Connects layers, optimizers, controller and telemetry for one fit.

    Args:
        trainer: The Trainer, its optimizers made.
        pl_module: Its module, layers swapped.
        config: The callback's arguments.
        rollout: Who grows at all.
        validation: The validation loss, which the callback keeps up to date.
        host: The host, if it stands still.
        report: What was decided about each module; None for a model that was swapped before.

    Attributes:
        engine: The circle of decision ticks.
        report: Likewise, brought up to date.
        ticked_epochs: Epochs whose tick is over; None before training.
    """

    def __init__(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        config: RunConfig,
        *,
        rollout: TrainerRollout,
        validation: ValidationLoss,
        host: FrozenHost | None,
        report: EligibilityReport | None,
    ) -> None:
        self.trainer, self.pl_module, self.config = trainer, pl_module, config
        self.report = report
        self.ticked_epochs: int | None = None
        self._rollout, self._validation, self._host = rollout, validation, host
        layers = hybrid_layers(pl_module)
        link = OptimizerLink(layers, trainer.optimizers)
        for line in link.added:
            rank_zero_info(f"MorphoCallback: {line}.")
        compiled = is_compiled(pl_module)
        if compiled:
            self._prepare_compiled(layers)
        self._reporter = Reporter(trainer, layers, config.telemetry, pl_module.device, sample=not compiled)
        governor = self._make_governor() if config.governor.enabled else None
        self.engine = GrowthEngine(
            layers, config.tamiyo, link, self._reporter.note, governor, config.model.budget.flops
        )
        self._training_loss = TrainingLoss()
        self._unread = Unread(self.engine, self._training_loss, self._reporter.sampler)
        self._ranks: list[dict[str, Any]] = []
        self._batches = 0
        self._resumed = self._opened = False
        self._saved_rollout: Mapping[str, Any] | None = None
        self._tick_steps: int | None = None
        self._clock, self._first_step = TickClock(config.model.budget.tick_share), 0
        self._pairs = PairWatch(pl_module)
        self._meter = ExitStack()
        self._positions: dict[str, int] = {}

    def _prepare_compiled(self, layers: Mapping[str, Any]) -> None:
        """Let dynamo compile as often as there are topologies; nothing but they may change from step to step."""
        topologies = sum(layer.morpho.topologies for layer in layers.values())
        allow_recompilations(topologies + self._rollout.topologies)
        if self.config.telemetry.every_n_steps:
            rank_zero_info("MorphoCallback: the model runs compiled, so activations are not sampled.")

    def _make_governor(self) -> Governor:
        return Governor(
            self.config.governor,
            self.pl_module,
            self.trainer.optimizers,
            averages=lambda: averaged_models(self.trainer),
            skips=getattr(self.trainer.precision_plugin, "scaler", None) is not None,
        )

    # ------------------------------------------------------------------ start and end
    def open(self) -> None:
        """Once, when all is restored: begin the logs, and bring the layers in line with the rollout."""
        if self._opened:
            return
        self._opened = True
        started = {"event": "fit_start", "tick": self.engine.ticks, "step": self.trainer.global_step}
        self._reporter.write({**started, "tamiyo": describe_policy(self.config.tamiyo)})
        self._journal = Journal(self.engine, self._reporter.write, self._reporter.folder)
        change = self._rollout.begin(self.trainer, self.engine.layers, self._saved_rollout)
        self._reporter.tell_rollout(change, self.engine.ticks)

    def start(self) -> None:
        """Before the first batch: grow what is to grow from the start; make up for a tick that a resumed run lost.

        Lightning takes an epoch for done if its last batch was the last thing that a checkpoint holds: neither
        its validation nor ``on_train_epoch_end`` comes again.
        """
        self.open()
        trainer, layers = self.trainer, self.engine.layers
        self._clock = TickClock(self._clock.limit, device=trainer.strategy.root_device)
        self._first_step = trainer.global_step
        # Not before: asking for the length of training sets up the loaders, whose state is restored in between.
        self._tick_steps = tick_steps(trainer, self.config.every_n_steps)
        few = None if self._tick_steps or trainer.fast_dev_run else few_ticks(trainer)  # type: ignore[attr-defined]
        if few is not None and not isinstance(self.config.tamiyo, Never):
            rank_zero_warn(f"MorphoCallback: {few}")
        for layer in layers.values():
            layer.morpho.wake()
        description = describe_run(trainer, self.pl_module, layers, self.report, self.config.sections())
        self._reporter.begin(self.engine.ticks, description, resumed=self._resumed)
        self._grow_at_the_start()
        if self.ticked_epochs is None:
            self.ticked_epochs = trainer.current_epoch
        if not self._tick_steps and self.ticked_epochs < trainer.current_epoch:
            self._validation.value = None
            self.tick()
            self.ticked_epochs = trainer.current_epoch
        self.engine.snapshot(trainer.global_step)

    def _grow_at_the_start(self) -> None:
        if not self.engine.ticks:
            self.engine.begin(step=self.trainer.global_step, total_steps=total_steps(self.trainer))
            self._reporter.tell()
        if self._host is not None and not self.engine.live_parameters:
            raise ValueError(
                "`freeze_host` leaves nothing to train: no seed has germinated. Take a policy that begins at the "
                "start: `tamiyo=Probation()`."
            )

    def end(self, outcome: str) -> None:
        """Say how the fit ended."""
        self.tell_metrics()
        self._reporter.end(self.engine, outcome)

    def finish(self) -> None:
        """Say that the fit has ended as planned, and print the table of seeds; on every rank."""
        self.end("finished")
        self._reporter.print_table(self.engine.records)
        if self.engine.live_parameters and self.report is not None and not isinstance(self.pl_module, LoadsGrown):
            kind = type(self.pl_module).__name__
            rank_zero_info(
                f"MorphoCallback: `load_grown_(model, path)` loads what grew into a plain {kind}, and `class {kind}("
                f"LoadsGrown, LightningModule)` lets `{kind}.load_from_checkpoint(path)` do it."
            )
        self._ranks = gather_objects(self._unread.state_dict())

    def close(self) -> None:
        """Let go of layers, optimizers and progress bar."""
        self._pairs.stop()
        self._meter.close()
        self._reporter.close()
        self.engine.close()

    # ------------------------------------------------------------------ one batch
    def open_batch(self) -> None:
        """Open the layers' statistics for one batch in every ``telemetry.every_n_steps``; watch what feeds what."""
        self._reporter.sampler.open(self._batches)
        clear_taps(self.engine.layers.values())
        tell_loss_scale(self.trainer, self.engine.layers)
        if self.engine.budget.wanted:
            self._positions = self._meter.enter_context(counted_positions(self.engine.layers))
        self._pairs.open()

    def settle_gradients(self, optimizer: Optimizer) -> None:
        """Average the gradients of live beds over the ranks; look at them once in a while."""
        agree_on_overflow(self.trainer, optimizer)
        self.engine.optimizers.settle_gradients(optimizer)
        self._reporter.sampler.take_gradients(optimizer)

    def close_batch(self, outputs: Any) -> None:
        """Close the statistics; let the governor see the loss; tick if ticks go by steps."""
        refused = self._pairs.close()
        if refused is not None:
            self._tell_pairs(refused)
        if not self._batches and self._pairs.waiting:
            rank_zero_info(
                f"MorphoCallback: {self._pairs.waiting} did not run in the first step, so the pairs proposed there are "
                f"neither confirmed nor refused: they are watched for {MOST_BATCHES} batches, and do not grow yet."
            )
        if self.engine.budget.wanted:
            self._meter.close()
            self.engine.budget.positions = _summed(gather_objects(self._positions))
        self._reporter.sampler.close()
        self._rollout.timer.stop()
        if self._training_loss.empty or self._reporter.sampler.due(self._batches):
            self._training_loss.add(outputs)
        self._batches += 1
        step = self.trainer.global_step
        if self.engine.recovery.governor is not None:
            reshard_(self.pl_module)
            self.engine.watch(loss_of(outputs), step)
        if self._tick_steps and step > self.engine.step and step % self._tick_steps == 0:
            self.tick()
        elif self._reporter.pending:
            self._tell_and_align()
        change = self._rollout.look_again(self.trainer, self.engine.layers)
        if change is not None:
            self._reporter.tell_rollout(change, self.engine.ticks)
            align_averages(self.trainer, self.pl_module)

    def _tell_and_align(self) -> None:
        """Tell what happened; averaged models follow."""
        self._reporter.tell()
        align_averages(self.trainer, self.pl_module)

    def _tell_pairs(self, refused: Mapping[str, str]) -> None:
        """Say which pairs stay as they are, now that some are decided."""
        for name, reason in refused.items():
            rank_zero_warn(f"MorphoCallback: `{name}` stays as it is, the pair proposed for it is refused: {reason}.")
        self._review()

    # ------------------------------------------------------------------ epochs and validation
    def end_epoch(self) -> None:
        """Tick if ticks go by epochs; validation has run, checkpoints are yet to be written."""
        self.ticked_epochs = self.trainer.current_epoch + 1
        if not self._tick_steps:
            self.tick()

    def check_weights(self) -> None:
        """Validate no weights that the last step has broken: a callback might stop the run for it."""
        reshard_(self.pl_module)
        if self.engine.watch(None, self.trainer.global_step, thoroughly=True):
            self._tell_and_align()

    def tell_metrics(self) -> None:
        """Write what was logged and not written yet."""
        self._reporter.tell_metrics(self.engine.ticks)

    # ------------------------------------------------------------------ one tick
    def tick(self) -> None:
        """One decision tick."""
        with self._clock.tick(self.trainer.global_step - self._first_step):
            self._tick()

    def _tick(self) -> None:
        trainer, engine = self.trainer, self.engine
        reshard_(self.pl_module)
        self._reporter.collect()
        epochs = trainer.current_epoch + (0 if self._tick_steps else 1)
        change = self._rollout.judge(trainer, engine.layers, self._validation.value, epochs)
        self._reporter.tell_rollout(change, engine.ticks)
        held_out = self._held_out()
        credit = None if held_out is None else HeldOutCredit(held_out, engine.layers)
        engine.tick(
            step=trainer.global_step,
            total_steps=total_steps(trainer),
            loss=self._validation.value,
            training_loss=self._training_loss.take(trainer),
            stop_patience=stop_patience(trainer),
            measure=credit,
            sizer=None if held_out is None else self._sizer(held_out),
            trials=self._trials(credit),
            validates_later=self._validation.measurable is None and bool(trainer.enable_validation),
        )
        if any(live_chunks(layer) for layer in engine.layers.values()):
            restart_patience(trainer)
        self._journal.tell()
        self._tell_cuts()
        self._tell_and_align()
        self._reporter.tell_tick(engine, self.pl_module, self._clock)
        self._review()

    def _tell_cuts(self) -> None:
        """Say what was left out for want of time."""
        for text in self._clock.cuts:
            tick, step = self.engine.ticks, self.trainer.global_step
            said = f"{text}: `budget.tick_share` leaves no more time"
            self._reporter.note(Finding(tick=tick, step=step, kind="cut", layer="tick", figures={}, text=said))

    def _held_out(self) -> HeldOut | None:
        """What gives held-out losses; None where there are none."""
        if not self._validation.measurable or self.trainer.val_dataloaders is None:
            return None
        return HeldOut(self.trainer, self.pl_module, self.config.credit, self.config.loss_fn, self._clock)

    def _sizer(self, held_out: HeldOut) -> HeldOutSizer | None:
        """What answers the sizing rule; None where layers are sharded, as no rank has whole units."""
        if isinstance(self.trainer.strategy, ModelParallelStrategy):
            return None
        return HeldOutSizer(held_out, self.engine.layers, self.config.model.seed)

    def _trials(self, credit: HeldOutCredit | None) -> TrainerTrials:
        """What tries growth out."""
        hold = (lambda: None) if self._host is None else self._host.hold_statistics
        engine = self.engine
        return TrainerTrials(self.trainer, self.pl_module, engine.layers, engine.optimizers, credit, hold)

    def _review(self) -> None:
        """Bring the eligibility report up to date, and say where seeds turned out to be slow."""
        if self.report is None:
            return
        before, self.report = self.report, review(self.report, self.pl_module)
        for name in fallbacks(before, self.report):
            rank_zero_warn(
                f"MorphoCallback: the seeds of `{name}` are computed by plain operations, several times slower: no "
                "kernel takes this dtype, device or activation."
            )

    # ------------------------------------------------------------------ persistence
    def state_dict(self) -> dict[str, Any]:
        """Counters, records, samples and the pending validation loss, as plain values and tensors."""
        return {
            "engine": self.engine.common_state(),
            "batches": self._batches,
            "val_loss": self._validation.value,
            "has_loss": self._validation.measurable,
            "rollout": self._rollout.state_dict(),
            "ticked_epochs": self.ticked_epochs,
            "reporter": self._reporter.state_dict(),
            "unread": self._ranks or [self._unread.state_dict()],
        }

    def complete_checkpoint(self, state: dict[str, Any]) -> None:
        """Add to what :meth:`state_dict` gave what only the other ranks know; on every rank, as all save together."""
        state["unread"] = gather_objects(self._unread.state_dict())

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave, of the rollout in :meth:`open`."""
        self._resumed, self._saved_rollout = True, state["rollout"]
        self.engine.load_state_dict(state["engine"])
        self._batches = state["batches"]
        self._validation.value, self._validation.measurable = state["val_loss"], state["has_loss"]
        self.ticked_epochs = state["ticked_epochs"]
        self._reporter.load_state_dict(state["reporter"])
        self._unread.load_state_dict(unread_parts(state), self.trainer.global_rank, self.trainer.world_size)


def _summed(ranks: Sequence[Mapping[str, int]]) -> dict[str, int]:
    return {name: sum(rank[name] for rank in ranks) for name in ranks[0]}
