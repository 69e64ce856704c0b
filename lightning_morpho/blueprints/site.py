"""Where a blueprint grows: the geometry of the base layer, and how to apply other weights in it."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from lightning_morpho.chunks import ChunkManager

_CONVOLVE = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_DIMENSIONS: dict[type[nn.Module], int] = {nn.Linear: 0, nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3}


def is_eligible_type(layer_type: type[nn.Module]) -> bool:
    """Whether seeds can grow in layers of exactly this type."""
    return layer_type in _DIMENSIONS


@dataclass(frozen=True)
class Site:
    """Geometry of a base layer.

    Attributes:
        in_features: Input features, or channels.
        chunks: Layout of the output features, or channels.
        spatial: Number of spatial axes, 0 for a linear layer.
        kernel: Kernel size of a convolution, one entry a spatial axis.
        stride: Its stride.
        dilation: Its dilation.
        padding: Its padding, or ``"same"`` or ``"valid"``.
        padding_mode: Its padding mode.
        edges: Its padding before and after each axis, last axis first, as ``F.pad`` wants it.
        groups: Its groups.
    """

    in_features: int
    chunks: ChunkManager
    spatial: int = 0
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    padding: tuple[int, ...] | str = ()
    padding_mode: str = "zeros"
    edges: tuple[int, ...] = ()
    groups: int = 1

    @classmethod
    def of(cls, layer: nn.Module, chunks: ChunkManager) -> Site:
        """Geometry of an ``nn.Linear`` or ``nn.ConvNd``."""
        if isinstance(layer, nn.Linear):
            return cls(layer.in_features, chunks)
        if not isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            raise TypeError(f"`layer` must be an nn.Linear or nn.Conv1d/2d/3d, got {type(layer).__name__}.")
        return cls(
            layer.in_channels,
            chunks,
            len(layer.kernel_size),
            layer.kernel_size,
            layer.stride,
            layer.dilation,
            layer.padding if isinstance(layer.padding, str) else tuple(layer.padding),
            layer.padding_mode,
            tuple(layer._reversed_padding_repeated_twice),
            layer.groups,
        )

    @property
    def out_features(self) -> int:
        """Output features, or channels."""
        return self.chunks.num_features

    def project(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Apply other weights exactly as the base layer applies its own (one group).

        Args:
            x: Input of the base layer.
            weight: ``(units, in_features, *kernel)``.
            bias: ``(units,)``.

        Returns:
            The base layer's output layout with ``units`` features.
        """
        if not self.spatial:
            return F.linear(x, weight, bias)
        if self.padding_mode != "zeros":
            x = F.pad(x, self.edges, mode=self.padding_mode)
            return _CONVOLVE[self.spatial](x, weight, bias, self.stride, 0, self.dilation)
        return _CONVOLVE[self.spatial](x, weight, bias, self.stride, self.padding, self.dilation)

    def pointwise(self, h: Tensor, weight: Tensor) -> Tensor:
        """Mix features at each position: ``weight`` is ``(out, units)``, ``h`` in the output layout."""
        if not self.spatial:
            return F.linear(h, weight)
        return _CONVOLVE[self.spatial](h, weight.unflatten(1, (-1, *[1] * self.spatial)))

    def to_columns(self, y: Tensor) -> Tensor:
        """Features last: the output layout to ``(*, out_features)``."""
        return y.movedim(-1 - self.spatial, -1) if self.spatial else y

    def from_columns(self, y: Tensor) -> Tensor:
        """Inverse of :meth:`to_columns`."""
        return y.movedim(-1, -1 - self.spatial) if self.spatial else y

    def per_feature(self, values: Tensor) -> Tensor:
        """Shape ``(out_features,)`` so that it broadcasts against the output layout."""
        return values.view(-1, *[1] * self.spatial)
