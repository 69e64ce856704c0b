"""What each rank has seen since the ranks last told each other: a checkpoint holds it for all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightning_morpho.engine import GrowthEngine
from lightning_morpho.integrations.training import TrainingLoss
from lightning_morpho.telemetry import Sampler


class Unread:
    """Losses, samples and faults of one rank that are exchanged at the next tick, or the governor's next look.

    Args:
        engine: The engine of the run.
        training_loss: The run's mean training loss.
        sampler: What samples the layers.
    """

    def __init__(self, engine: GrowthEngine, training_loss: TrainingLoss, sampler: Sampler) -> None:
        self._engine, self._training_loss, self._sampler = engine, training_loss, sampler

    def state_dict(self) -> dict[str, Any]:
        """This rank's part; waits for the device."""
        governor = self._engine.recovery.governor
        return {
            "losses": [] if governor is None else governor.waiting,
            "faults": {name: layer.morpho.faults.state_dict() for name, layer in self._engine.layers.items()},
            "training_loss": self._training_loss.state_dict(),
            "samples": self._sampler.state_dict(),
        }

    def load_state_dict(self, ranks: Sequence[Mapping[str, Any]], rank: int, world_size: int) -> None:
        """Restore the part of a rank.

        On another number of ranks than that of the checkpoint the losses are the means that all would have learnt
        anyway, and a rank goes on with the samples of one that there was.

        Args:
            ranks: What :meth:`state_dict` gave on each rank of the checkpoint.
            rank: This rank.
            world_size: Ranks that there are now.
        """
        own = ranks[rank % len(ranks)]
        losses, training_loss = own["losses"], own["training_loss"]
        if len(ranks) != world_size:
            losses = [sum(each) / len(ranks) for each in zip(*(part["losses"] for part in ranks), strict=True)]
            training_loss = {key: sum(part["training_loss"][key] for part in ranks) for key in ("sum", "count")}
        if self._engine.recovery.governor is not None:
            self._engine.recovery.governor.waiting = losses
        for name, faults in own["faults"].items():
            if name in self._engine.layers:
                self._engine.layers[name].morpho.faults.load_state_dict(faults)
        self._training_loss.load_state_dict(training_loss)
        self._sampler.load_state_dict(own["samples"])
