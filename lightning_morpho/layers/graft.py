"""The execution plan of a layer: which beds add to its output, and how strongly."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from lightning_morpho.blueprints import Blueprint
from lightning_morpho.grafting import blend_add, gather_chunks, scatter_chunks
from lightning_morpho.layers.beds import Bed


class GraftPlan:
    """What the live beds of a layer add to its output. Rebuilt whenever a seed's state changes.

    Args:
        blueprint: Kind of network and geometry of the layer.
        beds: The live beds.
        alphas: Blend weight of each chunk of each of them, float32 ``(N,)``; 0 where it has no seed.
    """

    def __init__(self, blueprint: Blueprint, beds: Sequence[Bed], alphas: Sequence[np.ndarray]) -> None:
        self.blueprint = blueprint
        self.beds = tuple(beds)
        chunks = blueprint.site.chunks
        self._alpha = [blueprint.site.per_feature(chunks.expand(torch.from_numpy(rows))) for rows in alphas]

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """Add what the seeds give to the base layer's output; every seed reads ``y`` as it came.

        Args:
            x: The layer's input.
            y: The base layer's output.

        Returns:
            Same shape as ``y``.
        """
        out = y
        for index, bed in enumerate(self.beds):
            out = blend_add(out, self._contribution(bed, x, y), self._alpha_on(index, y.device))
        return out

    def _contribution(self, bed: Bed, x: Tensor, y: Tensor) -> Tensor:
        site = self.blueprint.site
        if self.blueprint.source == "input":
            return self.blueprint.grow(bed.values(), x)
        if self.blueprint.source == "output":
            return self.blueprint.grow(bed.values(), y)
        columns = site.to_columns(y)
        rows = self.blueprint.grow(bed.values(), gather_chunks(columns, site.chunks))
        return site.from_columns(scatter_chunks(rows, site.chunks, columns.shape))

    def _alpha_on(self, index: int, device: torch.device) -> Tensor:
        if self._alpha[index].device != device:
            self._alpha[index] = self._alpha[index].to(device)
        return self._alpha[index]
