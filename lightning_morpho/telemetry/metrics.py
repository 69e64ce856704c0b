"""torchmetrics metrics of chunks: one vectorised metric a layer."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_morpho.chunks import ChunkManager
from lightning_morpho.telemetry.functional import Moments, add_sample, merge_moments


class ChunkStatistics(Metric):
    """Mean, variance and share of silent features of each chunk of a layer's output.

    A feature is silent if it was never above 0 in the samples: behind a ReLU it gives nothing. Not
    measured is NaN, never 0.

    Args:
        chunks: Layout of the features.

    Example:
        >>> statistics = ChunkStatistics(ChunkManager(4, 2))
        >>> statistics.update(torch.tensor([[0.0, 2.0, -1.0, -1.0], [2.0, 4.0, -3.0, -1.0]]))
        >>> {name: values.tolist() for name, values in statistics.compute().items()}
        {'mean': [2.0, -1.5], 'variance': [1.0, 0.5], 'silent': [0.0, 1.0]}
    """

    full_state_update = False
    higher_is_better = None
    is_differentiable = False

    count: Tensor
    mean: Tensor
    m2: Tensor
    largest: Tensor

    def __init__(self, chunks: ChunkManager) -> None:
        super().__init__()
        self.chunks = chunks
        features = chunks.num_features
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx=None)
        self.add_state("mean", torch.zeros(features), dist_reduce_fx=None)
        self.add_state("m2", torch.zeros(features), dist_reduce_fx=None)
        self.add_state("largest", torch.full((features,), -torch.inf), dist_reduce_fx=None)

    def update(self, columns: Tensor) -> None:
        """Add one sample of activations, ``(*, D)``."""
        if columns.shape[-1] != self.chunks.num_features:
            raise ValueError(
                f"`columns` must have {self.chunks.num_features} features last, got shape {tuple(columns.shape)}."
            )
        before = Moments(self.count, self.mean, self.m2, self.largest)
        self.count, self.mean, self.m2, self.largest = add_sample(before, columns)

    def compute(self) -> dict[str, Tensor]:
        """``mean``, ``variance`` (mean over the chunk's features) and ``silent``, each ``(N,)``."""
        count, mean, m2, largest = self.moments()
        none = torch.where(count > 0, 0.0, torch.nan)
        return {
            "mean": self.chunks.reduce_mean(mean) + none,
            "variance": self.chunks.reduce_mean(m2 / count.clamp(min=1)) + none,
            "silent": self.chunks.reduce_mean((largest <= 0).to(mean.dtype)) + none,
        }

    def moments(self) -> Moments:
        """Moments of each feature over all ranks, exact: what :meth:`compute` summarises by chunk."""
        if self.count.ndim == 0:
            return Moments(self.count, self.mean, self.m2, self.largest)
        # Synchronised states come stacked, `(ranks, ...)`.
        first, *others = (Moments(*states) for states in zip(self.count, self.mean, self.m2, self.largest, strict=True))
        for other in others:
            first = merge_moments(first, other)
        return first
