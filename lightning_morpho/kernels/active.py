"""Which chunks of a bed are live, and how strongly: decided on the host, mirrored on the device."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_morpho.chunks import ChunkManager

_MOST_LAUNCHES = 64


@dataclass
class ActiveSet:
    """The live chunks of one bed, on the device.

    A CUDA graph that was captured with a set reads only its alpha, and the set's successors write theirs into
    the same memory: so the graph goes on with whatever is live.

    Attributes:
        share: Live chunks as a fraction of all.
        alpha: Blend weight of each chunk, float32 ``(N,)``; 0 where nothing lives.
        places: Place of each chunk among its group's rows, int32 ``(N,)``, -1 for none; empty if all live.
        rows: Live chunks of each group, counted from its first, int32; empty if all live.
        pinned: Whether a captured graph reads its alpha.
        launches: What kernels have worked out for this set, by what it depends on besides.
    """

    share: float
    alpha: Tensor
    places: Tensor
    rows: tuple[Tensor, ...]
    pinned: bool = False
    launches: dict[Any, Any] = field(default_factory=dict)

    @classmethod
    def upload(
        cls, chunks: ChunkManager, alpha: np.ndarray, device: torch.device, previous: ActiveSet | None = None
    ) -> ActiveSet:
        """Mirror a host array of blend weights, in one transfer.

        Args:
            chunks: Layout of the features.
            alpha: Blend weight of each chunk, ``(N,)``.
            device: Where it is needed.
            previous: The set that this one replaces.

        Example:
            >>> live = ActiveSet.upload(ChunkManager(5, 3), np.array([0.0, 1.0, 0.5]), torch.device("cpu"))
            >>> live.alpha, [rows.tolist() for rows in live.rows]
            (tensor([0.0000, 1.0000, 0.5000]), [[1], [0]])
        """
        n = alpha.size
        live = np.flatnonzero(alpha > 0)
        packed, bounds = _pack(chunks, alpha, live)
        buffer = torch.from_numpy(packed).to(device, non_blocking=True)
        fresh = buffer[:n].view(torch.float32)
        rows = tuple(buffer[start:stop] for start, stop in bounds)
        # Only what a graph reads is overwritten: a backward pass that is under way keeps its own set.
        pinned = previous is not None and previous.pinned and previous.alpha.device == device
        if pinned and previous is not None:
            fresh = previous.alpha.copy_(fresh)
        return cls(live.size / n, fresh, buffer[n : 2 * n], rows, pinned)

    def remember(self, key: Any, launch: Any) -> None:
        """Keep what a kernel has worked out; batches of ever new lengths must not fill the memory."""
        if len(self.launches) >= _MOST_LAUNCHES:
            self.launches.clear()
        self.launches[key] = launch

    @classmethod
    def dense(cls, alpha: Tensor, groups: int) -> ActiveSet:
        """All chunks, as far as their alpha lets them."""
        empty = torch.empty(0, dtype=torch.int32, device=alpha.device)
        return cls(1.0, alpha, empty, (empty,) * groups)


def _pack(chunks: ChunkManager, alpha: np.ndarray, live: np.ndarray) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """Alpha's bits, places and rows as one int32 array, and where each group's rows lie."""
    n = alpha.size
    bits = np.ascontiguousarray(alpha, dtype=np.float32).view(np.int32)
    if live.size == n:  # nobody looks for the rows of a full set
        return bits, [(n, n)] * len(chunks.groups)
    packed = np.empty(2 * n + live.size, dtype=np.int32)
    packed[:n] = bits
    packed[n : 2 * n] = -1
    bounds, start = [], 2 * n
    for group in chunks.groups:
        first, stop = np.searchsorted(live, (group.first_chunk, group.first_chunk + group.size))
        rows = live[first:stop]
        packed[start : start + rows.size] = rows - group.first_chunk
        packed[n + rows] = np.arange(rows.size)
        bounds.append((start, start + rows.size))
        start += rows.size
    return packed, bounds
