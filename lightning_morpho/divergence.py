"""Divergence: a series of losses that runs away, told from one that fluctuates."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from lightning_morpho.config import GovernorConfig

_NORMAL = 1.4826
"""Standard deviation of a normal distribution in units of its median absolute deviation."""
_SETTLED = 0.1
"""Share of the median that the fluctuation of a loss is taken to be at least: a settled run has hardly any."""
_USUAL = 0.9
"""Share of the losses before that a spike must be above in any case: a loss may jump between two values."""


@dataclass(frozen=True)
class Divergence:
    """Why a run is taken back.

    Attributes:
        reason: In words.
        figures: The numbers behind it.
    """

    reason: str
    figures: Mapping[str, float] = field(default_factory=dict)


class LossWatch:
    """Tells a diverging series of losses from one that fluctuates.

    A loss that is not finite is a divergence at once. So is a spike: the median of the last ``patience`` losses lies
    above the median of those before by more than ``spike`` times their fluctuation (their median absolute deviation,
    scaled to a standard deviation, but at least a tenth of their median), and above nine tenths of them; and above the
    ``level`` of what the run would go back to: a loss near zero may rise tenfold and still be the best so far. Nothing
    of it depends on the loss's scale.

    Args:
        config: Window, patience, height of a spike.
        skips: Whether a gradient scaler skips the steps of losses that overflow: then such a loss only counts as
            a very large one.

    Attributes:
        level: Loss at the snapshot; minus infinity while there is none.
    """

    def __init__(self, config: GovernorConfig, *, skips: bool = False) -> None:
        self.config = config
        self.skips = skips
        self.history: deque[float] = deque(maxlen=config.window)
        self.recent: deque[float] = deque()
        self.level = -math.inf

    def mark(self, waiting: Sequence[float] = ()) -> None:
        """A snapshot is taken now.

        Args:
            waiting: Losses that were not added yet: before a first germination none was.
        """
        last = [loss for loss in [*self.recent, *waiting][-self.config.patience :] if math.isfinite(loss)]
        self.level = median(last) if last else -math.inf

    def add(self, loss: float) -> Divergence | None:
        """Add the next loss, and say whether the run has diverged."""
        if not math.isfinite(loss) and not self.skips:
            return Divergence("the loss is not finite", {"loss": loss})
        self.recent.append(loss if math.isfinite(loss) else math.inf)
        if len(self.recent) > self.config.patience:
            leaving = self.recent.popleft()
            if math.isfinite(leaving):
                self.history.append(leaving)
        limit, now = self.limit, median(self.recent)
        if len(self.recent) < self.config.patience or not now > limit:
            return None
        figures = {"loss": now, "median": median(self.history), "limit": limit}
        return Divergence(f"the median of {self.config.patience} losses is above its limit", figures)

    @property
    def limit(self) -> float:
        """Loss above which a spike begins; infinity before enough is known."""
        if len(self.history) < self.config.window // 4:
            return math.inf
        middle = median(self.history)
        deviation = median(abs(loss - middle) for loss in self.history)
        usual = sorted(self.history)[int(_USUAL * len(self.history))]
        return max(self.level, usual, middle + self.config.spike * max(_NORMAL * deviation, _SETTLED * abs(middle)))

    @property
    def calm(self) -> bool:
        """Whether none of the last losses speaks of a divergence."""
        limit = self.limit
        return all(loss <= limit and math.isfinite(loss) for loss in self.recent)

    def forget_recent(self) -> None:
        """Drop the losses that led to a divergence."""
        self.recent.clear()
