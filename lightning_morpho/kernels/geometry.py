"""Shapes that kernels need: the networks of a layer, and how its output lies in memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from lightning_morpho.chunks import ChunkGroup, ChunkManager


@dataclass(frozen=True)
class ChunkMLPs:
    r"""The two-layer networks of one bed, one a chunk: :math:`W_{out}\\, g(W_{in}\\, y + b)`.

    Attributes:
        chunks: Layout of the output features.
        spatial: Spatial axes after the features in the layer's output, 0 for a linear layer.
        hidden: Hidden units of each network.
        activation: Name of :math:`g`, a key of ``lightning_morpho.kernels.activations.ACTIVATIONS``.
    """

    chunks: ChunkManager
    spatial: int
    hidden: int
    activation: str

    def columns(self, y: Tensor) -> Tensor:
        """View of the layer's output with its features last."""
        return y.movedim(-1 - self.spatial, -1) if self.spatial else y

    def group_weights(self, weights: list[Tensor], group: ChunkGroup) -> tuple[Tensor, Tensor, Tensor]:
        """Views of a bed's parameters for chunks of one width, without the padding of narrow ones."""
        w_in, b_in, w_out = weights
        chunks = slice(group.first_chunk, group.first_chunk + group.size)
        return w_in[chunks, :, : group.width], b_in[chunks], w_out[chunks, : group.width]


class Layout(NamedTuple):
    """Where position ``m``, feature ``k`` of an activation lies, in elements from its start.

    ``(m // inner) * outer_stride + (m % inner) * stride + k * feature_stride``: one formula for linear
    layers, channels first and channels last.
    """

    positions: int
    inner: int
    outer_stride: int
    stride: int
    feature_stride: int


def layout_of(columns: Tensor) -> Layout | None:
    """Layout of a tensor ``(*, D)``, None if its positions need more than two strides.

    Example:
        >>> import torch
        >>> layout_of(torch.empty(4, 5, 8))
        Layout(positions=20, inner=20, outer_stride=0, stride=8, feature_stride=1)
        >>> layout_of(torch.empty(2, 8, 3, 3).movedim(1, -1))
        Layout(positions=18, inner=9, outer_stride=72, stride=1, feature_stride=9)
    """
    positions, features = columns.numel() // columns.shape[-1], columns.shape[-1]
    if columns.is_contiguous():
        return Layout(positions, positions, 0, features, 1)
    runs: list[list[int]] = []  # [size, stride], outermost first
    for size, stride in zip(columns.shape[:-1], columns.stride()[:-1], strict=True):
        if size == 1:
            continue
        if runs and runs[-1][1] == size * stride:
            runs[-1] = [runs[-1][0] * size, stride]
        else:
            runs.append([size, stride])
    if len(runs) > 2:
        return None
    inner, stride = runs[-1] if runs else (1, features)
    return Layout(positions, inner, runs[0][1] if len(runs) == 2 else 0, stride, columns.stride(-1))
