"""Chunk geometry: which output features belong to which seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor


def auto_num_chunks(num_features: int) -> int:
    """One chunk per 64 features, 1 to 1024.

    Example:
        >>> [auto_num_chunks(d) for d in (4, 64, 1000, 100_000)]
        [1, 1, 15, 1024]
    """
    return min(max(num_features // 64, 1), 1024)


class ChunkGroup(NamedTuple):
    """A run of chunks of one width.

    Attributes:
        first_chunk: Index of its first chunk.
        size: Its chunks, ``>= 1``.
        first_feature: First feature of its first chunk.
        width: Features of each of them.
    """

    first_chunk: int
    size: int
    first_feature: int
    width: int


class ChunkManager:
    """Contiguous chunks of a feature axis: D features in N chunks, the first ``D mod N`` one wider.

    Pure arithmetic: it holds no tensors, and its boundaries never travel to a device.

    Args:
        num_features: Features of the axis, ``>= 1``.
        num_chunks: Chunks, in [1, ``num_features``], or ``"auto"`` (see :func:`auto_num_chunks`).

    Attributes:
        num_features: D.
        num_chunks: N.
        width: Width of a narrow chunk, D // N.
        num_wide: Chunks that are one feature wider, D mod N; they come first.

    Raises:
        ValueError: If there would be more chunks than features, or none of either.

    Example:
        >>> chunks = ChunkManager(10, 3)
        >>> [chunks.bounds(i) for i in range(3)]
        [(0, 4), (4, 7), (7, 10)]
    """

    def __init__(self, num_features: int, num_chunks: int | Literal["auto"] = "auto") -> None:
        if num_features < 1:
            raise ValueError(f"`num_features` must be at least 1, got {num_features}.")
        if num_chunks == "auto":
            num_chunks = auto_num_chunks(num_features)
        if not 1 <= num_chunks <= num_features:
            raise ValueError(
                f"`num_chunks` must lie between 1 and the {num_features} features, got {num_chunks}. "
                "A chunk holds at least one feature: lower `layers.num_seeds`, or leave it at 'auto'."
            )
        self.num_features = num_features
        self.num_chunks = num_chunks
        self.width, self.num_wide = divmod(num_features, num_chunks)

    def __repr__(self) -> str:
        return f"ChunkManager(num_features={self.num_features}, num_chunks={self.num_chunks})"

    @property
    def max_width(self) -> int:
        """Width of the widest chunk, in features."""
        return self.width + (self.num_wide > 0)

    @cached_property
    def groups(self) -> tuple[ChunkGroup, ...]:
        """The wide chunks, if there are any, and the narrow ones.

        Example:
            >>> [tuple(group) for group in ChunkManager(10, 3).groups]
            [(0, 1, 0, 4), (1, 2, 4, 3)]
        """
        boundary = self.num_wide * (self.width + 1)
        narrow = ChunkGroup(self.num_wide, self.num_chunks - self.num_wide, boundary, self.width)
        return (ChunkGroup(0, self.num_wide, 0, self.width + 1), narrow) if self.num_wide else (narrow,)

    def check_index(self, chunk: int) -> None:
        """Refuse what is not a chunk index.

        Raises:
            ValueError: If ``chunk`` is negative or not below ``num_chunks``.
        """
        if not isinstance(chunk, (int, np.integer)) or not 0 <= chunk < self.num_chunks:
            raise ValueError(f"`chunk` must be an integer in [0, {self.num_chunks - 1}], got {chunk!r}.")

    def bounds(self, chunk: int) -> tuple[int, int]:
        """First feature of a chunk and the one after its last."""
        self.check_index(chunk)
        start = chunk * self.width + min(chunk, self.num_wide)
        return start, start + self.width + (chunk < self.num_wide)

    def chunk_of(self, feature: int) -> int:
        """Chunk that a feature belongs to.

        Example:
            >>> [ChunkManager(10, 3).chunk_of(f) for f in range(10)]
            [0, 0, 0, 0, 1, 1, 1, 2, 2, 2]
        """
        if not 0 <= feature < self.num_features:
            raise ValueError(f"`feature` must lie in [0, {self.num_features - 1}], got {feature}.")
        wide_features = self.num_wide * (self.width + 1)
        if feature < wide_features:
            return feature // (self.width + 1)
        return self.num_wide + (feature - wide_features) // self.width

    def split(self, x: Tensor) -> tuple[Tensor | None, Tensor]:
        """Stacked views of the wide and of the narrow chunks of the last axis; nothing is copied.

        Args:
            x: ``(*, D)``.

        Returns:
            Wide chunks ``(*, num_wide, width + 1)`` or None if there are none, and narrow chunks
            ``(*, N - num_wide, width)``.
        """
        self._check_axis(x)
        *lead, features = x.shape
        if not self.num_wide:
            return None, x.view(*lead, self.num_chunks, self.width)
        boundary = self.num_wide * (self.width + 1)
        wide, narrow = x.split_with_sizes((boundary, features - boundary), -1)
        return wide.view(*lead, self.num_wide, self.width + 1), narrow.view(
            *lead, self.num_chunks - self.num_wide, self.width
        )

    @staticmethod
    def group_view(x: Tensor, group: ChunkGroup) -> Tensor:
        """View of one group's chunks: ``(*, D)`` to ``(*, size, width)``."""
        _, size, first, width = group
        columns = x if size * width == x.shape[-1] else x.narrow(-1, first, size * width)
        return columns.view(*x.shape[:-1], size, width)

    def split_list(self, x: Tensor) -> list[Tensor]:
        """The chunks of the last axis as a list of N views ``(*, width of the chunk)``."""
        self._check_axis(x)
        return [x[..., slice(*self.bounds(i))] for i in range(self.num_chunks)]

    def concat(self, chunks: Sequence[Tensor]) -> Tensor:
        """Inverse of :meth:`split_list`.

        Raises:
            ValueError: If the number of chunks or the width of one is not this layout's.
        """
        widths = [chunk.shape[-1] for chunk in chunks]
        expected = [self.width + (i < self.num_wide) for i in range(self.num_chunks)]
        if widths != expected:
            raise ValueError(f"`chunks` must have the widths {expected}, got {widths}.")
        return torch.cat(list(chunks), dim=-1)

    def mask(self, chunk: int, device: torch.device | str | None = None) -> Tensor:
        """Which features belong to a chunk: bool, ``(D,)``."""
        start, stop = self.bounds(chunk)
        features = torch.arange(self.num_features, device=device)
        return (features >= start) & (features < stop)

    def reduce_mean(self, x: Tensor) -> Tensor:
        """Mean of each chunk's features: ``(*, D)`` to ``(*, N)``.

        Example:
            >>> ChunkManager(5, 2).reduce_mean(torch.arange(5.0))
            tensor([1.0000, 3.5000])
        """
        wide, narrow = self.split(x)
        means = narrow.mean(-1)
        return means if wide is None else torch.cat([wide.mean(-1), means], dim=-1)

    def reduce_sum(self, x: Tensor) -> Tensor:
        """Sum of each chunk's features: ``(*, D)`` to ``(*, N)``.

        Example:
            >>> ChunkManager(5, 2).reduce_sum(torch.arange(5.0))
            tensor([3., 7.])
        """
        wide, narrow = self.split(x)
        sums = narrow.sum(-1)
        return sums if wide is None else torch.cat([wide.sum(-1), sums], dim=-1)

    def map(self, function: Callable[[int, Tensor], Tensor], x: Tensor) -> Tensor:
        """Apply ``function(chunk index, chunk)`` to each chunk of the last axis and join the results."""
        return self.concat([function(i, chunk) for i, chunk in enumerate(self.split_list(x))])

    def expand(self, per_chunk: Tensor) -> Tensor:
        """Repeat one value a chunk over its features: ``(N,)`` to ``(D,)``.

        Example:
            >>> ChunkManager(5, 2).expand(torch.tensor([1.0, 2.0]))
            tensor([1., 1., 1., 2., 2.])
        """
        if per_chunk.shape != (self.num_chunks,):
            raise ValueError(f"`per_chunk` must have shape ({self.num_chunks},), got {tuple(per_chunk.shape)}.")
        wide = per_chunk[: self.num_wide].repeat_interleave(self.width + 1)
        return torch.cat([wide, per_chunk[self.num_wide :].repeat_interleave(self.width)])

    def _check_axis(self, x: Tensor) -> None:
        if x.shape[-1] != self.num_features:
            raise ValueError(
                f"The last axis of `x` must have {self.num_features} features, got shape {tuple(x.shape)}."
            )
