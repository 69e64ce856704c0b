"""A rollout driven by a Trainer: rank 0 looks and measures, every rank applies the same."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lightning.pytorch import Trainer

from lightning_morpho.config import RolloutConfig
from lightning_morpho.integrations.ranks import gather_objects
from lightning_morpho.layers import HybridKasminaLayer
from lightning_morpho.rollout import LiveRollout, RolloutChange, RunHealth, feature_environment

Layers = Mapping[str, HybridKasminaLayer]


class TrainerRollout(LiveRollout):
    """The flags of one run.

    Args:
        config: The rollout.
        model_id: Id of the model.
        monitor: Name under which the validation loss is logged.
        trainer: The Trainer, once its processes are connected. The environment of its rank 0 holds
            everywhere: ranks that differ would swap different layers.
    """

    def __init__(self, config: RolloutConfig, model_id: str, monitor: str, trainer: Trainer) -> None:
        super().__init__(config, model_id, trainer.strategy.broadcast(feature_environment()))
        self._monitor = monitor
        self._looked = 0

    def begin(self, trainer: Trainer, layers: Layers, saved: Mapping[str, Any] | None) -> RolloutChange | None:
        """Bring the layers in line with configuration, flag file and, in a resumed run, the ramp's stage.

        Raises:
            ValueError: If the flag file can't be understood.
        """
        if saved is not None:
            self.load_state_dict(saved)
        look = trainer.strategy.broadcast(self.look() if trainer.is_global_zero else None)
        if look is not None and look.problem:
            raise ValueError(f"{look.problem} Correct the file, or start without `rollout.flag_file`.")
        self.take(look, layers)
        change = self.start(layers, self._progress(trainer, trainer.current_epoch))
        return change if self.changes else None

    def look_again(self, trainer: Trainer, layers: Layers) -> RolloutChange | None:
        """Between two steps: rank 0 looks at the flag file if it is time to, and all apply what it saw."""
        step = trainer.global_step
        if step == self._looked or not self.due(step):
            return None
        self._looked = step
        return self.take(trainer.strategy.broadcast(self.look() if trainer.is_global_zero else None), layers)

    def judge(self, trainer: Trainer, layers: Layers, loss: float | None, epochs: int) -> RolloutChange | None:
        """At a decision tick: leave the run's figures for other runs, and let the ramp rise, or fall.

        Args:
            trainer: The Trainer.
            layers: The hybrid layers by name; none in a run without growth.
            loss: Latest validation loss; None if there is none.
            epochs: Epochs that are over.
        """
        if not self.watched:
            return None
        if math.isnan(trainer.callback_metrics.get(self._monitor, 0.0)):
            loss = math.nan
        errors = sum(gather_objects(sum(int(layer.morpho.state.errors.sum()) for layer in layers.values())))
        own = RunHealth(val_loss=loss, step_time=self.timer.take(), errors=errors)
        if self.cohort is not None and trainer.is_global_zero:
            self.cohort.write(trainer.global_step, own, grown=self.grown)
            own = replace(own, baseline=self.cohort.baseline(trainer.global_step))
        return self.tick(layers, self._progress(trainer, epochs), trainer.strategy.broadcast(own))

    def _progress(self, trainer: Trainer, epochs: int) -> int:
        by_step = self.ramp is not None and self.ramp.config.by == "step"
        return trainer.global_step if by_step else epochs
