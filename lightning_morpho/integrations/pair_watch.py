"""Watching the first training batches for what feeds what."""

from __future__ import annotations

from torch import nn

from lightning_morpho.confirmation import decide_pairs_, unconfirmed
from lightning_morpho.integrations.ranks import gather_objects
from lightning_morpho.pairs import NOT_CALLED, Pair, PairProbe

MOST_BATCHES = 50
"""Batches that are watched for a layer that does not run in each of them."""


class PairWatch:
    """Confirms or refuses a model's proposed pairs by the training batches that run them, on every rank alike.

    The first batch settles most of them. Layers that it leaves out (the step returned nothing, or trains one net of
    several in turn) are watched in the batches that follow.

    Args:
        model: The model, its layers swapped.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._left = MOST_BATCHES if unconfirmed(model) else 0
        self._probe: PairProbe | None = None

    @property
    def waiting(self) -> list[str]:
        """Consumers of the pairs that are still to be decided; none grows before that."""
        return sorted(unconfirmed(self.model)) if self._left else []

    def open(self) -> None:
        """Watch the next batch, if anything is left to find out."""
        if self._left:
            self._probe = PairProbe(self.model)
            self._probe.__enter__()

    def close(self) -> dict[str, str] | None:
        """Stop watching the batch and decide what it showed.

        Returns:
            Why pairs were refused, by consumer; None if nothing was decided.
        """
        probe = self.stop()
        if probe is None:
            return None
        self._left -= 1
        waiting = unconfirmed(self.model)
        verdicts: dict[str, Pair | str] = {name: v for name, v in probe.verdicts().items() if name in waiting}
        unseen: set[str] = set()
        for refused in gather_objects({name: v for name, v in verdicts.items() if isinstance(v, str)}):
            verdicts |= refused
            unseen |= {name for name, reason in refused.items() if reason == NOT_CALLED}
        if self._left:
            verdicts = {name: v for name, v in verdicts.items() if name not in unseen}
        if not verdicts:
            return None
        refusals = decide_pairs_(self.model, verdicts)
        if len(verdicts) == len(waiting):
            self._left = 0
        return refusals

    def stop(self) -> PairProbe | None:
        """Stop watching at once, without a decision."""
        probe, self._probe = self._probe, None
        if probe is not None:
            probe.__exit__(None, None, None)
        return probe
