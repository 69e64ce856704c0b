"""Seeds as fused Triton kernels: each live chunk is read once and written once.

A tile is as many whole chunks as fit in 32 columns (64 for chunks wider than 32). Its weights are loaded
once, as blocks on a diagonal, and applied by the matrix units to block after block of rows. The backward
pass recomputes the hidden units and writes one partial weight gradient for each split of the rows; a second
kernel adds these up. Wide and narrow chunks share each launch. Importing this module needs Triton;
:mod:`lightning_morpho.kernels.dispatch` does without it where it is missing.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from lightning_morpho.kernels.active import ActiveSet
from lightning_morpho.kernels.geometry import ChunkMLPs, Layout, layout_of
from lightning_morpho.kernels.launch import Launcher
from lightning_morpho.kernels.triton_mlp import backward_kernel, finish_kernel, forward_kernel

SPARSE_BELOW = 0.6
"""Share of live chunks below which tiles are packed from live chunks alone, at the price of narrower loads."""
WRITES_ALL = True
"""A pass over all chunks writes every feature."""


_FORWARD, _BACKWARD, _FINISH = Launcher(forward_kernel), Launcher(backward_kernel), Launcher(finish_kernel)


class _Launch(NamedTuple):
    """Rows a step, warps, pipeline depth, and programs of a launch."""

    block: int
    warps: int
    stages: int
    programs: int


FORWARD = {32: _Launch(64, 4, 3, 1056), 64: _Launch(64, 4, 3, 1056)}
BACKWARD = {32: _Launch(64, 4, 3, 528), 64: _Launch(128, 8, 2, 528)}
"""The best found on an H200, by the columns of a tile."""


class _Tiling(NamedTuple):
    """How chunks are cut into tiles, and rows into splits; wide and narrow chunks as pairs.

    Attributes:
        widths: Features of a chunk, ``(wide, narrow)``; ``(all, 0)`` if all are of one width.
        counts: Chunks that are computed.
        packs: Chunks of a tile.
        tiles: Tiles.
        columns: Features of a tile, a power of two.
        units: Hidden units of a tile, a power of two.
        boundary: First feature and first chunk of the narrow ones.
        launch: Shape of the launch.
        block: Rows of a step.
        splits: Parts that the rows are cut into.
        split_rows: Rows of a part.
    """

    widths: tuple[int, int]
    counts: tuple[int, int]
    packs: tuple[int, int]
    tiles: tuple[int, int]
    columns: int
    units: int
    boundary: tuple[int, int]
    launch: _Launch
    block: int
    splits: int
    split_rows: int

    @property
    def all_tiles(self) -> int:
        """Tiles of both widths."""
        return sum(self.tiles)

    def partials(self, hidden: int) -> tuple[int, int]:
        """Partial gradients of wide chunks, and of narrow ones."""
        wide, narrow = (self.splits * n * hidden * (2 * w + 1) for n, w in zip(self.counts, self.widths, strict=True))
        return wide, narrow


def _tiling(
    networks: ChunkMLPs, active: ActiveSet, positions: int, sparse: bool, launches: dict[int, _Launch], partial: bool
) -> _Tiling:
    groups, hidden = networks.chunks.groups, networks.hidden
    most_columns = 32 if networks.chunks.max_width <= 32 and hidden <= 64 else 64
    launch = launches[most_columns]
    widths = [group.width for group in groups]
    counts = [len(rows) if sparse else group.size for group, rows in zip(groups, active.rows, strict=True)]
    packs = [max(1, min(most_columns // width, 2 * most_columns // hidden)) for width in widths]
    tiles = [triton.cdiv(count, pack) for count, pack in zip(counts, packs, strict=True)]
    columns = max(16, triton.next_power_of_2(max(p * w for p, w in zip(packs, widths, strict=True))))
    units = max(16, triton.next_power_of_2(max(packs) * hidden))
    block = min(launch.block, max(16, triton.next_power_of_2(positions)))
    steps = triton.cdiv(positions, block)
    splits = max(1, launch.programs // max(1, sum(tiles)))
    if partial:
        splits = min(splits, _most_splits(positions, columns, counts, hidden, widths))
    each = triton.cdiv(steps, min(steps, splits))
    boundary = groups[1] if len(groups) == 2 else (networks.chunks.num_chunks, 0, 0)
    return _Tiling(
        _pair(widths), _pair(counts), _pair(packs), _pair(tiles), columns, units, (boundary[2], boundary[0]),
        launch, block, triton.cdiv(steps, each), each * block,
    )  # fmt: skip


def _pair(values: list[int]) -> tuple[int, int]:
    return values[0], values[1] if len(values) == 2 else 0


def _most_splits(positions: int, columns: int, counts: list[int], hidden: int, widths: list[int]) -> int:
    """Splits whose partial gradients still weigh little against the activations: each is written and read."""
    a_split = sum(count * hidden * (2 * width + 1) for count, width in zip(counts, widths, strict=True))
    return max(128, min(512, positions * columns // max(1, 2 * a_split)))


def probe() -> None:
    """Build and start a kernel; raises whatever a broken installation raises."""
    floats = torch.zeros(8, device="cuda")
    _FINISH((1, 1), (floats,) * 6, (1, 1, 1, 0, 1, 0, 1, 1, 0, 1, False, 16, 1), warps=1)


def _precision(dtype: torch.dtype) -> str:
    if dtype is not torch.float32:
        return "ieee"
    return "tf32" if torch.backends.cuda.matmul.allow_tf32 else "tf32x3"


def _geometry(t: _Tiling, layout: Layout) -> tuple[int, ...]:
    """The numbers that both kernels take first."""
    return (layout.positions, t.split_rows, *layout[1:], t.all_tiles, t.tiles[0], *t.counts, *t.boundary)


def _constants(t: _Tiling, networks: ChunkMLPs, layout: Layout, sparse: bool) -> tuple[Any, ...]:
    """The compile-time numbers that both kernels share."""
    return (
        networks.chunks.max_width, *t.widths, networks.hidden, *t.packs, t.columns, t.units, t.block,
        networks.activation, layout.inner == layout.positions, sparse,
    )  # fmt: skip


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

    Arguments as for :func:`lightning_morpho.kernels.batched.forward_`; ``source``, ``base`` and ``out`` lie in
    memory alike. What it keeps has the shape ``(tiles, M, columns)``.
    """
    layout = layout_of(networks.columns(source))
    assert layout is not None
    key = (layout, source.dtype, sparse, keep, base is out, base is source, torch.backends.cuda.matmul.allow_tf32)
    prepared = active.launches.get(key)
    if prepared is None:
        t = _tiling(networks, active, layout.positions, sparse, FORWARD, partial=False)
        flags = (base is out, keep, base is source, _precision(source.dtype))
        numbers = (*_geometry(t, layout), *_constants(t, networks, layout, sparse), *flags)
        prepared = t, numbers
        active.remember(key, prepared)
    t, numbers = prepared
    kept = [source.new_empty((t.all_tiles, layout.positions, t.columns))] if keep else []
    if t.all_tiles:
        tensors = (
            source,
            base,
            out,
            kept[0] if keep else source,
            *weights,
            active.rows[0],
            active.rows[-1],
            active.alpha,
        )
        _FORWARD((t.all_tiles * t.splits, 1), tensors, numbers, t.launch.warps, t.launch.stages)
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

    Arguments and result as for :func:`lightning_morpho.kernels.batched.backward_`; ``grad``, ``base``, ``out``
    and a whole ``source`` lie in memory alike.
    """
    layout = layout_of(networks.columns(grad))
    assert layout is not None
    kept = isinstance(source, list)
    flags = (kept, base is grad, out is not None, needs_weights)
    key = (layout, grad.dtype, sparse, flags, torch.backends.cuda.matmul.allow_tf32)
    prepared = active.launches.get(key)
    if prepared is None:
        t = _tiling(networks, active, layout.positions, sparse, BACKWARD, partial=True)
        partial1 = t.partials(networks.hidden)[0]
        constants = _constants(t, networks, layout, sparse)
        numbers = (*_geometry(t, layout), partial1, *constants, *flags, _precision(grad.dtype))
        prepared = t, numbers, _finish_launch(networks, t, partial1, sparse)
        active.remember(key, prepared)
    t, numbers, (finish_programs, finish_numbers) = prepared
    size = sum(t.partials(networks.hidden)) if needs_weights else 1
    partial = torch.empty(size, dtype=torch.float32, device=grad.device)
    if t.all_tiles:
        tensors = (
            source[0] if isinstance(source, list) else source, grad, base, grad if out is None else out,
            partial, *weights, active.rows[0], active.rows[-1], active.alpha,
        )  # fmt: skip
        _BACKWARD((t.all_tiles * t.splits, 1), tensors, numbers, t.launch.warps, t.launch.stages)
    if not needs_weights:
        return None
    grads = [torch.empty_like(w) for w in weights]
    _FINISH((finish_programs, 1), (partial, active.places, active.alpha, *grads), finish_numbers, warps=4)
    return grads


def _finish_launch(networks: ChunkMLPs, t: _Tiling, partial1: int, sparse: bool) -> tuple[int, tuple[Any, ...]]:
    """Programs and numbers of the kernel that adds up the partial gradients."""
    chunks = networks.chunks
    splits = t.splits if t.all_tiles else 0
    block = 128 if splits <= 16 else 32
    elements = chunks.num_chunks * networks.hidden * (2 * chunks.max_width + 1)
    numbers = (
        chunks.num_chunks, splits, *t.counts, t.boundary[1], partial1, chunks.max_width, *t.widths, networks.hidden,
        sparse, block, min(16 if block == 128 else 128, triton.next_power_of_2(max(1, splits))),
    )  # fmt: skip
    return triton.cdiv(elements, block), numbers
