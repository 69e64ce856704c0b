"""What a policy is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from lightning_morpho.tamiyo.judgement import judge
from lightning_morpho.tamiyo.observation import Decision, Germinate, Observation


class Tamiyo(ABC):
    """A controller: observations in, decisions out. Subclasses say when and where to grow.

    A policy of your own is a class with one method, ``grow``; seeds that have grown are judged alike by all
    policies. Override ``decide`` to judge them otherwise too. Four rules make it safe to use:

    - *Pure*: the answer depends on the observation and on the policy's own fixed settings alone, not on what it
      was asked before, the clock, or a global random generator. Every rank asks for itself, and all must agree; a
      resumed run must go on as it would have; ``morpho replay`` asks again offline. What needs a memory reads it in
      the observation (``losses``, ``last_round``, ``outcomes``); what needs chance draws it from a generator made of
      a seed and the tick, as :class:`~lightning_morpho.RandomPlace` does.
    - *Missing is missing*: a loss that was not measured is None, a statistic NaN or absent. Neither is a zero.
    - Only layers in ``observation.layers`` can grow, and only those with ``growable``: the budgets are spent when beds
      are allocated, so ``free_beds`` is what they leave. A germination at a decayed learning rate is refused by the
      engine, with the reason in the event log.
    - ``decide`` may ask first (:class:`~lightning_morpho.tamiyo.Measure`): it is then called again with the answers
      in the observation, and must not ask for what it was given.

    Make it a frozen dataclass, so that Hydra builds it through ``_target_`` and a mistyped value is refused.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True, kw_only=True)
        ... class GrowTheLast(Tamiyo):
        ...     '''One germination in the last layer once the loss is known.'''
        ...     below: float = 1.0
        ...
        ...     def grow(self, observation):
        ...         loss, last = observation.losses[-1], observation.layers[-1]
        ...         if loss is None or loss >= self.below or not last.growable or observation.germinations:
        ...             return []
        ...         return [Germinate(layer=last.name, reason=f"loss below {self.below}")]

    Attributes:
        fills_budget: Whether ``blueprint.hidden: auto`` means as many hidden units as the budget allows.
    """

    fills_budget: ClassVar[bool] = False

    def decide(self, observation: Observation) -> Sequence[Decision]:
        """Decisions of one tick."""
        return [*judge(observation), *self.grow(observation)]

    def begin(self, observation: Observation) -> Sequence[Germinate]:
        """Germinations before the first training step, when nothing was measured yet; none by default."""
        return []

    @abstractmethod
    def grow(self, observation: Observation) -> Sequence[Decision]:
        """Germinations of one tick, or what must be known before."""
