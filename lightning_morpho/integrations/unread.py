"""What each rank has seen since the ranks last told each other: a checkpoint holds it for all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightning_morpho.engine import GrowthEngine
from lightning_morpho.integrations.training import TrainingLoss
from lightning_morpho.telemetry import Sampler


class Unread:
    """What one rank has seen and is exchanged at the next tick, or the governor's next look.

    Args:
        engine: The engine of the run.
        training_loss: The run's mean training loss.
        sampler: What samples the layers.
    """

    def __init__(self, engine: GrowthEngine, training_loss: TrainingLoss, sampler: Sampler) -> None:
        self._engine, self._training_loss, self._sampler = engine, training_loss, sampler

    def state_dict(self) -> dict[str, Any]:
        """This rank's part; waits for the device."""
        return {
            **self._engine.unread(),
            "training_loss": self._training_loss.state_dict(),
            "samples": self._sampler.state_dict(),
        }

    def load_state_dict(self, ranks: Sequence[Mapping[str, Any]], rank: int, world_size: int) -> None:
        """Restore the part of a rank.

        On another number of ranks than that of the checkpoint the losses are the means that all would have learnt
        anyway, and a rank goes on with the rest of one that there was.

        Args:
            ranks: What :meth:`state_dict` gave on each rank of the checkpoint.
            rank: This rank.
            world_size: Ranks that there are now.
        """
        own = dict(ranks[rank % len(ranks)])
        if len(ranks) != world_size:
            own["losses"] = [sum(each) / len(ranks) for each in zip(*(part["losses"] for part in ranks), strict=True)]
            own["training_loss"] = {key: sum(part["training_loss"][key] for part in ranks) for key in ("sum", "count")}
        self._engine.load_unread(own)
        self._training_loss.load_state_dict(own["training_loss"])
        self._sampler.load_state_dict(own["samples"])


def unread_parts(state: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each rank's part in the saved state of a run, also in the older form, which held that of rank 0 elsewhere."""
    if "unread" in state:
        return list(state["unread"])
    engine = state["engine"]
    own = {
        "losses": (engine["governor"] or {"waiting": []})["waiting"],
        "faults": engine["faults"],
        "starvation": engine.get("starvation", {}),
        "training_loss": state["training_loss"],
        "samples": state["reporter"]["sampler"],
    }
    return [own | part for part in state.get("ranks") or [{}]]
