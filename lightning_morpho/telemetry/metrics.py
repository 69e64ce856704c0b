"""torchmetrics metrics of chunks: one vectorised metric a layer, on its device, without a sync before ``compute``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_morpho.chunks import ChunkManager
from lightning_morpho.telemetry.functional import (
    Moments,
    Products,
    add_sample,
    chunk_squares,
    effective_rank,
    mean_correlation,
    merge_moments,
    merge_products,
    pair_products,
    row_squares,
)


class ChunkMetric(Metric):
    """What the metrics of chunks share: they give several statistics by name, and are no goal to be optimised."""

    full_state_update = False
    higher_is_better = None
    is_differentiable = False

    def __init__(self, chunks: ChunkManager) -> None:
        super().__init__()
        self.chunks = chunks

    def plot(self, val: Mapping[str, Tensor] | None = None, ax: Any = None) -> Any:
        """Draw each statistic over the chunks.

        Args:
            val: What :meth:`compute` gave; None to call it.
            ax: Matplotlib axes to draw into, None for a new figure.

        Returns:
            Figure and axes.
        """
        values = self.compute() if val is None else val
        return self._plot({name: v.detach().cpu() for name, v in values.items()}, ax)


class ChunkStatistics(ChunkMetric):
    """Mean, variance, share of silent features and length of each chunk of a layer's output.

    A feature is silent if it was never above 0 in the samples: behind a ReLU it gives nothing. The length
    (``activation_norm``) is the root of the mean square over positions. Not measured is NaN, never 0.

    Args:
        chunks: Layout of the features.

    Example:
        >>> statistics = ChunkStatistics(ChunkManager(4, 2))
        >>> statistics.update(torch.tensor([[0.0, 2.0, -1.0, -1.0], [2.0, 4.0, -3.0, -1.0]]))
        >>> values = statistics.compute()
        >>> values["mean"], values["silent"]
        (tensor([ 2.0000, -1.5000]), tensor([0., 1.]))
    """

    count: Tensor
    mean: Tensor
    m2: Tensor
    largest: Tensor

    def __init__(self, chunks: ChunkManager) -> None:
        super().__init__(chunks)
        for name, value in zip(("count", "mean", "m2", "largest"), Moments.none(chunks.num_features), strict=True):
            self.add_state(name, value, dist_reduce_fx=None)

    def update(self, columns: Tensor) -> None:
        """Add one sample of activations, ``(*, D)``."""
        if columns.shape[-1] != self.chunks.num_features:
            raise ValueError(
                f"`columns` must have {self.chunks.num_features} features last, got shape {tuple(columns.shape)}."
            )
        before = Moments(self.count, self.mean, self.m2, self.largest)
        after = add_sample(before, columns)
        if after is not before:  # setting a metric's attribute takes long
            self.count = after.seen

    def compute(self) -> dict[str, Tensor]:
        """``mean``, ``variance`` (mean over the chunk's features), ``silent``, ``activation_norm``, each ``(N,)``."""
        count, mean, m2, largest = self.moments()
        none = torch.where(count > 0, 0.0, torch.nan)
        variance = m2.clamp(min=0) / count.clamp(min=1)
        length = self.chunks.reduce_sum(mean.square() + variance).sqrt() + none
        of_features = torch.stack([mean, variance, (largest <= 0).to(mean.dtype)])
        of_chunks = (self.chunks.reduce_mean(of_features) + none).unbind()
        return dict(zip(("mean", "variance", "silent"), of_chunks, strict=True)) | {"activation_norm": length}

    def moments(self) -> Moments:
        """Moments of each feature over all ranks, exact: what :meth:`compute` summarises by chunk."""
        if self.count.ndim == 0:
            return Moments(self.count, self.mean, self.m2, self.largest)
        # Synchronised states come stacked, `(ranks, ...)`.
        first, *others = (Moments(*states) for states in zip(self.count, self.mean, self.m2, self.largest, strict=True))
        for other in others:
            first = merge_moments(first, other)
        return first


class ChunkCorrelation(ChunkMetric):
    """How much the units of each chunk say the same: mean size of the correlation of two of them, and effective rank.

    The effective rank is the number of dimensions that the units use, as a share of their number.

    Of a chunk it looks at up to ``units`` features, of a sample at up to ``positions`` positions, each evenly
    spaced: so it costs little however large the layer.

    Args:
        chunks: Layout of the features.
        units: Most features of a chunk, ``>= 2``.
        positions: Most positions of a sample, ``>= 1``.

    Example:
        >>> correlation = ChunkCorrelation(ChunkManager(2, 1))
        >>> correlation.update(torch.tensor([[0.0, 1.0], [1.0, 0.0], [3.0, -2.0]]))
        >>> correlation.compute()
        {'correlation': tensor(1.), 'effective_rank': tensor(0.5000)}
    """

    seen: Tensor
    mean: Tensor
    products: Tensor
    selected: Tensor

    def __init__(self, chunks: ChunkManager, units: int = 32, positions: int = 256) -> None:
        super().__init__(chunks)
        if units < 2 or positions < 1:
            raise ValueError(f"`units` must be at least 2 and `positions` at least 1, got {units} and {positions}.")
        self.positions = positions
        self.width = min(chunks.width, units)
        features = [
            group.first_feature + chunk * group.width + unit * group.width // self.width
            for group in chunks.groups
            for chunk in range(group.size)
            for unit in range(self.width)
        ]
        self.register_buffer("selected", torch.tensor(features), persistent=False)
        shape = (chunks.num_chunks, self.width)
        self.add_state("seen", torch.zeros((), dtype=torch.int64), dist_reduce_fx=None)
        self.add_state("mean", torch.zeros(shape), dist_reduce_fx=None)
        self.add_state("products", torch.zeros(*shape, self.width), dist_reduce_fx=None)

    def update(self, columns: Tensor) -> None:
        """Add one sample of activations, ``(*, D)``."""
        columns = columns.reshape(-1, columns.shape[-1])
        if self.width < 2 or not len(columns):
            return
        some = columns[:: -(-len(columns) // self.positions)].index_select(1, self.selected).float()
        found = pair_products(some.view(len(some), *self.mean.shape))
        self.seen, self.mean, self.products = merge_products(Products(self.seen, self.mean, self.products), found)

    def compute(self) -> dict[str, Tensor]:
        """``correlation`` and ``effective_rank`` in [0, 1], ``(N,)`` each; NaN where no two units, or none, varied."""
        if self.seen.ndim == 0:
            return self._of(self.products)
        # Synchronised states come stacked, `(ranks, ...)`.
        first, *others = (Products(*states) for states in zip(self.seen, self.mean, self.products, strict=True))
        for other in others:
            first = merge_products(first, other)
        return self._of(first.products)

    def _of(self, products: Tensor) -> dict[str, Tensor]:
        rank = effective_rank(products) if self.width > 1 else products.new_full(products.shape[:1], torch.nan)
        return {"correlation": mean_correlation(products), "effective_rank": rank}


class ChunkGradients(ChunkMetric):
    """Length of the gradients of each chunk's base weights, and of the beds that grow there.

    It is the root of the mean square over the samples; samples that aren't finite are left out. Not measured is
    NaN, never 0.

    Args:
        chunks: Layout of the features.
        beds: Beds of the layer.
        per_chunk: Whether a bed's parameters have one row a chunk; else a bed counts as a whole.

    Example:
        >>> gradients = ChunkGradients(ChunkManager(2, 2), beds=1)
        >>> gradients.update(torch.tensor([[3.0, 4.0], [0.0, 0.0]]), {})
        >>> gradients.compute()["host_gradient"], gradients.compute()["bed_gradient"]
        (tensor([5., 0.]), tensor([[nan, nan]]))
    """

    host_squares: Tensor
    host_count: Tensor
    bed_squares: Tensor
    bed_count: Tensor

    def __init__(self, chunks: ChunkManager, beds: int, per_chunk: bool = False) -> None:
        super().__init__(chunks)
        self.per_chunk = per_chunk
        host, bed = (chunks.num_chunks,), (beds, chunks.num_chunks if per_chunk else 1)
        self.add_state("host_squares", torch.zeros(host), dist_reduce_fx="sum")
        self.add_state("host_count", torch.zeros(host, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("bed_squares", torch.zeros(bed), dist_reduce_fx="sum")
        self.add_state("bed_count", torch.zeros(bed, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, host: Tensor | None, beds: Mapping[int, Sequence[Tensor]]) -> None:
        """Add the gradients of one optimizer step.

        Args:
            host: Of the base layer's weight, ``(D, *)``; None if it has none.
            beds: Of the parameters of each live bed, by its index.
        """
        if host is not None:
            self._add(self.host_squares, self.host_count, chunk_squares(host, self.chunks))
        for index, gradients in beds.items():
            rows = [g.reshape(len(g) if self.per_chunk else 1, -1) for g in gradients]
            self._add(self.bed_squares[index], self.bed_count[index], row_squares(torch.cat(rows, 1)))

    @staticmethod
    def _add(squares: Tensor, count: Tensor, new: Tensor) -> None:
        finite = new < torch.inf  # and no NaN; it can't be negative
        squares += torch.where(finite, new, 0.0)
        count += finite

    def compute(self) -> dict[str, Tensor]:
        """``host_gradient (N,)`` and ``bed_gradient (beds, N)``."""
        host = (self.host_squares / self.host_count).sqrt()
        beds = (self.bed_squares / self.bed_count).sqrt()
        return {"host_gradient": host, "bed_gradient": beds.expand(-1, self.chunks.num_chunks)}


class ForwardTime(Metric):
    """Milliseconds of a forward call of one layer.

    Example:
        >>> forward_time = ForwardTime()
        >>> forward_time.update(3.0, calls=2)
        >>> forward_time.compute()
        tensor(1.5000)
    """

    full_state_update = False
    higher_is_better = False
    is_differentiable = False

    total: Tensor
    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros(()), dist_reduce_fx="sum")
        self.add_state("calls", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, milliseconds: float, calls: int = 1) -> None:
        """Add some calls that took that long together."""
        self.total += milliseconds
        self.calls += calls

    def compute(self) -> Tensor:
        """Mean over all calls, of all ranks; NaN if there was none."""
        return self.total / self.calls

    def plot(self, val: Tensor | None = None, ax: Any = None) -> Any:
        """Draw one or several values; see :meth:`torchmetrics.Metric.plot`."""
        return self._plot(val, ax)
