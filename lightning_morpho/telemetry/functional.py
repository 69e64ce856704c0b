"""Statistics of activations and gradients, as plain functions."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_morpho.chunks import ChunkManager
from lightning_morpho.kernels import triton_problem
from lightning_morpho.kernels.geometry import layout_of

_BLOCK_ELEMENTS = 1 << 17
"""Elements that a step on the CPU looks at: they stay in its cache until all is known of them."""


class Moments(NamedTuple):
    """What is known of a sample of each feature.

    Attributes:
        seen: Positions, int64, a scalar.
        mean: Mean of each feature, ``(D,)``.
        m2: Sum of its squared deviations from the mean, ``(D,)``; rounding may leave a little less than zero.
        largest: Its largest value, ``(D,)``; minus infinity before any.
    """

    seen: Tensor
    mean: Tensor
    m2: Tensor
    largest: Tensor

    @classmethod
    def none(cls, features: int, dtype: torch.dtype = torch.float32) -> Moments:
        """Of no sample, on the CPU."""
        mean, m2 = torch.zeros(2, features, dtype=dtype)
        return cls(torch.tensor(0), mean, m2, torch.full_like(mean, -torch.inf))


def merge_moments(one: Moments, other: Moments) -> Moments:
    """Moments of two samples together (Chan, Golub, LeVeque: Updating Formulae, 1979).

    Example:
        >>> a, b = torch.randn(5, 1, dtype=torch.float64), torch.randn(7, 1, dtype=torch.float64) + 1000
        >>> merged = merge_moments(*(add_sample(Moments.none(1, a.dtype), sample) for sample in (a, b)))
        >>> torch.allclose(merged.m2 / merged.seen, torch.cat([a, b]).var(0, correction=0))
        True
    """
    total = one.seen + other.seen
    weight = torch.where(total > 0, other.seen / total.clamp(min=1), 0.0).to(one.mean.dtype)
    shift = other.mean - one.mean
    return Moments(
        total,
        one.mean + shift * weight,
        one.m2 + other.m2 + shift.square() * weight * one.seen.to(one.mean.dtype),
        torch.maximum(one.largest, other.largest.to(one.largest.dtype)),
    )


def add_sample(moments: Moments, columns: Tensor) -> Moments:
    """Moments after one more sample, in one pass over it; ``moments`` may be overwritten.

    Args:
        moments: Of what was seen before.
        columns: ``(*, D)``, any strides; an empty sample changes nothing.

    Example:
        >>> moments = add_sample(Moments.none(2), torch.tensor([[1.0, -1.0], [3.0, -1.0]]))
        >>> [values.tolist() for values in moments]
        [2, [2.0, -1.0], [2.0, 0.0], [3.0, -1.0]]
    """
    if columns.numel() == 0:
        return moments
    half_or_full = columns.is_cuda and columns.dtype in (torch.float32, torch.bfloat16, torch.float16)
    layout = layout_of(columns) if half_or_full else None
    if layout is not None and triton_problem() is None:
        from lightning_morpho.kernels.triton_moments import accumulate_

        seen = accumulate_(columns, layout, *moments)
        return moments if seen is moments.seen else moments._replace(seen=seen)
    _add_rows_(*moments, columns if columns.ndim == 2 else columns.reshape(-1, columns.shape[-1]))
    return moments


def _add_rows_(seen: Tensor, mean: Tensor, m2: Tensor, largest: Tensor, rows: Tensor) -> None:
    """Update moments by ``rows (M, D)``, in place.

    Sums are taken of deviations from the mean so far, or from the first row of all: so a large mean costs no accuracy.
    """
    on_host = rows.device.type == "cpu"
    before = int(seen) if on_host else seen  # to read it from a device would wait for that
    origin = torch.where(seen > 0, mean, rows[0]) if not on_host else mean if before else rows[0].to(mean.dtype)
    # A GPU gains nothing by blocks, a CPU several times the speed.
    height = max(32, _BLOCK_ELEMENTS // rows.shape[1]) if on_host else len(rows)
    sums = []
    for block in rows.split(height) if len(rows) > height else (rows,):
        deviation = block - origin
        sums.append(deviation.sum(0))
        m2 += deviation.square_().sum(0)
        torch.maximum(largest, block.amax(0), out=largest)
    total = torch.stack(sums).sum(0) if len(sums) > 1 else sums[0]
    change, share = total, 1.0
    if isinstance(before, Tensor):
        change = total / (before + len(rows))
    else:  # a number is part of the operations that follow
        share = 1 / (before + len(rows))
    m2.addcmul_(total, change, value=-share)
    torch.add(origin, change, alpha=share, out=mean)
    seen += len(rows)


class Products(NamedTuple):
    """What is known of pairs of units in a sample.

    Attributes:
        seen: Positions, int64, a scalar.
        mean: Mean of each unit, ``(N, W)``.
        products: Sums of products of two units' deviations from their means, ``(N, W, W)``.
    """

    seen: Tensor
    mean: Tensor
    products: Tensor


def pair_products(units: Tensor) -> Products:
    """Products of the units of each chunk.

    Args:
        units: ``(M, N, W)``, at least one position.

    Example:
        >>> pair_products(torch.tensor([[[1.0, 2.0]], [[3.0, 6.0]]])).products
        tensor([[[2., 4.],
                 [4., 8.]]])
    """
    mean = units.mean(0)
    deviation = (units - mean).transpose(0, 1)
    return Products(torch.tensor(len(units), device=units.device), mean, deviation.mT @ deviation)


def merge_products(one: Products, other: Products) -> Products:
    """Products of two samples together, as :func:`merge_moments` does it."""
    total = one.seen + other.seen
    weight = torch.where(total > 0, other.seen / total.clamp(min=1), 0.0).to(one.mean.dtype)
    shift = other.mean - one.mean
    between = shift.unsqueeze(-1) * shift.unsqueeze(-2) * (weight * one.seen.to(one.mean.dtype))
    return Products(total, one.mean + shift * weight, one.products + other.products + between)


def mean_correlation(products: Tensor) -> Tensor:
    r"""Mean size of the correlation of two units of a chunk.

    .. math:: \frac{1}{|P|} \sum_{(i, j) \in P} |r_{ij}|, \quad i \ne j

    Args:
        products: Sums of products of deviations, ``(N, W, W)``.

    Returns:
        ``(N,)`` in [0, 1]; NaN where no two units vary.

    Example:
        >>> mean_correlation(torch.tensor([[[1.0, -2.0], [-2.0, 4.0]]]))
        tensor([1.])
    """
    squares = products.diagonal(dim1=-2, dim2=-1)
    scale = (squares.unsqueeze(-1) * squares.unsqueeze(-2)).sqrt()
    pairs = (scale > 0) & ~torch.eye(squares.shape[-1], dtype=torch.bool, device=products.device)
    correlation = torch.where(pairs, products.abs() / scale, 0.0).clamp(max=1)
    return correlation.sum((-2, -1)) / pairs.sum((-2, -1))


def effective_rank(products: Tensor) -> Tensor:
    r"""Dimensions that the units of a chunk really use, as a share of their number: the participation ratio.

    .. math:: \frac{(\sum_i \lambda_i)^2}{W \sum_i \lambda_i^2}

    with the eigenvalues of the covariance, which the traces of it and of its square give without any decomposition.

    Args:
        products: Sums of products of deviations, ``(N, W, W)``.

    Returns:
        ``(N,)`` in [1 / W, 1]; NaN where no unit varies.

    Example:
        >>> effective_rank(torch.stack([torch.eye(4), torch.ones(4, 4)]))
        tensor([1.0000, 0.2500])
    """
    trace = products.diagonal(dim1=-2, dim2=-1).sum(-1)
    return trace.square() / (products.shape[-1] * products.square().sum((-2, -1)))


def chunk_squares(gradient: Tensor, chunks: ChunkManager) -> Tensor:
    """Squared length of each chunk's part of a gradient.

    Args:
        gradient: ``(D, *)``, features first as in a layer's weight.
        chunks: Layout of the features.

    Returns:
        ``(N,)``, float32 at least.

    Example:
        >>> chunk_squares(torch.tensor([[3.0, 4.0], [1.0, 0.0], [0.0, 1.0]]), ChunkManager(3, 2))
        tensor([26.,  1.])
    """
    parts = []
    for group in chunks.groups:
        rows = gradient.narrow(0, group.first_feature, group.size * group.width).reshape(group.size, -1)
        parts.append(row_squares(rows))
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def row_squares(gradient: Tensor) -> Tensor:
    """Squared length of each entry of the first axis: ``(N, *)`` to ``(N,)``, float32 at least."""
    dtype = torch.float64 if gradient.dtype == torch.float64 else torch.float32
    return torch.linalg.vector_norm(gradient.reshape(len(gradient), -1), dim=1, dtype=dtype).square()
