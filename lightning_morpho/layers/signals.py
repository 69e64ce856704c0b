"""What the gate of a rising alpha looks at, measured only where the configured gate needs it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from lightning_morpho.config import GraftingConfig
from lightning_morpho.grafting import Signals, improvement, instability
from lightning_morpho.layers.beds import Bed


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


class SignalTracker:
    """Measures the signals of one layer's gate.

    Args:
        config: Which gate.
    """

    def __init__(self, config: GraftingConfig) -> None:
        self._config = config
        self._sketch: Tensor | None = None
        self._norms: dict[int, Tensor] = {}

    def note_gradients(self, beds: Mapping[int, Bed]) -> None:
        """Remember the gradient norm of each live bed, on the device; called before an optimizer step."""
        if self._config.gate == "grad_norm":
            self._norms = {}
            for index, bed in beds.items():
                norms = [_whole(p.grad.norm()).float() for p in bed.parameters() if p.grad is not None]
                if norms:
                    self._norms[index] = torch.stack(norms).norm()

    def read(self, losses: Sequence[float | None], weight: Tensor | None) -> Callable[[int], Signals]:
        """Signals at this tick, by the index of a seed's bed.

        Args:
            losses: Validation loss at each tick so far.
            weight: The base layer's weight as it is now, None if nobody can tell.
        """
        gate = self._config.gate
        if gate == "none":
            return lambda bed: Signals()
        drift = self._drift(weight) if gate in ("drift", "adaptive") else math.nan
        scatter = instability(losses, self._config.window) if losses else math.nan
        fall = improvement(losses) if losses else math.nan
        norms = {index: float(norm) for index, norm in self._norms.items()}
        return lambda bed: Signals(
            drift=drift, instability=scatter, improvement=fall, grad_norm=norms.get(bed, math.nan)
        )

    def _drift(self, weight: Tensor | None) -> float:
        now = None if weight is None else sketch(weight)
        before, self._sketch = self._sketch, now
        if before is None or now is None:
            return math.nan
        return float((now - before).norm() / before.norm().clamp_min(1e-12))

    def to_dict(self) -> dict[str, Any]:
        """What the next tick needs, as plain values."""
        kept = None if self._sketch is None else self._sketch.tolist()
        return {"sketch": kept, "norms": {index: float(norm) for index, norm in self._norms.items()}}

    def load_dict(self, saved: Mapping[str, Any]) -> None:
        """Restore what :meth:`to_dict` gave."""
        kept = saved.get("sketch")
        self._sketch = None if kept is None else torch.tensor(kept, dtype=torch.float64)
        self._norms = {int(index): torch.tensor(norm) for index, norm in saved.get("norms", {}).items()}


def sketch(weight: Tensor, size: int = 256) -> Tensor:
    """Random signed sums of a weight: their differences have the norm of the weight's, to about 5 %.

    So a tick need not keep the whole weight of the last one.

    Returns:
        ``(size,)``, float64 on the CPU.

    Example:
        >>> a, b = torch.zeros(300, 200), torch.full((300, 200), 0.01)
        >>> abs(float((sketch(a) - sketch(b)).norm() / (a - b).norm()) - 1) < 0.15
        True
    """
    flat = _whole(weight.detach()).flatten().cpu().double()
    signs = torch.randint(0, 2, flat.shape, generator=torch.Generator().manual_seed(0), dtype=torch.int8) * 2 - 1
    padded = torch.zeros(-(-flat.numel() // size) * size, dtype=torch.float64)
    padded[: flat.numel()] = flat * signs
    return padded.view(-1, size).sum(0)
