"""The Lightning callback: the order of events, and nothing else."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, SingleDeviceStrategy
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from rich.console import Console
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from typing_extensions import override

from lightning_morpho.blueprints import blueprint_type
from lightning_morpho.checks import check, is_count, is_fraction, named_arguments
from lightning_morpho.config import (
    AUTO,
    BUDGET,
    BlueprintConfig,
    BudgetConfig,
    CreditConfig,
    GovernorConfig,
    GraftingConfig,
    LayersConfig,
    LifecycleConfig,
    MorphoConfig,
    RolloutConfig,
    TelemetryConfig,
    WarmupConfig,
    check_section,
)
from lightning_morpho.confirmation import decide_pairs_, fallbacks, review, unconfirmed
from lightning_morpho.engine import GrowthEngine
from lightning_morpho.freezing import FrozenHost, hide_free_beds_, show_beds_
from lightning_morpho.governor import Governor
from lightning_morpho.integrations import (
    HeldOutCredit,
    HeldOutSizer,
    Journal,
    LossFunction,
    Reporter,
    TrainerRollout,
    TrainerTrials,
    TrainingLoss,
    align_averages,
    allow_recompilations,
    averaged_models,
    describe_run,
    gather_objects,
    is_compiled,
    leave_unwrapped,
    loss_of,
    rebuild_averages,
    reshard_,
    stop_patience,
    tell_loss_scale,
    tick_steps,
    total_steps,
)
from lightning_morpho.layers import HybridKasminaLayer, clear_taps
from lightning_morpho.optim import OptimizerLink, adopt_plain_state
from lightning_morpho.pairs import PairProbe
from lightning_morpho.presets import with_preset
from lightning_morpho.rollout import RolloutChange
from lightning_morpho.surgery import EligibilityReport, hybrid_layers, morph_
from lightning_morpho.tamiyo import Tamiyo, Uniform
from lightning_morpho.tamiyo.replay import describe_policy
from lightning_morpho.telemetry import seed_table


@named_arguments
class MorphoCallback(Callback):
    """Let a model grow while it trains.

    At the start of a fit it swaps the model's eligible layers for hybrid chunked ones. At each decision
    tick the controller looks at all seeds and may ask some to germinate; what grew is judged on
    validation data, then kept or culled. Without a germination, training is bit for bit what it is
    without the callback.

    Args:
        layers: Which layers grow, and how finely.
        blueprint: What grows at a germination.
        lifecycle: Which stages a seed passes, and how long it stays in each.
        grafting: How a seed's output enters the host.
        warmup: Warm-up of newborns.
        budget: Limit on added parameters.
        rollout: Who grows at all.
        tamiyo: The controller.
        credit: How a seed's contribution is measured.
        governor: When a run that diverges is taken back.
        telemetry: What is observed and where it goes.
        every_n_steps: A decision tick every that many optimizer steps; a fraction in (0, 1): that share of the
            training's steps; None: at each epoch's end.
        loss_fn: ``loss_fn(module, batch) -> Tensor``: held-out loss of one validation batch. None: what
            ``validation_step`` returns, or logs as ``credit.monitor``.
        model_id: Identity of the model in the rollout's cohorts.
        seed: Random seed of new parameters; equal on every rank.
        freeze_host: Whether the model itself stands still during a fit and only seeds train: no parameter of it moves,
            norms keep their running statistics; what trained before trains again afterwards. None: false, or what
            ``preset`` says.
        preset: Settings that belong together, for the arguments left None: ``"adapt_pretrained"`` adapts a trained
            model by low-rank seeds, which ``merge_(model)`` folds into its weights.

    Raises:
        TypeError: If a section has the wrong type, above all a bare string from Hydra.
        ValueError: If a value is out of range, or the blueprint unknown.

    Example:
        >>> callback = MorphoCallback(every_n_steps=200)
        >>> callback.config.budget.parameters
        'auto'
    """

    _rollout: TrainerRollout  # from `setup` on
    _journal: Journal  # from `on_fit_start` on

    def __init__(
        self,
        *,
        layers: LayersConfig | None = None,
        blueprint: BlueprintConfig | None = None,
        lifecycle: LifecycleConfig | None = None,
        grafting: GraftingConfig | None = None,
        warmup: WarmupConfig | None = None,
        budget: BudgetConfig | None = None,
        rollout: RolloutConfig | None = None,
        tamiyo: Tamiyo | None = None,
        credit: CreditConfig | None = None,
        governor: GovernorConfig | None = None,
        telemetry: TelemetryConfig | None = None,
        every_n_steps: int | float | None = None,
        loss_fn: LossFunction | None = None,
        model_id: str = "model",
        seed: int = 0,
        freeze_host: bool | None = None,
        preset: str | None = None,
    ) -> None:
        layers, blueprint, lifecycle, tamiyo, credit, every_n_steps, freeze_host = with_preset(
            preset,
            layers=layers,
            blueprint=blueprint,
            lifecycle=lifecycle,
            tamiyo=tamiyo,
            credit=credit,
            every_n_steps=every_n_steps,
            freeze_host=freeze_host,
        )
        self.tamiyo = Uniform() if tamiyo is None else tamiyo
        check_section("tamiyo", self.tamiyo, Tamiyo)
        blueprint = BlueprintConfig() if blueprint is None else blueprint
        check_section("blueprint", blueprint, BlueprintConfig)
        if self.tamiyo.fills_budget and blueprint.hidden == AUTO:
            blueprint = replace(blueprint, hidden=BUDGET)
        self.config = MorphoConfig(
            layers=LayersConfig() if layers is None else layers,
            blueprint=blueprint,
            lifecycle=LifecycleConfig() if lifecycle is None else lifecycle,
            grafting=GraftingConfig() if grafting is None else grafting,
            warmup=WarmupConfig() if warmup is None else warmup,
            budget=BudgetConfig() if budget is None else budget,
            rollout=RolloutConfig() if rollout is None else rollout,
            model_id=model_id,
            seed=seed,
        )
        self.credit = CreditConfig() if credit is None else credit
        self.governor = GovernorConfig() if governor is None else governor
        self.telemetry = TelemetryConfig() if telemetry is None else telemetry
        check_section("credit", self.credit, CreditConfig)
        check_section("governor", self.governor, GovernorConfig)
        check_section("telemetry", self.telemetry, TelemetryConfig)
        if self.config.blueprint.kind != AUTO:
            blueprint_type(self.config.blueprint.kind)
        check(
            every_n_steps is None or is_count(every_n_steps) or (is_fraction(every_n_steps) and 0 < every_n_steps < 1),
            "every_n_steps",
            "at least 1 optimizer step, a fraction of training in (0, 1), or None",
            every_n_steps,
        )
        check(freeze_host in (None, True, False), "freeze_host", "true, false or None", freeze_host)
        if freeze_host and (self.config.rollout.flag_file or self.config.rollout.ramp):
            raise ValueError(
                "`freeze_host` can't go with `rollout.flag_file` or `rollout.ramp`: with all layers off, nothing would "
                "be left to train."
            )
        self.every_n_steps = every_n_steps
        self.freeze_host = bool(freeze_host)
        self._host: FrozenHost | None = None
        self._tick_steps: int | None = None
        self.loss_fn = loss_fn
        self.report: EligibilityReport | None = None
        self.engine: GrowthEngine | None = None
        self._state: dict[str, Any] | None = None
        self._reporter: Reporter | None = None
        self._probe: PairProbe | None = None
        self._watching = False
        self._batches = 0
        self._training_loss = TrainingLoss()
        self._val_loss: float | None = None
        self._has_loss: bool | None = None
        self._attached = False
        self._plain_checkpoint: dict[str, Any] | None = None
        self._ticked_epochs: int | None = None

    # ------------------------------------------------------------------ before optimizers exist
    @property
    @override
    def state_key(self) -> str:
        """Name of this callback's state in a checkpoint."""
        # Distinct until `setup`: a second callback is to meet our message, not Lightning's about state keys.
        return "MorphoCallback" if self._attached else f"MorphoCallback-{id(self)}"

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Arrange that the layers are swapped right after ``configure_model``, before optimizers exist."""
        self._check_trainer(trainer, pl_module)
        self._attached = True
        self._rollout = TrainerRollout(self.config.rollout, self.config.model_id, self.credit.monitor, trainer)
        original = pl_module.configure_model

        def configure_model() -> None:
            # Not functools.wraps: Lightning would take it for the original and never call it.
            pl_module.__dict__.pop("configure_model", None)
            if isinstance(trainer.strategy, ModelParallelStrategy):
                self._swap(trainer, pl_module, stage)  # `configure_model` shards the layers, and their beds with them
                original()
                return
            original()
            self._swap(trainer, pl_module, stage)

        pl_module.configure_model = configure_model  # type: ignore[method-assign]

    def _check_trainer(self, trainer: Trainer, pl_module: LightningModule) -> None:
        callbacks: Sequence[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        others = sum(isinstance(callback, MorphoCallback) for callback in callbacks)
        if others > 1:
            raise ValueError(
                f"A Trainer takes one MorphoCallback, got {others}. Put all layers into one with `layers.include`."
            )
        if not isinstance(trainer.strategy, (SingleDeviceStrategy, DDPStrategy, ModelParallelStrategy)):
            raise ValueError(
                f"The strategy {type(trainer.strategy).__name__} is not supported: it flattens or moves parameters, so "
                "that seeds can't be started and freed one by one. Use a single device, 'ddp' or "
                "ModelParallelStrategy (FSDP2), or leave the callback out."
            )
        if isinstance(trainer.strategy.launcher, _MultiProcessingLauncher) and not hybrid_layers(pl_module):
            raise ValueError(
                "Processes that the Trainer starts from a running one ('ddp_spawn', 'ddp_fork', 'ddp_notebook') bring "
                "back weights, but no new layers, so what grew in them would be lost. Call `morph_(module, "
                "callback.config)` before `fit`, or train by 'ddp' in a script."
            )

    def _swap(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if not hybrid_layers(pl_module):
            example = pl_module.example_input_array
            self.report = morph_(pl_module, self.config, example, rollout=self._rollout)
            self._state = None
            rebuild_averages(trainer, pl_module, stage)
        if stage == "fit" and hybrid_layers(pl_module):
            show_beds_(pl_module)
            if self.freeze_host:
                self._host = FrozenHost(pl_module)
                leave_unwrapped(trainer)
        # DDP's reducer fails on parameters that a step does not use; ours are averaged separately.
        beds = [name for name, _ in pl_module.named_parameters() if ".morpho." in f".{name}"]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(pl_module, beds)

    # ------------------------------------------------------------------ fit
    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Connect layers, optimizers and controller; say what will grow."""
        layers = hybrid_layers(pl_module)
        hide_free_beds_(pl_module)
        if self.report is not None:
            rank_zero_info(f"MorphoCallback: {self.report.summary()}")
        if not layers:
            rank_zero_info("MorphoCallback: the rollout selects no layer, this run trains without growth.")
            return
        if self.config.blueprint.kind == "mlp" and any(layer.num_seeds > 1 for layer in layers.values()):
            rank_zero_info(
                "MorphoCallback: `mlp` sees one chunk at a time: the more chunks a layer has, the less it gains for "
                "the same parameters. `blueprint.kind: auto` or `layers.num_seeds: 1` gains more."
            )
        if not trainer.enable_validation:
            rank_zero_warn(
                "MorphoCallback: there is no validation in this run, so seeds are kept without judgement. "
                "Give the Trainer a validation loader and the module a `validation_step`."
            )
        link = OptimizerLink(layers, trainer.optimizers)
        for line in link.added:
            rank_zero_info(f"MorphoCallback: {line}.")
        if self._plain_checkpoint is not None:
            for saved, optimizer in zip(self._plain_checkpoint["optimizer_states"], trainer.optimizers, strict=True):
                adopt_plain_state(saved, optimizer, layers)
            self._plain_checkpoint = None
        compiled = is_compiled(pl_module)
        if compiled:
            self._prepare_compiled(layers)
        self._reporter = Reporter(trainer, layers, self.telemetry, pl_module.device, sample=not compiled)
        governor = self._make_governor(trainer, pl_module) if self.governor.enabled else None
        self.engine = GrowthEngine(layers, self.tamiyo, link, self._reporter.note, governor)
        if self._state is not None:
            self.engine.load_state_dict(self._state["engine"])
            if "reporter" in self._state:
                self._reporter.load_state_dict(self._state["reporter"])
        self._watching = bool(unconfirmed(pl_module))
        started = {"event": "fit_start", "tick": self.engine.ticks, "step": trainer.global_step}
        self._reporter.write({**started, "tamiyo": describe_policy(self.tamiyo)})
        self._journal = Journal(self.engine, self._reporter.write, self._reporter.folder)
        saved = None if self._state is None else self._state.get("rollout")
        self._reporter.tell_rollout(self._rollout.begin(trainer, layers, saved), self.engine.ticks)

    def _sections(self) -> dict[str, object]:
        """The arguments of this callback, as the run log takes them."""
        sections = {item.name: getattr(self.config, item.name) for item in fields(self.config)}
        sections |= {"tamiyo": self.tamiyo, "credit": self.credit, "telemetry": self.telemetry}
        return sections | {"every_n_steps": self.every_n_steps, "loss_fn": self.loss_fn is not None}

    def _prepare_compiled(self, layers: dict[str, HybridKasminaLayer]) -> None:
        for layer in layers.values():
            layer.morpho.bucketed = True
            layer.morpho.refresh()
        buckets = sum(len(layer.morpho.beds).bit_length() for layer in layers.values())
        allow_recompilations(buckets + self._rollout.topologies)
        if self.telemetry.every_n_steps:
            rank_zero_info("MorphoCallback: the model runs compiled, so activations are not sampled.")

    def _make_governor(self, trainer: Trainer, pl_module: LightningModule) -> Governor:
        return Governor(
            self.governor,
            pl_module,
            trainer.optimizers,
            averages=lambda: averaged_models(trainer),
            skips=getattr(trainer.precision_plugin, "scaler", None) is not None,
        )

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Grow what is to grow from the start; make up for a tick that a resumed run lost.

        Lightning takes an epoch for done if its last batch was the last thing that a checkpoint holds: neither
        its validation nor ``on_train_epoch_end`` comes again.
        """
        # Not before: asking for the length of training sets up the loaders, whose state is restored in between.
        self._tick_steps = tick_steps(trainer, self.every_n_steps)
        layers = hybrid_layers(pl_module)
        for layer in layers.values():
            layer.morpho.wake()
        if self.engine is not None and self._reporter is not None:
            description = describe_run(trainer, pl_module, layers, self.report, self._sections())
            self._reporter.begin(self.engine.ticks, description, resumed=self._state is not None)
        if self.engine is not None:
            self._begin(trainer)
        if self._ticked_epochs is None:
            self._ticked_epochs = trainer.current_epoch
        if self.engine is not None and not self._tick_steps and self._ticked_epochs < trainer.current_epoch:
            self._val_loss = None
            self._tick(trainer, pl_module)
            self._ticked_epochs = trainer.current_epoch
        if self.engine is not None:
            self.engine.snapshot(trainer.global_step)

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Open the layers' statistics for one batch in every ``telemetry.every_n_steps``; watch the first one."""
        if self._rollout.watched:
            self._rollout.timer.start()
        if isinstance(trainer.strategy, ModelParallelStrategy):
            reshard_(pl_module)
        if self._host is not None:
            self._host.hold_statistics()
        if self.engine is None or self._reporter is None:
            return
        self._reporter.sampler.open(self._batches)
        clear_taps(self.engine.layers.values())
        tell_loss_scale(trainer, self.engine.layers)
        if self._watching:
            self._probe = PairProbe(pl_module)
            self._probe.__enter__()

    @override
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Average the gradients of live beds over the ranks; look at them once in a while."""
        if self.engine is not None and self._reporter is not None:
            self.engine.optimizers.settle_gradients(optimizer)
            self._reporter.sampler.take_gradients(optimizer)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Close the statistics, and tick if ticks go by steps."""
        if self.engine is None or self._reporter is None:
            self._rollout.timer.stop()
            if self._tick_steps and trainer.global_step % self._tick_steps == 0:
                self._judge_rollout(trainer)
            return
        if self._probe is not None:
            self._settle_pairs(pl_module)
        self._reporter.sampler.close()
        self._rollout.timer.stop()
        if self._training_loss.empty or self._reporter.sampler.due(self._batches):
            self._training_loss.add(outputs)
        self._batches += 1
        step = trainer.global_step
        if self.engine.governor is not None:
            reshard_(pl_module)
            self.engine.watch(loss_of(outputs), step)
        if self._tick_steps and step > self.engine.step and step % self._tick_steps == 0:
            self._tick(trainer, pl_module)
        elif self._reporter.pending:
            self._reporter.tell()
            align_averages(trainer, pl_module)
        change = self._rollout.look_again(trainer, self.engine.layers)
        if change is not None:
            self._reporter.tell_rollout(change, self.engine.ticks)
            align_averages(trainer, pl_module)

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tick if ticks go by epochs; validation has run, checkpoints are yet to be written."""
        self._ticked_epochs = trainer.current_epoch + 1
        if self.engine is not None and not self._tick_steps:
            self._tick(trainer, pl_module)
        elif self.engine is None and not self._tick_steps:
            self._judge_rollout(trainer)

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validate no weights that the last step has broken: a callback might stop the run for it."""
        if self.engine is None or self._reporter is None or trainer.sanity_checking:
            return
        reshard_(pl_module)
        if self.engine.watch(None, trainer.global_step, thoroughly=True):
            self._reporter.tell()
            align_averages(trainer, pl_module)

    @override
    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Learn whether ``validation_step`` returns a loss."""
        if self._has_loss is None and (self.loss_fn is not None or loss_of(outputs) is not None):
            self._has_loss = True

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the validation loss, before a checkpoint is written; say so if there is none."""
        value = trainer.callback_metrics.get(self.credit.monitor)
        if self._has_loss is None:
            self._has_loss = value is not None
            if not self._has_loss and self.engine is not None:
                rank_zero_warn(
                    "MorphoCallback: `validation_step` returns no loss and logs nothing as "
                    f"`{self.credit.monitor}` (`credit.monitor`), so seeds are kept without judgement. "
                    "Return the loss, or pass `loss_fn=`."
                )
        if not trainer.sanity_checking:
            loss = torch.tensor(math.nan if value is None else float(value), device=pl_module.device)
            agreed = float(trainer.strategy.reduce(loss, reduce_op="mean"))
            self._val_loss = None if math.isnan(agreed) else agreed
            self._tell_metrics()

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write what the epoch before logged at its very end."""
        self._tell_metrics()

    def _tell_metrics(self) -> None:
        if self.engine is not None and self._reporter is not None:
            self._reporter.tell_metrics(self.engine.ticks)

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say how the fit ended, and print the table of seeds."""
        self._tell_metrics()
        if self.engine is not None and self._reporter is not None:
            self._reporter.end(self.engine, "finished")
        if self.engine is not None and self.telemetry.table and trainer.is_global_zero:
            Console().print(seed_table(self.engine.records))

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the model as a fit that ended leaves it."""
        if self._probe is not None:
            self._probe.__exit__(None, None, None)
            self._probe = None
        clear_taps(hybrid_layers(pl_module).values())
        if self.engine is not None and self._reporter is not None:
            self._reporter.end(self.engine, f"{type(exception).__name__}: {exception}")
        self._close()

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let go of layers and optimizers."""
        self._close()

    def _close(self) -> None:
        if self._host is not None:
            self._host.thaw()
            self._host = None
        if self.engine is None or self._reporter is None:
            return
        self._reporter.close()
        self._state = self.state_dict()
        self.engine.close()
        self.engine = self._reporter = self._ticked_epochs = None

    # ------------------------------------------------------------------ one tick
    def _begin(self, trainer: Trainer) -> None:
        assert self.engine is not None and self._reporter is not None
        if not self.engine.ticks:
            self.engine.begin(step=trainer.global_step, total_steps=total_steps(trainer))
            self._reporter.tell()
        if self._host is not None and not self.engine.live_parameters:
            raise ValueError(
                "`freeze_host` leaves nothing to train: no seed has germinated. Take a policy that begins at the "
                "start: `tamiyo=Probation()`."
            )

    def _tick(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self.engine is not None and self._reporter is not None
        reshard_(pl_module)
        self._reporter.collect()
        self._reporter.tell_rollout(self._judge_rollout(trainer), self.engine.ticks)
        can_measure = bool(self._has_loss) and trainer.val_dataloaders is not None
        credit = HeldOutCredit(trainer, pl_module, self.engine.layers, self.credit, self.loss_fn)
        self.engine.tick(
            step=trainer.global_step,
            total_steps=total_steps(trainer),
            loss=self._val_loss,
            training_loss=self._training_loss.take(trainer),
            stop_patience=stop_patience(trainer),
            measure=credit if can_measure else None,
            sizer=self._sizer(trainer, pl_module) if can_measure else None,
            trials=self._trials(trainer, pl_module, credit if can_measure else None),
        )
        self._journal.tell()
        self._reporter.tell()
        align_averages(trainer, pl_module)
        self._reporter.tell_tick(self.engine, pl_module)
        self._review(pl_module)

    def _review(self, pl_module: LightningModule) -> None:
        """Bring the eligibility report up to date, and say where seeds turned out to be slow."""
        if self.report is None:
            return
        before, self.report = self.report, review(self.report, pl_module)
        for name in fallbacks(before, self.report):
            rank_zero_warn(
                f"MorphoCallback: the seeds of `{name}` are computed by plain operations, several times slower: no "
                "kernel takes this dtype, device or activation."
            )

    def _judge_rollout(self, trainer: Trainer) -> RolloutChange | None:
        """Let a ramp move; a run without growth leaves its figures for those with it."""
        over = trainer.current_epoch + (0 if self._tick_steps else 1)
        layers = {} if self.engine is None else self.engine.layers
        return self._rollout.judge(trainer, layers, self._val_loss, over)

    def _settle_pairs(self, pl_module: LightningModule) -> None:
        """Decide which proposed pairs are confirmed, on every rank alike."""
        assert self._probe is not None
        self._probe.__exit__(None, None, None)
        verdicts = self._probe.verdicts()
        self._probe = None
        self._watching = False
        for refused in gather_objects({name: v for name, v in verdicts.items() if isinstance(v, str)}):
            verdicts |= refused
        for name, reason in decide_pairs_(pl_module, verdicts).items():
            rank_zero_warn(f"MorphoCallback: `{name}` stays as it is, the pair proposed for it is refused: {reason}.")
        self._review(pl_module)

    def _sizer(self, trainer: Trainer, pl_module: LightningModule) -> HeldOutSizer | None:
        """What answers the sizing rule; None where layers are sharded, as no rank has whole units."""
        if isinstance(trainer.strategy, ModelParallelStrategy):
            return None
        assert self.engine is not None
        seed = self.config.seed
        return HeldOutSizer(trainer, pl_module, self.engine.layers, self.credit, self.loss_fn, seed)

    def _trials(self, trainer: Trainer, pl_module: LightningModule, credit: HeldOutCredit | None) -> TrainerTrials:
        """What tries growth out."""
        assert self.engine is not None
        hold = (lambda: None) if self._host is None else self._host.hold_statistics
        return TrainerTrials(trainer, pl_module, self.engine.layers, self.engine.optimizers, credit, hold)

    # ------------------------------------------------------------------ persistence
    @override
    def state_dict(self) -> dict[str, Any]:
        """Counters, records, samples and the pending validation loss, as plain values and tensors."""
        if self.engine is None:
            return self._state or {}
        return {
            "engine": self.engine.state_dict(),
            "batches": self._batches,
            "training_loss": self._training_loss.state_dict(),
            "val_loss": self._val_loss,
            "has_loss": self._has_loss,
            "rollout": self._rollout.state_dict(),
            "ticked_epochs": self._ticked_epochs,
        } | ({} if self._reporter is None else {"reporter": self._reporter.state_dict()})

    @override
    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Hold what is saved: a run that resumes from it begins with the same snapshot."""
        if self.engine is not None:
            self.engine.snapshot(trainer.global_step)

    @override
    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Note a checkpoint that was written without growth: its optimizer states know no beds."""
        if self.engine is None:
            show_beds_(pl_module)
        weights = checkpoint.get("state_dict")  # a sharded checkpoint has none here
        if weights and checkpoint.get("optimizer_states") and not any(".morpho." in f".{name}" for name in weights):
            self._plain_checkpoint = checkpoint

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave."""
        if not state_dict:
            return
        self._state = state_dict
        self._batches = state_dict["batches"]
        self._training_loss.load_state_dict(state_dict["training_loss"])
        self._val_loss, self._has_loss = state_dict["val_loss"], state_dict["has_loss"]
        self._ticked_epochs = state_dict["ticked_epochs"]
        if self.engine is not None:
            self.engine.load_state_dict(state_dict["engine"])
