"""What only a Lightning Trainer can give."""

from lightning_morpho.integrations.averaging import rebuild_averages
from lightning_morpho.integrations.duration import tick_steps
from lightning_morpho.integrations.ranks import gather_objects
from lightning_morpho.integrations.reporting import Reporter
from lightning_morpho.integrations.rollout import TrainerRollout
from lightning_morpho.integrations.run import GrowthRun
from lightning_morpho.integrations.sharding import reshard_
from lightning_morpho.integrations.swapping import check_trainer, keep_beds_from_reducer, when_configured
from lightning_morpho.integrations.training import ValidationLoss
from lightning_morpho.integrations.unwrapped import leave_unwrapped
from lightning_morpho.integrations.validation import HeldOut, HeldOutCredit, LossFunction, loss_of

__all__ = [
    "GrowthRun",
    "HeldOut",
    "HeldOutCredit",
    "LossFunction",
    "Reporter",
    "TrainerRollout",
    "ValidationLoss",
    "check_trainer",
    "gather_objects",
    "keep_beds_from_reducer",
    "leave_unwrapped",
    "loss_of",
    "rebuild_averages",
    "reshard_",
    "tick_steps",
    "when_configured",
]
