"""Seeds as fused Triton kernels: each live chunk is read once and written once.

A tile is as many whole chunks as fit in 32 columns (64 for chunks wider than 32). Its weights are loaded
once, as blocks on a diagonal, and applied by the matrix units to block after block of rows. The backward
pass recomputes the hidden units and writes one partial weight gradient for each split of the rows; a second
kernel adds these up. Importing this module needs Triton; :mod:`lightning_morpho.kernels.dispatch` does
without it where it is missing.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from lightning_morpho.chunks import ChunkGroup
from lightning_morpho.kernels.active import ActiveSet
from lightning_morpho.kernels.geometry import ChunkMLPs, layout_of
from lightning_morpho.kernels.launch import Launcher
from lightning_morpho.kernels.triton_mlp import backward_kernel, finish_kernel, forward_kernel

SPARSE_BELOW = 0.6
"""Share of live chunks below which tiles are packed from live chunks alone, at the price of narrower loads."""
WRITES_ALL = True
"""A pass over all chunks writes every feature."""


_FORWARD, _BACKWARD, _FINISH = Launcher(forward_kernel), Launcher(backward_kernel), Launcher(finish_kernel)


class _Tiling(NamedTuple):
    """How a group's chunks are cut into tiles, and rows into splits."""

    pack: int
    columns: int
    units: int
    tiles: int
    block: int
    splits: int
    split_rows: int


class _Launch(NamedTuple):
    """Rows a step, warps, pipeline depth, and programs of a launch."""

    block: int
    warps: int
    stages: int
    programs: int


FORWARD = {32: _Launch(64, 4, 3, 1056), 64: _Launch(64, 4, 3, 1056)}
BACKWARD = {32: _Launch(64, 4, 3, 528), 64: _Launch(128, 8, 2, 528)}
"""The best found on an H200, by the columns of a tile."""

MOST_SPLITS = 128
"""Each split leaves a partial gradient to add up."""


def _launches(networks: ChunkMLPs, active: ActiveSet, sparse: bool) -> list[tuple[ChunkGroup, Tensor, int]]:
    """Groups of chunks, each with its live rows and how many chunks to compute."""
    pairs = zip(networks.chunks.groups, active.rows, strict=True)
    return [(group, rows, len(rows) if sparse else group.size) for group, rows in pairs]


def _tile_columns(group: ChunkGroup, hidden: int) -> int:
    return 32 if group.width <= 32 and hidden <= 64 else 64


def _tiling(group: ChunkGroup, hidden: int, count: int, positions: int, launch: _Launch) -> _Tiling:
    most_columns = _tile_columns(group, hidden)
    pack = max(1, min(most_columns // group.width, 2 * most_columns // hidden))
    columns = max(16, triton.next_power_of_2(pack * group.width))
    units = max(16, triton.next_power_of_2(pack * hidden))
    tiles = triton.cdiv(max(count, 1), pack)
    block = min(launch.block, max(16, triton.next_power_of_2(positions)))
    steps = triton.cdiv(positions, block)
    each = triton.cdiv(steps, min(steps, max(1, launch.programs // tiles), MOST_SPLITS))
    return _Tiling(pack, columns, units, tiles, block, triton.cdiv(steps, each), each * block)


def probe() -> None:
    """Build and start a kernel; raises whatever a broken installation raises."""
    floats = torch.zeros(8, device="cuda")
    _FINISH((1, 1), (floats,) * 6, (1, 1, 1, 0, 1, 1, 1, False, 16, 1), warps=1)


def _precision(dtype: torch.dtype) -> str:
    if dtype is not torch.float32:
        return "ieee"
    return "tf32" if torch.backends.cuda.matmul.allow_tf32 else "tf32x3"


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
    kept: list[Tensor] = []
    for group, rows, count in _launches(networks, active, sparse):
        launch = FORWARD[_tile_columns(group, networks.hidden)]
        t = _tiling(group, networks.hidden, count, layout.positions, launch)
        saved = source.new_empty((t.tiles, layout.positions, t.columns) if keep else 0)
        if keep:
            kept.append(saved)
        if not count:
            continue
        _FORWARD(
            (t.tiles, t.splits),
            (source, base, out, saved, *weights, rows, active.alpha),
            (
                layout.positions, t.split_rows, *layout[1:], group.first_feature, group.first_chunk, count,
                networks.chunks.max_width, group.width, networks.hidden, t.pack, t.columns, t.units, t.block,
                networks.activation, layout.inner == layout.positions, sparse, base is out, keep, base is source,
                _precision(source.dtype),
            ),
            launch.warps,
            launch.stages,
        )  # fmt: skip
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
    grads = [torch.empty_like(w) for w in weights] if needs_weights else None
    for index, (group, rows, count) in enumerate(_launches(networks, active, sparse)):
        launch = BACKWARD[_tile_columns(group, networks.hidden)]
        t = _tiling(group, networks.hidden, count, layout.positions, launch)
        each = networks.hidden * (2 * group.width + 1)
        shape = (t.splits, count, each) if needs_weights else 0
        partial = torch.empty(shape, dtype=torch.float32, device=grad.device)
        if count:
            _BACKWARD(
                (t.tiles, t.splits),
                (
                    source[index] if isinstance(source, list) else source, grad, base, grad if out is None else out,
                    partial, *weights, rows, active.alpha,
                ),
                (
                    layout.positions, t.split_rows, *layout[1:], group.first_feature, group.first_chunk, count,
                    networks.chunks.max_width, group.width, networks.hidden, t.pack, t.columns, t.units, t.block,
                    networks.activation, layout.inner == layout.positions, sparse, isinstance(source, list),
                    base is grad, out is not None, needs_weights, _precision(grad.dtype),
                ),
                launch.warps,
                launch.stages,
            )  # fmt: skip
        if grads is not None:
            _finish_group(networks, group, active, grads, partial, count, t.splits, sparse)
    return grads


def _finish_group(
    networks: ChunkMLPs,
    group: ChunkGroup,
    active: ActiveSet,
    grads: list[Tensor],
    partial: Tensor,
    count: int,
    splits: int,
    sparse: bool,
) -> None:
    padded, block = networks.chunks.max_width, 128
    elements = group.size * networks.hidden * (2 * padded + 1)
    _FINISH(
        (triton.cdiv(elements, block), 1),
        (partial, active.places, active.alpha, *grads),
        (
            group.size, count, splits if count else 0, group.first_chunk,
            padded, group.width, networks.hidden, sparse, block, min(16, triton.next_power_of_2(splits)),
        ),
        warps=4,
    )  # fmt: skip
