"""The execution plan of a layer: which beds add to its output, and how strongly."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from lightning_morpho.blueprints import Blueprint, ChunkMLP
from lightning_morpho.grafting import BLENDS, blend_add, gather_chunks, scatter_chunks
from lightning_morpho.kernels import ActiveSet, Backend, ChunkMLPs, add_chunk_mlps, choose_backend, shared_memory
from lightning_morpho.kernels.ops import WEIGHTS
from lightning_morpho.layers.beds import Bed
from lightning_morpho.layers.faults import FaultWatch, add_contained, contained, guarded, is_seeds_own


class GraftPlan:
    """What the live beds of a layer add to its output. Rebuilt whenever a seed's state changes.

    All decisions are made here, on the host; a forward pass reads nothing from the device. What the device
    needs, which chunks are live and how strongly, goes there in one transfer a bed.

    Args:
        blueprint: Kind of network and geometry of the layer.
        beds: The live beds.
        alphas: Blend weight of each chunk of each of them, float32 ``(N,)``; 0 where it has no seed.
        previous: The plan that this one replaces. A CUDA graph captured with it stays valid as long as
            the same beds are live.
        fused: Whether fused kernels may be used.
        blend: How seeds enter the host; kernels know ``"add"`` alone, the others take the reference.
        indices: Index of each of the beds in the layer.
        faults: Takes note of seeds that err; None: what they raise is not caught.

    Attributes:
        backend: What computed the last forward pass, None before the first.
    """

    def __init__(
        self,
        blueprint: Blueprint,
        beds: Sequence[Bed],
        alphas: Sequence[np.ndarray],
        previous: GraftPlan | None = None,
        *,
        fused: bool = True,
        blend: str = "add",
        indices: Sequence[int] = (),
        faults: FaultWatch | None = None,
    ) -> None:
        self.blueprint = blueprint
        self.blend = blend
        self.indices = tuple(indices)
        self.faults = faults
        self.beds = tuple(beds)
        self.backend: Backend | None = None
        self._alphas = tuple(alphas)
        self._disjoint = len(alphas) == 1 or not (np.count_nonzero(np.stack(alphas), axis=0) > 1).any()
        self._networks = _networks(blueprint) if blend == "add" else None
        self._merges = blend == "add"
        before: dict[Bed, ActiveSet] = {}
        if previous is not None:
            before = dict(zip(previous.beds, previous._active, strict=True))
        device = next(self.beds[0].parameters()).device
        self._memory = shared_memory() if fused else 0
        self._active: list[ActiveSet] = [
            ActiveSet.upload(blueprint.site.chunks, rows, device, before.get(bed))
            for bed, rows in zip(beds, alphas, strict=True)
        ]

    def scaled(self, factors: Tensor, every: np.ndarray) -> GraftPlan:
        """The same plan in plain differentiable operations, its blend weights times ``factors``, ``(beds, N)``.

        The seeds' outputs are scaled, not their weights, which all replicas then share. ``every`` matters to spans
        alone.
        """
        plan = copy.copy(self)
        groups = len(self.blueprint.site.chunks.groups)
        device = factors.device
        alphas = [torch.from_numpy(rows).to(device) * factors[i] for i, rows in enumerate(self._alphas)]
        plan._active = [ActiveSet.dense(alpha, groups) for alpha in alphas]
        plan._networks, plan._merges = None, False
        return plan

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """Add what the seeds give to the base layer's output; every seed reads ``y`` as it came.

        Args:
            x: The layer's input.
            y: The base layer's output; it may be written into.

        Returns:
            Same shape as ``y``.
        """
        if torch.compiler.is_compiling():
            for entry in self._active:
                entry.pinned = True  # a CUDA graph may be captured of what is compiled
        if self._networks is None:
            return self._by_reference(x, y)
        backend = self.backend = choose_backend(y, self._networks, memory=self._memory)
        if backend is Backend.REFERENCE:
            return self._by_reference(x, y)
        weights = [getattr(bed, name) for bed in self.beds for name in WEIGHTS]
        return add_chunk_mlps(y, self._networks, weights, self._active, backend, disjoint=self._disjoint)

    def _by_reference(self, x: Tensor, y: Tensor) -> Tensor:
        """Any blueprint, in plain differentiable operations."""
        site, out = self.blueprint.site, y
        self.blueprint.train(self.beds[0].training)
        parameters = [bed.values() for bed in self.beds]
        alphas = [site.chunks.expand(entry.alpha) for entry in self._active]
        merged = self.blueprint.merge(parameters, alphas) if self._merges else None
        if merged is not None:
            return add_contained(y, contribution(self.blueprint, merged, guarded(x), guarded(y)))
        for index, (values, alpha) in enumerate(zip(parameters, alphas, strict=True)):
            seed = self._attempt(index, values, guarded(x), guarded(y))
            if seed is not None:
                delta = contained(BLENDS[self.blend](out, seed))
                out = blend_add(out, delta, site.per_feature(alpha))
        return out

    def _attempt(self, index: int, values: Mapping[str, Tensor], x: Tensor, y: Tensor) -> Tensor | None:
        bed = self.indices[index] if self.indices else index
        return attempt(self.blueprint, values, x, y, bed, self.faults)

    def look(self, x: Tensor, y: Tensor, show: Callable[[int, Tensor, Tensor], None]) -> None:
        """Look once at what each bed gives, above all for what is not finite.

        Args:
            x: The layer's input.
            y: The base layer's output.
            show: Is called with the index of each bed that gives something, ``y``, and what it gives.
        """
        assert self.faults is not None
        source = x if self.blueprint.source == "input" else y
        for index, bed in enumerate(self.beds):
            with torch.no_grad():
                seed = self._attempt(index, bed.values(), x, y)
            if seed is not None:
                self.faults.look(self.indices[index], source, seed)
                show(self.indices[index], y, seed)


def attempt(
    blueprint: Blueprint, values: Mapping[str, Tensor], x: Tensor, y: Tensor, bed: int, faults: FaultWatch | None
) -> Tensor | None:
    """What a bed gives; None if its networks raise, now or since the last tick. Compiled code can't contain that."""
    if faults is None or torch.compiler.is_compiling():
        return contribution(blueprint, values, x, y)
    if faults.raised(bed):
        return None
    try:
        return contribution(blueprint, values, x, y)
    except Exception as error:
        if not is_seeds_own(error):
            raise
        faults.note_raised(bed, error)
        return None


def contribution(blueprint: Blueprint, parameters: Mapping[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
    """What a bed's networks give, before blend and alpha.

    Args:
        blueprint: Kind of network and geometry of the layer; any kind but ``span``.
        parameters: The bed's parameters.
        x: The layer's input.
        y: The base layer's output.

    Returns:
        Same shape as ``y``.
    """
    site = blueprint.site
    if blueprint.source == "input":
        return blueprint.grow(parameters, x)
    if blueprint.source == "output":
        return blueprint.grow(parameters, y)
    columns = site.to_columns(y)
    rows = blueprint.grow(parameters, gather_chunks(columns, site.chunks))
    return site.from_columns(scatter_chunks(rows, site.chunks, columns.shape))


def _networks(blueprint: Blueprint) -> ChunkMLPs | None:
    """What the kernels need to know of a blueprint, None if they don't know its kind."""
    if type(blueprint).grow is not ChunkMLP.grow:
        return None
    assert isinstance(blueprint, ChunkMLP)
    site = blueprint.site
    return ChunkMLPs(site.chunks, site.spatial, blueprint.hidden, blueprint.config.activation)
