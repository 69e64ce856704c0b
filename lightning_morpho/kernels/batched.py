"""Seeds as batched matrix products, one batch entry a live chunk, with a hand-written backward pass.

Positions run along the last axis of a batch entry: for chunks of a few features a CPU multiplies ``(hidden,
width)`` by ``(width, M)`` ten times as fast as ``(M, width)`` by ``(width, hidden)``.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from lightning_morpho.chunks import ChunkGroup, ChunkManager
from lightning_morpho.kernels.activations import ACTIVATIONS
from lightning_morpho.kernels.active import ActiveSet
from lightning_morpho.kernels.geometry import ChunkMLPs

SPARSE_BELOW = 1.0
"""Share of live chunks below which only these are computed: gathering costs less than any idle product."""
WRITES_ALL = False
"""Whether a pass over all chunks writes every feature; else the output starts as a copy of the input."""


def forward_(
    networks: ChunkMLPs,
    weights: list[Tensor],
    active: ActiveSet,
    source: Tensor,
    base: Tensor,
    out: Tensor,
    *,
    sparse: bool,
    keep: bool,
) -> list[Tensor]:
    """Write ``base`` plus what the seeds of one bed give for ``source`` to ``out``.

    Args:
        networks: Shapes.
        weights: ``w_in``, ``b_in``, ``w_out`` of the bed.
        active: Its live chunks.
        source: What the seeds read: the base layer's output.
        base: What they add to. Here ``out`` holds it already.
        out: The result; may be ``source`` itself.
        sparse: Whether to compute the live chunks alone.
        keep: Whether to return what the seeds read, for the backward pass; else the list is empty.

    Returns:
        For each group of chunks, what its live seeds read, ``(R, width, M)``.
    """
    assert base is out
    kept: list[Tensor] = []
    columns, target = networks.columns(source), networks.columns(out)
    for group, rows, alpha in _groups(networks, active, sparse):
        x = _take(columns, group, rows, copy=keep)
        if keep:
            kept.append(x)
        if not len(x):
            continue
        w_in, b_in, w_out = _rows_of(networks, weights, group, rows, alpha, x.dtype)
        h = torch.baddbmm(b_in.unsqueeze(2), w_in, x)
        a = ACTIVATIONS[networks.activation].forward(h)
        _add(target, group, rows, torch.bmm(w_out, a).nan_to_num_(0.0, 0.0, 0.0))
    return kept


def backward_(
    networks: ChunkMLPs,
    weights: list[Tensor],
    active: ActiveSet,
    source: Tensor | list[Tensor],
    grad: Tensor,
    base: Tensor,
    out: Tensor | None,
    *,
    sparse: bool,
    needs_weights: bool,
) -> list[Tensor] | None:
    """Gradients of :func:`forward_` of one bed.

    Args:
        networks: Shapes.
        weights: As there.
        active: As there.
        source: What the seeds read: whole, or what :func:`forward_` kept.
        grad: Gradient of its result.
        base: What the gradient of ``source`` adds to. Here ``out`` holds it already.
        out: The gradient of ``source``, None if that is not needed.
        sparse: As there.
        needs_weights: Whether the gradients of the weights are needed.

    Returns:
        Gradients of the weights, None if they are not needed.
    """
    grads = [torch.zeros_like(w) if sparse else torch.empty_like(w) for w in weights] if needs_weights else None
    columns = networks.columns(grad)
    for index, (group, rows, alpha) in enumerate(_groups(networks, active, sparse)):
        x = source[index] if isinstance(source, list) else _take(networks.columns(source), group, rows)
        if not len(x):
            continue
        g = _take(columns, group, rows)
        w_in, b_in, w_out = _rows_of(networks, weights, group, rows, alpha, x.dtype)
        activation = ACTIVATIONS[networks.activation]
        h = torch.baddbmm(b_in.unsqueeze(2), w_in, x)
        dh = activation.backward(torch.bmm(w_out.transpose(1, 2), g), h)
        if out is not None:
            back = torch.bmm(w_in.transpose(1, 2), dh).nan_to_num_(0.0, 0.0, 0.0)  # whatever a seed computes
            _add(networks.columns(out), group, rows, back)
        if grads is not None:
            a = activation.forward(h)
            parts = torch.bmm(dh, x.transpose(1, 2)), dh.sum(2), torch.bmm(g, a.transpose(1, 2)) * alpha
            _store(networks.chunks, grads, group, rows, parts)
    return grads


def _groups(networks: ChunkMLPs, active: ActiveSet, sparse: bool) -> Iterator[tuple[ChunkGroup, Tensor | None, Tensor]]:
    """Each group, its live rows (None for all) and their alpha ``(R, 1, 1)``."""
    for group, rows in zip(networks.chunks.groups, active.rows, strict=True):
        alpha = active.alpha.narrow(0, group.first_chunk, group.size)
        if sparse:
            yield group, rows, alpha.index_select(0, rows).view(-1, 1, 1)
        else:
            yield group, None, alpha.view(-1, 1, 1)


def _take(columns: Tensor, group: ChunkGroup, rows: Tensor | None, *, copy: bool = False) -> Tensor:
    """Live chunks as a batch: ``(*, D)`` to ``(R, width, M)``."""
    chunks = ChunkManager.group_view(columns, group)
    if rows is not None:
        chunks = chunks.index_select(-2, rows)
    batch = chunks.unsqueeze(0).flatten(0, -3).permute(1, 2, 0)
    # A GPU multiplies strided views as fast; a CPU does not.
    if copy or batch.device.type == "cpu":
        batch = batch.clone(memory_format=torch.contiguous_format)
    return batch


def _add(columns: Tensor, group: ChunkGroup, rows: Tensor | None, delta: Tensor) -> None:
    """Add ``delta (R, width, M)`` to the live chunks of ``columns``, in place."""
    chunks = ChunkManager.group_view(columns, group)
    delta = delta.permute(2, 0, 1).reshape(*chunks.shape[:-2], *delta.shape[:2])
    if rows is None:
        chunks.add_(delta)
    else:
        chunks.index_add_(-2, rows, delta)


def _rows_of(
    networks: ChunkMLPs,
    weights: list[Tensor],
    group: ChunkGroup,
    rows: Tensor | None,
    alpha: Tensor,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """Parameters of the live chunks of a group, alpha in ``w_out``, in the dtype of the activations."""
    w_in, b_in, w_out = networks.group_weights(weights, group)
    if rows is not None:
        w_in, b_in, w_out = w_in.index_select(0, rows), b_in.index_select(0, rows), w_out.index_select(0, rows)
    return w_in.to(dtype), b_in.to(dtype), (w_out * alpha).to(dtype)


def _store(
    chunks: ChunkManager, grads: list[Tensor], group: ChunkGroup, rows: Tensor | None, parts: tuple[Tensor, ...]
) -> None:
    """Write the gradients of a group's weights; the padding of narrow chunks gets zero."""
    padded = group.width < chunks.max_width
    for index, (grad, part) in enumerate(zip(grads, parts, strict=True)):
        block = grad.narrow(0, group.first_chunk, group.size)
        axis = {0: 2, 2: 1}.get(index)  # the axis of `w_in` and `w_out` that runs over features
        if axis is not None and padded:
            block.narrow(axis, group.width, 1).zero_()
            block = block.narrow(axis, 0, group.width)
        if rows is None:
            block.copy_(part)
        else:
            block.index_add_(0, rows, part.to(block.dtype))
