"""torchmetrics metrics of chunks: one vectorised metric a layer."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_morpho.chunks import ChunkManager
from lightning_morpho.telemetry.functional import column_moments, merge_moments


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
        columns = columns.reshape(-1, self.chunks.num_features)
        if not len(columns):
            return
        mean, m2 = column_moments(columns)
        seen = torch.tensor(len(columns), device=columns.device)
        self.count, self.mean, self.m2 = merge_moments(self.count, self.mean, self.m2, seen, mean, m2)
        self.largest = torch.maximum(self.largest, columns.amax(0).to(self.largest.dtype))

    def compute(self) -> dict[str, Tensor]:
        """``mean``, ``variance`` (mean over the chunk's features) and ``silent``, each ``(N,)``."""
        count, mean, m2, largest = self._merged()
        none = torch.where(count > 0, 0.0, torch.nan)
        return {
            "mean": self.chunks.reduce_mean(mean) + none,
            "variance": self.chunks.reduce_mean(m2 / count.clamp(min=1)) + none,
            "silent": self.chunks.reduce_mean((largest <= 0).to(mean.dtype)) + none,
        }

    def _merged(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """States of all ranks as one; synchronised states come stacked, ``(ranks, ...)``."""
        if self.count.ndim == 0:
            return self.count, self.mean, self.m2, self.largest
        count, mean, m2 = self.count[0], self.mean[0], self.m2[0]
        for rank in range(1, len(self.count)):
            count, mean, m2 = merge_moments(count, mean, m2, self.count[rank], self.mean[rank], self.m2[rank])
        return count, mean, m2, self.largest.amax(0)
