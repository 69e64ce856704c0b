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
from torch import Tensor

from lightning_morpho.kernels.active import ActiveSet
from lightning_morpho.kernels.geometry import ChunkMLPs, Layout, layout_of
from lightning_morpho.kernels.launch import Launcher, power_of_two
from lightning_morpho.kernels.triton_direct import direct_backward_kernel, direct_forward_kernel
from lightning_morpho.kernels.triton_mlp import backward_kernel, finish_kernel, forward_kernel

SPARSE_BELOW = 0.6
"""Share of live chunks below which tiles are packed from live chunks alone, at the price of narrower loads."""
WRITES_ALL = True
"""A pass over all chunks writes every feature."""


_FORWARD, _BACKWARD, _FINISH = Launcher(forward_kernel), Launcher(backward_kernel), Launcher(finish_kernel)
_DIRECT_FORWARD, _DIRECT_BACKWARD = Launcher(direct_forward_kernel), Launcher(direct_backward_kernel)


class _Launch(NamedTuple):
    """Rows a step, warps, pipeline depth, and programs of a launch."""

    block: int
    warps: int
    stages: int
    programs: int


FORWARD = {32: _Launch(64, 4, 3, 1056), 64: _Launch(64, 4, 3, 1056)}
BACKWARD = {32: _Launch(64, 4, 3, 528), 64: _Launch(128, 8, 2, 528)}
"""The best found on an H200, by the columns of a tile."""

FEW_TILES = 32
"""Tiles below which half as many programs are faster."""
DIRECT_WIDTH = 4
"""Widest chunk, half the most hidden units, that is computed without the matrix units where features lie apart, as in
convolutions with channels first: these would multiply mostly zeros. Next to each other, tiles are read better."""
DIRECT_BLOCK = 2048
"""Activations that a program of these kernels handles at a time."""


class _Tiling(NamedTuple):
    """How chunks are cut into tiles, and rows into splits; wide and narrow chunks as pairs.

    Attributes:
        widths: Features of a chunk, ``(wide, narrow)``; ``(all, 0)`` if all are of one width.
        counts: Chunks that are computed.
        packs: Chunks of a tile.
        tiles: Tiles.
        columns: Features of a tile, a power of two.
        units: Hidden units of a tile, a power of two; 0 without the matrix units.
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


def _groups(
    networks: ChunkMLPs, active: ActiveSet, sparse: bool
) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    """Widths, computed chunks, and first feature and chunk of the narrow ones; see :class:`_Tiling`."""
    wide, *narrow = networks.chunks.groups
    counts = [len(rows) if sparse else g.size for g, rows in zip(networks.chunks.groups, active.rows, strict=True)]
    if not narrow:
        return (wide.width, 0), (counts[0], 0), (0, networks.chunks.num_chunks)
    return (wide.width, narrow[0].width), (counts[0], counts[1]), (narrow[0].first_feature, narrow[0].first_chunk)


class _Flags(NamedTuple):
    """What else a launch depends on.

    Attributes:
        layout: Of the activations.
        dtype: Of the activations.
        sparse: Whether tiles are packed from live chunks alone.
        own: The kernel's own switches.
        precision: Of the products, as Triton calls it.
        direct: Whether to do without the matrix units, a chunk a program.
    """

    layout: Layout
    dtype: torch.dtype
    sparse: bool
    own: tuple[bool, ...]
    precision: str
    direct: bool


def _flags(
    networks: ChunkMLPs, like: Tensor, sparse: bool, own: tuple[bool, ...], kept: Tensor | None = None
) -> _Flags:
    """What a launch depends on; ``kept`` was packed by the forward pass, whose layout may be another one."""
    layout, full, widest = layout_of(networks.columns(like)), like.dtype is torch.float32, networks.chunks.max_width
    assert layout is not None
    precision = "ieee" if not full else "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "tf32x3"
    if kept is not None:
        direct = kept.ndim == 4
    elif widest > DIRECT_WIDTH or networks.hidden > 2 * DIRECT_WIDTH:
        direct = False
    else:
        direct = layout.feature_stride != 1
    return _Flags(layout, like.dtype, sparse, own, precision, direct)


def _tiling(networks: ChunkMLPs, active: ActiveSet, flags: _Flags, *, backward: bool) -> _Tiling:
    hidden, (widths, counts, boundary) = networks.hidden, _groups(networks, active, flags.sparse)
    positions, widest = flags.layout.positions, networks.chunks.max_width
    if flags.direct:
        wide, narrow, columns, units = 1, 1, power_of_two(widest), 0
        launch = _Launch(DIRECT_BLOCK // columns, 4, 3, 1 << 40)
    else:
        most_columns = 32 if widest <= 32 and hidden <= 64 else 64
        launch = (BACKWARD if backward else FORWARD)[most_columns]
        wide, narrow = (max(1, min(most_columns // max(1, width), 2 * most_columns // hidden)) for width in widths)
        columns = max(16, power_of_two(max(wide * widths[0], narrow * widths[1])))
        units = max(16, power_of_two(hidden * (max(wide, narrow) if widths[1] else wide)))
    tiles = -(-counts[0] // wide), -(-counts[1] // narrow)
    block = min(launch.block, max(16, power_of_two(positions)))
    steps = -(-positions // block)
    splits = max(1, launch.programs // max(1, sum(tiles)))
    if sum(tiles) < FEW_TILES:  # each of many programs would find its tile anew for a row or two
        splits = max(1, splits // 2)
    elif not flags.sparse and active.share < 1:  # the live ones among these may be few
        splits *= 4
    if backward and not flags.direct:  # each is written and read: they shall weigh little against the activations
        splits = min(
            splits, max(128, min(512, positions * columns // max(1, 2 * sum(_partials(1, counts, widths, hidden)))))
        )
    each = -(-steps // min(steps, splits))
    return _Tiling(
        widths, counts, (wide, narrow), tiles, columns, units, boundary, launch, block, -(-steps // each),
        each * block,
    )  # fmt: skip


def probe() -> None:
    """Build and start a kernel; raises whatever a broken installation raises."""
    floats = torch.zeros(8, device="cuda")
    for _ in range(2):  # the second time it is started as it will be from then on
        _FINISH((1, 1), (floats,) * 6, (1, 1, 1, 0, 1, 0, 1, 1, 0, 1, False, 16, 1), warps=1)


class _Start(NamedTuple):
    """All that a launch needs besides its tensors.

    Attributes:
        kernel: What to start.
        grid: Programs along two axes; none if a zero is among them.
        numbers: Its arguments after the tensors.
        warps: Warps of a program.
        stages: Depth of the software pipeline.
        kept: Shape of what the forward pass keeps.
        partials: Partial gradients of wide chunks, and of narrow ones.
        splits: How many of them add up to a gradient.
    """

    kernel: Launcher
    grid: tuple[int, int]
    numbers: tuple[Any, ...]
    warps: int
    stages: int
    kept: tuple[int, ...]
    partials: tuple[int, int]
    splits: int


def _plan(networks: ChunkMLPs, active: ActiveSet, flags: _Flags, *, backward: bool) -> _Start:
    positions = flags.layout.positions
    t = _tiling(networks, active, flags, backward=backward)
    kernels = (_DIRECT_FORWARD, _DIRECT_BACKWARD) if flags.direct else (_FORWARD, _BACKWARD)
    partials = _partials(t.splits, t.counts, t.widths, networks.hidden)
    numbers = (
        positions, t.split_rows, *flags.layout[1:], sum(t.tiles), t.tiles[0], *t.counts, *t.boundary,
        *((partials[0],) if backward else ()),
        networks.chunks.max_width, *t.widths, networks.hidden, *t.packs, t.columns, t.units, t.block,
        networks.activation, flags.layout.inner == positions, flags.sparse, *flags.own, flags.precision,
    )  # fmt: skip
    tile = (1, t.columns) if flags.direct else (t.columns,)  # told apart by the backward pass
    return _Start(
        kernels[backward], (sum(t.tiles) * t.splits, 1), numbers, t.launch.warps, t.launch.stages,
        (sum(t.tiles), positions, *tile), partials, t.splits,
    )  # fmt: skip


def _partials(splits: int, counts: tuple[int, int], widths: tuple[int, int], hidden: int) -> tuple[int, int]:
    """Elements of the partial gradients of wide chunks, and of narrow ones."""
    wide, narrow = (splits * n * hidden * (2 * w + 1) for n, w in zip(counts, widths, strict=True))
    return wide, narrow


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
    memory alike. What it keeps is one tensor, for :func:`backward_` alone.
    """
    flags = _flags(networks, source, sparse, (base is out, keep, base is source))
    start = active.launches.get(flags)
    if start is None:
        start = _plan(networks, active, flags, backward=False)
        active.remember(flags, start)
    kept = [source.new_empty(start.kept)] if keep else []
    if start.grid[0]:
        tensors = (
            source, base, out, kept[0] if keep else source, *weights, active.rows[0], active.rows[-1], active.alpha,
        )  # fmt: skip
        start.kernel(start.grid, tensors, start.numbers, start.warps, start.stages)
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
    and a whole ``source`` lie in memory alike, and may be the same.
    """
    whole, kept = (source[0], source[0]) if isinstance(source, list) else (source, None)
    own = (kept is not None, base is grad, out is not None, needs_weights)
    flags = _flags(networks, grad, sparse, own, kept)
    prepared = active.launches.get(flags)
    if prepared is None:
        start = _plan(networks, active, flags, backward=True)
        prepared = start, _finish_launch(networks, active, start, sparse)
        active.remember(flags, prepared)
    start, (finish_programs, finish_numbers) = prepared
    partial = torch.empty(sum(start.partials) if needs_weights else 1, dtype=torch.float32, device=grad.device)
    if start.grid[0]:
        tensors = (
            whole, grad, base, grad if out is None else out,
            partial, *weights, active.rows[0], active.rows[-1], active.alpha,
        )  # fmt: skip
        start.kernel(start.grid, tensors, start.numbers, start.warps, start.stages)
    if not needs_weights:
        return None
    grads = [torch.empty_like(w) for w in weights]
    _FINISH((finish_programs, 1), (partial, active.places, active.alpha, *grads), finish_numbers, warps=4)
    return grads


def _finish_launch(networks: ChunkMLPs, active: ActiveSet, start: _Start, sparse: bool) -> tuple[int, tuple[Any, ...]]:
    """Programs and numbers of the kernel that adds up the partial gradients."""
    chunks = networks.chunks
    widths, counts, boundary = _groups(networks, active, sparse)
    splits = start.splits if start.grid[0] else 0
    block = 128 if splits <= 16 else 32
    elements = chunks.num_chunks * networks.hidden * (2 * chunks.max_width + 1)
    numbers = (
        chunks.num_chunks, splits, *counts, boundary[1], start.partials[0], chunks.max_width, *widths,
        networks.hidden, sparse, block, min(16 if block == 128 else 32, power_of_two(max(1, splits))),
    )  # fmt: skip
    return -(-elements // block), numbers
