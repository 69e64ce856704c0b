"""What only a Lightning Trainer can give."""

from lightning_morpho.integrations.averaging import align_averages, averaged_models, rebuild_averages
from lightning_morpho.integrations.compilation import allow_recompilations, is_compiled
from lightning_morpho.integrations.description import describe_run
from lightning_morpho.integrations.duration import tick_steps, total_steps
from lightning_morpho.integrations.journal import Journal
from lightning_morpho.integrations.ranks import gather_objects
from lightning_morpho.integrations.reporting import Reporter
from lightning_morpho.integrations.rollout import TrainerRollout
from lightning_morpho.integrations.scaling import tell_loss_scale
from lightning_morpho.integrations.sharding import reshard_
from lightning_morpho.integrations.sizing import HeldOutSizer
from lightning_morpho.integrations.training import TrainingLoss, stop_patience
from lightning_morpho.integrations.trials import TrainerTrials
from lightning_morpho.integrations.unwrapped import leave_unwrapped
from lightning_morpho.integrations.validation import (
    HeldOutCredit,
    LossFunction,
    held_out_batches,
    loss_of,
    validation_loss,
)

__all__ = [
    "HeldOutCredit",
    "HeldOutSizer",
    "Journal",
    "Reporter",
    "gather_objects",
    "describe_run",
    "LossFunction",
    "TrainerRollout",
    "TrainerTrials",
    "TrainingLoss",
    "align_averages",
    "averaged_models",
    "allow_recompilations",
    "rebuild_averages",
    "reshard_",
    "tick_steps",
    "total_steps",
    "held_out_batches",
    "is_compiled",
    "leave_unwrapped",
    "loss_of",
    "stop_patience",
    "tell_loss_scale",
    "validation_loss",
]
