"""A tap: hands what a producer read to the consumer that grows hidden units in between."""

from __future__ import annotations

import itertools
import threading
import weakref
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

Hidden = Mapping[int, tuple[Tensor, Tensor]]
"""New hidden units of a layer's live beds and their strength, by bed."""


class _Carried:
    """What one tap holds within a forward pass."""

    def __init__(self) -> None:
        self.x: Tensor | None = None
        self.hidden: Hidden = {}


class _UnderWay:
    """What all taps hold, apart from them.

    Compiled code takes a tensor that it reaches by way of a module for one that never moves in memory. Where producer
    and consumer are compiled apart, a CUDA graph of the consumer would read the input of an earlier step.
    """


_UNDER_WAY = _UnderWay()
_NAMES = itertools.count()


class Tap:
    """Carries a producer's input to its consumer within one forward pass.

    The last call of the producer wins; the consumer takes once, which empties it. What would give a wrong
    number raises instead: an empty tap, an input changed in place, another thread.

    Args:
        producer: Seeds of the layer whose input is read.
        consumer: Seeds of the layer into whose output the new units write.

    Attributes:
        open: Whether the consumer has live seeds that want it.
    """

    def __init__(self, producer: nn.Module, consumer: nn.Module) -> None:
        self.producer = producer
        self.consumer = consumer
        self.open = False
        self._version = 0
        self._thread = 0
        self._settle()

    def _settle(self) -> None:
        self._name = f"tap{next(_NAMES)}"
        setattr(_UNDER_WAY, self._name, _Carried())
        weakref.finalize(self, delattr, _UNDER_WAY, self._name).atexit = False

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Tensors of a forward pass don't travel with copies.
        self.__dict__.update(state)
        self._settle()

    @property
    def _carried(self) -> _Carried:
        carried: _Carried = getattr(_UNDER_WAY, self._name)
        return carried

    def put(self, x: Tensor, hidden: Hidden) -> None:
        """The producer was called with ``x``; its own live beds gave ``hidden``."""
        carried = self._carried
        carried.x, carried.hidden = x, hidden
        if not torch.compiler.is_compiling():
            self._version = 0 if x.is_inference() else x._version
            self._thread = threading.get_ident()

    def take(self) -> tuple[Tensor, Hidden]:
        """What the producer was called with.

        Raises:
            RuntimeError: If it was not called before, in another thread, or its input changed since.
        """
        x, hidden = self._carried.x, self._carried.hidden
        self.clear()
        if x is None:
            raise RuntimeError(
                f"Layer {self._consumer} was called without {self._producer} before it, so the hidden units "
                "between them have no input. Call both in this order in each forward pass; if a checkpoint region "
                "separates them, put both into one region, or leave this layer out with `layers.exclude`."
            )
        if not torch.compiler.is_compiling():
            if self._thread != threading.get_ident():
                raise RuntimeError(
                    f"{self._producer} and {self._consumer} were called in different threads; hidden units between "
                    "them can't tell whose input is whose. Run the model in one thread at a time."
                )
            if not x.is_inference() and x._version != self._version:
                raise RuntimeError(
                    f"The input of {self._producer} was changed in place before {self._consumer} was called, so the "
                    "hidden units between them would read something else. Change a copy instead."
                )
        return x, hidden

    @property
    def empty(self) -> bool:
        """Whether it carries nothing."""
        return self._carried.x is None

    def clear(self) -> None:
        """Let go of what a forward pass left."""
        carried = self._carried
        carried.x, carried.hidden = None, {}

    @property
    def _producer(self) -> str:
        return f"`{self.producer.name}`"

    @property
    def _consumer(self) -> str:
        return f"`{self.consumer.name}`"


def clear_taps(layers: Iterable[nn.Module]) -> None:
    """Let go of what an unfinished forward pass left in the taps of hybrid layers."""
    for layer in layers:
        tap = getattr(layer.morpho, "outlet", None)
        if isinstance(tap, Tap):
            tap.clear()
