"""The Lightning callback: the order of events, and nothing else."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch.optim import Optimizer
from typing_extensions import override

from lightning_morpho.checks import named_arguments
from lightning_morpho.config import (
    BlueprintConfig,
    BudgetConfig,
    CreditConfig,
    GovernorConfig,
    GraftingConfig,
    LayersConfig,
    LifecycleConfig,
    RolloutConfig,
    StarvationConfig,
    TelemetryConfig,
    WarmupConfig,
)
from lightning_morpho.eligibility import EligibilityReport
from lightning_morpho.engine import GrowthEngine
from lightning_morpho.freezing import FrozenHost, hide_free_beds_, show_beds_
from lightning_morpho.integrations import (
    GrowthRun,
    LossFunction,
    TrainerRollout,
    ValidationLoss,
    check_trainer,
    keep_beds_from_reducer,
    leave_unwrapped,
    loss_of,
    rebuild_averages,
    reshard_,
    tick_steps,
    when_configured,
)
from lightning_morpho.layers import HybridKasminaLayer, clear_taps
from lightning_morpho.optim import adopt_plain_state
from lightning_morpho.run_config import RunConfig
from lightning_morpho.surgery import hybrid_layers, morph_
from lightning_morpho.tamiyo import Tamiyo


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
        starvation: What becomes of seeds that can't learn.
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

    def __init__(
        self,
        *,
        layers: LayersConfig | None = None,
        blueprint: BlueprintConfig | None = None,
        lifecycle: LifecycleConfig | None = None,
        grafting: GraftingConfig | None = None,
        warmup: WarmupConfig | None = None,
        starvation: StarvationConfig | None = None,
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
        arguments = {
            "layers": layers,
            "blueprint": blueprint,
            "lifecycle": lifecycle,
            "grafting": grafting,
            "warmup": warmup,
            "starvation": starvation,
            "budget": budget,
            "rollout": rollout,
            "tamiyo": tamiyo,
            "credit": credit,
            "governor": governor,
            "telemetry": telemetry,
            "every_n_steps": every_n_steps,
            "loss_fn": loss_fn,
            "freeze_host": freeze_host,
        }
        run = RunConfig.of(preset, model_id=model_id, seed=seed, **arguments)
        self.run_config = run
        self.config, self.tamiyo, self.credit, self.freeze_host = run.model, run.tamiyo, run.credit, run.freeze_host
        self._host: FrozenHost | None = None
        self._report: EligibilityReport | None = None
        self._run: GrowthRun | None = None
        self._validation, self._warned = ValidationLoss(), False
        self._tick_steps: int | None = None  # of a run without growth
        self._state: dict[str, Any] | None = None
        self._attached = False
        self._plain_checkpoint: dict[str, Any] | None = None

    @property
    def engine(self) -> GrowthEngine | None:
        """The circle of decision ticks; None outside a fit, and in one without growth."""
        return None if self._run is None else self._run.engine

    @property
    def report(self) -> EligibilityReport | None:
        """Every module with the reason why seeds grow in it or not; None before the first fit."""
        return self._report if self._run is None else self._run.report

    @property
    @override
    def state_key(self) -> str:
        """Name of this callback's state in a checkpoint."""
        # Distinct until `setup`: a second callback is to meet our message, not Lightning's about state keys.
        return "MorphoCallback" if self._attached else f"MorphoCallback-{id(self)}"

    # ------------------------------------------------------------------ before optimizers exist
    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Arrange that the layers are swapped right after ``configure_model``, before optimizers exist."""
        check_trainer(trainer, pl_module, MorphoCallback)
        self._attached = True
        self._rollout = TrainerRollout(self.config.rollout, self.config.model_id, self.credit.monitor, trainer)
        if self._state is not None and stage == "fit":
            self._state = self._state | {"ticked_epochs": None}  # a new fit counts its own epochs
        when_configured(trainer, pl_module, lambda: self._swap(trainer, pl_module, stage))

    def _swap(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if not hybrid_layers(pl_module):
            example = pl_module.example_input_array
            self._report = morph_(pl_module, self.config, example, rollout=self._rollout)
            self._state = None
            rebuild_averages(trainer, pl_module, stage)
        if stage == "fit" and hybrid_layers(pl_module):
            show_beds_(pl_module)
            if self.freeze_host:
                self._host = FrozenHost(pl_module)
                leave_unwrapped(trainer)
        keep_beds_from_reducer(pl_module)

    # ------------------------------------------------------------------ start of a fit
    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Connect layers, optimizers and controller; say what will grow."""
        layers = hybrid_layers(pl_module)
        hide_free_beds_(pl_module)
        self._validation, self._warned = ValidationLoss(), False
        if self._report is not None:
            rank_zero_info(f"MorphoCallback: {self._report.summary()}")
        if not layers:
            rank_zero_info("MorphoCallback: the rollout selects no layer, this run trains without growth.")
            return
        self._say_what_to_expect(trainer, layers)
        run = GrowthRun(
            trainer,
            pl_module,
            self.run_config,
            rollout=self._rollout,
            validation=self._validation,
            host=self._host,
            report=self._report,
        )
        self._run = run
        if self._plain_checkpoint is not None:
            for saved, optimizer in zip(self._plain_checkpoint["optimizer_states"], trainer.optimizers, strict=True):
                adopt_plain_state(saved, optimizer, layers)
            self._plain_checkpoint = None
        if self._state is not None:
            run.load_state_dict(self._state)

    def _say_what_to_expect(self, trainer: Trainer, layers: dict[str, HybridKasminaLayer]) -> None:
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

    @override
    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Bring the layers in line with the rollout: not before, as a sharded model is restored only now."""
        if self._run is not None:
            self._run.open()

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Grow what is to grow from the start; make up for a tick that a resumed run lost."""
        if self._run is not None:
            self._run.start()
        else:
            self._tick_steps = tick_steps(trainer, self.run_config.every_n_steps)

    # ------------------------------------------------------------------ training
    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Make ready for one batch: shards in their place, norms of a frozen host still, statistics open."""
        if self._rollout.watched:
            self._rollout.timer.start()
        if isinstance(trainer.strategy, ModelParallelStrategy):
            reshard_(pl_module)
        if self._host is not None:
            self._host.hold_statistics()
        if self._run is not None:
            self._run.open_batch()

    @override
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Average the gradients of live beds over the ranks; look at them once in a while."""
        if self._run is not None:
            self._run.settle_gradients(optimizer)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Close the statistics, and tick if ticks go by steps."""
        if self._run is not None:
            self._run.close_batch(outputs)
            return
        self._rollout.timer.stop()
        if self._tick_steps and trainer.global_step % self._tick_steps == 0:
            self._rollout.judge(trainer, {}, self._validation.value, trainer.current_epoch)

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write what the epoch before logged at its very end."""
        if self._run is not None:
            self._run.tell_metrics()

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tick if ticks go by epochs; a run without growth leaves its figures for those with it."""
        if self._run is not None:
            self._run.end_epoch()
        elif not self._tick_steps:
            self._rollout.judge(trainer, {}, self._validation.value, trainer.current_epoch + 1)

    # ------------------------------------------------------------------ validation
    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validate no weights that the last step has broken: a callback might stop the run for it."""
        if self._run is not None and not trainer.sanity_checking:
            self._run.check_weights()

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
        self._validation.see(self.run_config.loss_fn is not None or loss_of(outputs) is not None)

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the validation loss, before a checkpoint is written; say so if there is none."""
        self._validation.note(trainer, self.credit.monitor)
        if self._run is None:
            return
        if not self._validation.measurable and not self._warned:
            self._warned = True
            rank_zero_warn(
                "MorphoCallback: `validation_step` returns no loss and logs nothing as "
                f"`{self.credit.monitor}`, so seeds are kept without judgement. Return the loss, pass `loss_fn=`, or "
                'say under which name it is logged: `credit=CreditConfig(monitor="...")`.'
            )
        if not trainer.sanity_checking:
            self._run.tell_metrics()

    # ------------------------------------------------------------------ end of a fit
    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say how the fit ended, and print the table of seeds."""
        if self._run is not None:
            self._run.finish()

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the model as a fit that ended leaves it."""
        clear_taps(hybrid_layers(pl_module).values())
        if self._run is not None:
            self._run.end(f"{type(exception).__name__}: {exception}")
        self._close()

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let go of layers and optimizers."""
        self._close()

    def _close(self) -> None:
        if self._host is not None:
            self._host.thaw()
            self._host = None
        if self._run is not None:
            self._state, self._report = self.state_dict(), self._run.report
            self._run.close()
            self._run = None

    # ------------------------------------------------------------------ persistence
    @override
    def state_dict(self) -> dict[str, Any]:
        """Counters, records, samples and the pending validation loss, as plain values and tensors."""
        return self._state or {} if self._run is None else self._run.state_dict()

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave."""
        if not state_dict:
            return
        self._state = state_dict
        if self._run is not None:  # a sharded model is restored after the fit has started
            self._run.load_state_dict(state_dict)

    @override
    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Hold what is saved: a run that resumes from it begins with the same snapshot, on every rank."""
        if self._run is not None:
            self._run.engine.snapshot(trainer.global_step)
            state = checkpoint.get("callbacks", {}).get(self.state_key)
            if state is not None:  # weights alone are saved without it
                self._run.complete_checkpoint(state)

    @override
    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Note a checkpoint that was written without growth: its optimizer states know no beds."""
        if self._run is None:
            show_beds_(pl_module)
        weights = checkpoint.get("state_dict")  # a sharded checkpoint has none here
        if weights and checkpoint.get("optimizer_states") and not any(".morpho." in f".{name}" for name in weights):
            self._plain_checkpoint = checkpoint
