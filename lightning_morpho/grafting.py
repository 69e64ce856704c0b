"""How a seed's output enters the host: gathering chunks, blending by alpha."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_morpho.chunks import ChunkManager


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
