"""How a seed's output enters the host: how alpha rises, how it blends, how chunks are gathered.

Alpha rises along a curve, as fast as a gate lets it; both look at plain numbers alone. A signal that was not
measured is NaN, and never counts as healthy: the gate that needs it stays shut until the stage's timeout.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_morpho.chunks import ChunkManager
from lightning_morpho.config import GraftingConfig

_STEEPNESS = 10.0
"""Of the logistic curve, in its argument over the whole ramp."""


def _logistic(p: float) -> float:
    return 1 / (1 + math.exp(-_STEEPNESS * (p - 0.5)))


def _sigmoid(p: float) -> float:
    low, high = _logistic(0.0), _logistic(1.0)
    return (_logistic(p) - low) / (high - low)


CURVES: Mapping[str, Callable[[float], float]] = {
    "linear": lambda p: p,
    "cosine": lambda p: (1 - math.cos(math.pi * p)) / 2,
    "sigmoid": _sigmoid,
}
"""Alpha over the progress of a ramp: from (0, 0) to (1, 1), rising throughout."""


# ---------------------------------------------------------------- gates
@dataclass(frozen=True, kw_only=True)
class Signals:
    """What gates look at; NaN for what was not measured.

    Attributes:
        drift: Relative movement of the base layer's weight since the last tick, at least 0.
        instability: Scatter of the validation loss's last changes, relative to the loss, at least 0.
        grad_norm: Norm of the seed's gradient at the last optimizer step.
        improvement: Relative fall of the validation loss since the one before; negative where it rose.
    """

    drift: float = math.nan
    instability: float = math.nan
    grad_norm: float = math.nan
    improvement: float = math.nan


@dataclass(frozen=True)
class Pace:
    """How fast a ramp goes on at one tick.

    Attributes:
        speed: Share of the ungated progress, in [0, 1].
        retreat: Whether to go back to the last progress that was made at full speed.
    """

    speed: float
    retreat: bool = False


Gate = Callable[[Signals, GraftingConfig], Pace]


def _drift(signals: Signals, config: GraftingConfig) -> Pace:
    return Pace(float(signals.drift <= config.max_drift))


def _stability(signals: Signals, config: GraftingConfig) -> Pace:
    share = signals.instability / config.max_instability
    if math.isnan(share):
        return Pace(0.0)
    return Pace(0.0, retreat=True) if share > 1 else Pace(min(1.0, 2 * (1 - share)))


def _grad_norm(signals: Signals, config: GraftingConfig) -> Pace:
    if not math.isfinite(signals.grad_norm):
        return Pace(0.0)
    return Pace(min(1.0, config.max_grad_norm / max(signals.grad_norm, 1e-12)))


def _performance(signals: Signals, config: GraftingConfig) -> Pace:
    return Pace(float(signals.improvement > config.min_improvement))


def _adaptive(signals: Signals, config: GraftingConfig) -> Pace:
    calm = signals.drift <= config.max_drift / 2
    return _performance(signals, config) if calm else _drift(signals, config)


GATES: Mapping[str, Gate] = {
    "none": lambda signals, config: Pace(1.0),
    "drift": _drift,
    "stability": _stability,
    "grad_norm": _grad_norm,
    "performance": _performance,
    "adaptive": _adaptive,
}
"""``drift`` pauses while the host moves by more than ``max_drift`` a tick; ``stability`` slows down from half of
``max_instability`` on and goes back above it; ``grad_norm`` slows down in proportion above ``max_grad_norm``;
``performance`` goes on while the validation loss falls; ``adaptive`` is ``drift`` while the host moves by more than
half of ``max_drift``, else ``performance``."""


@dataclass(frozen=True)
class Ramp:
    """How far alpha has come.

    Attributes:
        progress: In [0, 1].
        stable: The last progress that was made at full speed.
    """

    progress: float = 0.0
    stable: float = 0.0


def climb(ramp: Ramp, alpha: float, signals: Signals, config: GraftingConfig, step: float) -> tuple[Ramp, float]:
    """One tick of a ramp.

    Args:
        ramp: How far it has come.
        alpha: Present blend weight in [0, 1].
        signals: What the gate looks at.
        config: Curve, gate and length.
        step: Largest change of alpha.

    Returns:
        The ramp and alpha after it.

    Example:
        >>> climb(Ramp(0.5, 0.5), 0.5, Signals(), GraftingConfig(ticks=4), step=0.25)
        (Ramp(progress=0.75, stable=0.75), 0.75)
        >>> climb(Ramp(0.5, 0.25), 0.5, Signals(instability=9.0), GraftingConfig(gate="stability"), step=0.1)
        (Ramp(progress=0.25, stable=0.25), 0.4)
    """
    pace = GATES[config.gate](signals, config)
    progress = ramp.stable if pace.retreat else min(1.0, round(ramp.progress + pace.speed / config.ticks, 9))
    stable = progress if pace.speed == 1 else ramp.stable
    target = CURVES[config.curve](progress)
    return Ramp(progress, stable), min(max(target, alpha - step), alpha + step)


def instability(losses: Sequence[float | None], window: int) -> float:
    """Standard deviation of the last changes of a loss, relative to its mean; a steady fall is stable.

    Args:
        losses: Loss at each tick, None where there was none.
        window: Changes to look at, at least 2; NaN with fewer than two, or without a loss at this tick.

    Example:
        >>> instability([4.0, 3.0, 2.0, 1.0], 3), instability([1.0, 2.0, 1.0], 2)
        (0.0, 0.75)
    """
    known = [loss for loss in losses[-window - 1 :] if loss is not None]
    if len(known) < 3 or losses[-1] is None:
        return math.nan
    changes = [after - before for before, after in zip(known, known[1:], strict=False)]
    return statistics.pstdev(changes) / max(abs(statistics.fmean(known)), 1e-12)


def improvement(losses: Sequence[float | None]) -> float:
    """Relative fall of the loss since the last one before; NaN where one of them is missing.

    Example:
        >>> improvement([2.0, None, 1.5])
        0.25
    """
    known = [loss for loss in losses if loss is not None]
    if len(known) < 2 or losses[-1] is None:
        return math.nan
    return (known[-2] - known[-1]) / max(abs(known[-2]), 1e-12)


# ---------------------------------------------------------------- blends
def _add(host: Tensor, seed: Tensor) -> Tensor:
    return seed


def _lerp(host: Tensor, seed: Tensor) -> Tensor:
    return seed - host


def _multiply(host: Tensor, seed: Tensor) -> Tensor:
    return host * torch.tanh(seed)


BLENDS: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {"add": _add, "lerp": _lerp, "multiply": _multiply}
"""What a seed changes in the host's activations at alpha 1; at any other alpha it is alpha times that. So ``lerp`` is
``(1 - alpha) * host + alpha * seed``, ``multiply`` is ``host * (1 + alpha * tanh(seed))``."""


def blend_add(host: Tensor, delta: Tensor, alpha: Tensor) -> Tensor:
    r"""Add the seeds' contribution to the host's activations, feature by feature.

    .. math:: y = h + \alpha\,\delta

    Args:
        host: Host activations, any shape.
        delta: Seeds' contribution, same shape and dtype.
        alpha: Blend weight in [0, 1], unitless, broadcastable to ``host``. Not checked here: reading
            it would force a device sync; :class:`~lightning_morpho.StateTensor` owns the range.

    Returns:
        Same shape as ``host``.

    Example:
        >>> blend_add(torch.zeros(3), torch.ones(3), torch.tensor([0.0, 0.5, 1.0]))
        tensor([0.0000, 0.5000, 1.0000])
    """
    return torch.addcmul(host, alpha.to(host.dtype), delta.to(host.dtype))


def weighted(outgoing: Tensor, alpha: Tensor) -> Tensor:
    """Outgoing weights times alpha; where alpha is 0 exactly 0, even if a seed has diverged to infinity.

    Args:
        outgoing: ``(out_features, ...)``.
        alpha: Blend weight of each output feature in [0, 1], ``(out_features,)``.

    Example:
        >>> weighted(torch.tensor([[torch.inf], [2.0]]), torch.tensor([0.0, 0.5]))
        tensor([[0.],
                [1.]])
    """
    scale = alpha.to(outgoing.dtype).view(-1, *[1] * (outgoing.ndim - 1))
    return torch.where(scale > 0, outgoing * scale, 0.0)


def gather_chunks(columns: Tensor, chunks: ChunkManager) -> Tensor:
    """Stack all chunks: ``(*, D)`` to ``(N, M, max_width)``, narrow chunks padded with a zero.

    Example:
        >>> gather_chunks(torch.arange(1.0, 6.0).view(1, 5), ChunkManager(5, 2)).squeeze(1)
        tensor([[1., 2., 3.],
                [4., 5., 0.]])
    """
    flat = columns.reshape(-1, chunks.num_features)
    wide, narrow = chunks.split(flat)
    if wide is None:
        return narrow.transpose(0, 1)
    padded = torch.nn.functional.pad(narrow, (0, 1))
    return torch.cat([wide, padded], dim=1).transpose(0, 1)


def scatter_chunks(rows: Tensor, chunks: ChunkManager, shape: torch.Size) -> Tensor:
    """Inverse of :func:`gather_chunks`: ``(N, M, max_width)`` to ``shape``, padding dropped."""
    positions = rows.transpose(0, 1)
    if not chunks.num_wide:
        return positions.reshape(shape)
    wide = positions[:, : chunks.num_wide].flatten(1)
    narrow = positions[:, chunks.num_wide :, :-1].flatten(1)
    return torch.cat([wide, narrow], dim=1).reshape(shape)
