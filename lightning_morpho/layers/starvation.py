"""Starving seeds: what is seen of their gradients and outputs, on the device, and how a bed starts anew."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from lightning_morpho.blueprints import Blueprint
from lightning_morpho.config import StarvationConfig
from lightning_morpho.layers.beds import Bed, derived_generator
from lightning_morpho.layers.planning import incubating_rows
from lightning_morpho.layers.span import redraw_links_

if TYPE_CHECKING:
    from lightning_morpho.layers.seeds import SeedBeds

_SEED, _HOST, _SPREAD, _LOOKS, _OUTPUTS = range(5)
_FROZEN = -1.0
"""In place of the length of a gradient: the host's weight has none."""


@dataclass(frozen=True)
class Look:
    """What was seen of one seed, or of all seeds of a bed whose networks they share.

    Attributes:
        bed: Index of the bed.
        chunks: Chunks of the seeds.
        gradient: Length of the gradient of their parameters, relative to that of the host's weight there; where the
            host stands still, as it is. None if there were too few looks, or no gradient came that far.
        relative: Whether it is relative to the host's.
        spread: How far their output varied over a batch, relative to the host's; None if there were too few looks.
    """

    bed: int
    chunks: tuple[int, ...]
    gradient: float | None
    relative: bool
    spread: float | None


class StarvationWatch:
    """Looks at the gradients and outputs of a layer's live seeds once in a while; no step waits for the device.

    Args:
        blueprint: Kind of network and geometry of the layer.
        config: How often, and how many looks it takes.

    Attributes:
        watched: What :func:`could_starve` found; None if the seeds have changed since.
    """

    def __init__(self, blueprint: Blueprint, config: StarvationConfig) -> None:
        self.blueprint = blueprint
        self.config = config
        self.watched: dict[int, np.ndarray] | None = None
        self._chunks = blueprint.site.chunks
        self._apart = blueprint.source == "chunk"  # a bed's parameters have one row a chunk
        self._seen: dict[int, Tensor] = {}

    def due(self, bed: Bed) -> bool:
        """Whether to look at a bed's gradient before this optimizer step."""
        on_time = bed.steps % self.config.every_n_steps == 0
        return on_time and bed.moving and (not bed.alive.size or bool(bed.alive.any()))

    @torch.no_grad()
    def note_gradient(self, index: int, bed: Bed, weight: Tensor | None) -> None:
        """Look at the gradient of a bed, right before an optimizer step.

        Args:
            index: The bed.
            bed: The same.
            weight: Weight of the base layer, None if it is not a parameter.
        """
        gradients = [p.grad for p in bed.parameters() if p.grad is not None]
        trained = weight is not None and weight.requires_grad
        wanted = weight.grad if weight is not None and trained else None
        if not gradients or (trained and wanted is None):
            return
        own = torch.stack([self._length(g, self._apart) for g in gradients]).sum(0)
        host = torch.full_like(own, _FROZEN)
        if wanted is not None:
            rows = self._length(wanted, True)
            host = self._chunks.reduce_sum(rows) if self._apart else rows.sum()
        seen = self._rows(index, own.device)
        seen[_SEED] += own
        seen[_HOST] += host
        seen[_LOOKS] += 1

    @staticmethod
    def _length(gradient: Tensor, apart: bool) -> Tensor:
        """Length of a gradient, of each of its rows or of the whole."""
        return _whole(gradient.reshape(len(gradient), -1).norm(dim=1) if apart else gradient.norm()).float()

    @torch.no_grad()
    def note_output(self, index: int, host: Tensor, delta: Tensor) -> None:
        """Look at what a bed gives, at the first training batch after a tick.

        Args:
            index: The bed.
            host: The base layer's output.
            delta: What the bed's networks gave, in the same layout.
        """
        own, whole = self._spread(delta), self._spread(host)
        seen = self._rows(index, own.device)
        varied = whole > 0
        seen[_SPREAD] = torch.where(varied, torch.maximum(seen[_SPREAD], own / whole), seen[_SPREAD])
        seen[_OUTPUTS] += varied

    def _spread(self, output: Tensor) -> Tensor:
        columns = self.blueprint.site.to_columns(output).float().reshape(-1, self._chunks.num_features)
        return self._chunks.reduce_sum((columns.amax(0) - columns.amin(0)).nan_to_num(0.0, 0.0, 0.0))

    def _rows(self, index: int, device: torch.device) -> Tensor:
        seen = self._seen.get(index)
        if seen is None:
            seen = torch.zeros(5, self._chunks.num_chunks, device=device)
        self._seen[index] = seen = seen.to(device)
        return seen

    def keep_only(self, watched: Container[int]) -> None:
        """Drop what was seen of all other beds."""
        self._seen = {index: seen for index, seen in self._seen.items() if index in watched}

    def forget(self, index: int) -> None:
        """Drop what was seen of a bed: another seed lies there, it starts anew, or it erred."""
        self._seen.pop(index, None)

    def read(self, watched: Mapping[int, np.ndarray], device: torch.device) -> list[Look]:
        """What the looks so far have shown, equal on every rank, where they suffice; these are forgotten.

        One read from the device and one exchange of the ranks.

        Args:
            watched: Which chunks of each bed have seeds that could starve, bool ``(N,)``; at least one bed.
            device: Device of the layer.
        """
        seen = torch.stack([self._rows(index, device) for index in watched])
        seen[:, _LOOKS:] *= -1  # the fewest of any rank, the most of all else
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(seen, dist.ReduceOp.MAX)
        return [
            look
            for (index, rows), values in zip(watched.items(), seen.cpu().numpy(), strict=True)
            for look in self._looks(index, rows, values)
        ]

    def _looks(self, index: int, rows: np.ndarray, values: np.ndarray) -> list[Look]:
        chunks = np.flatnonzero(rows).tolist()
        groups = [[chunk] for chunk in chunks] if self._apart else [chunks]
        looks = [self._look(index, tuple(group), values[:, group].max(1)) for group in groups]
        enough = -values[_LOOKS:] >= self.config.looks
        for row, part in ((0, (_SEED, _HOST, _LOOKS)), (1, (_SPREAD, _OUTPUTS))):
            judged = torch.from_numpy(enough[row]).to(self._seen[index].device)
            for kind in part:
                self._seen[index][kind].masked_fill_(judged, 0.0)
        return looks

    def _look(self, index: int, chunks: tuple[int, ...], values: np.ndarray) -> Look:
        seed, host, spread, looks, outputs = values.tolist()
        fed = -looks >= self.config.looks and host != 0
        gradient = (seed / host if host > 0 else seed / -looks) if fed else None
        varied = spread if -outputs >= self.config.looks else None
        return Look(index, chunks, gradient, host > 0, varied)

    def state_dict(self) -> dict[str, Any]:
        """What was seen so far, as plain values; waits for the device if there is any."""
        return {str(index): seen.tolist() for index, seen in self._seen.items()}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave."""
        self._seen = {int(index): torch.tensor(seen) for index, seen in saved.items()}


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def could_starve(seeds: SeedBeds) -> dict[int, np.ndarray]:
    """Which chunks of each bed have live seeds that act or incubate, and stay; bool ``(N,)``."""
    watch, state = seeds.starvation, seeds.state
    if watch.watched is None:
        watch.watched = {}
        live = np.isin(state.stage, list(seeds.lifecycle_table.live)) & ~state.fading
        for index in np.unique(state.bed[live]).tolist() if watch.config.enabled else ():
            rows = live & (state.bed == index) & ((state.alpha > 0) | incubating_rows(seeds, index))
            if rows.any():
                watch.watched[index] = rows
        watch.keep_only(watch.watched)
    return watch.watched


def looks_of(seeds: SeedBeds) -> list[Look]:
    """What was seen of the seeds that could starve, where it is enough; at a tick, on all ranks."""
    watched = could_starve(seeds)
    return seeds.starvation.read(watched, next(seeds.parameters()).device) if watched else []


def relieve_(seeds: SeedBeds, index: int, chunks: Sequence[int], *, empty: bool, figures: Mapping[str, float]) -> bool:
    """Give starved seeds a new start, or let them fade out.

    Args:
        seeds: The seeds of their layer.
        index: Their bed.
        chunks: Their chunks.
        empty: Whether they give nothing, so that new parameters, which give nothing either, change no output.
        figures: The numbers that decided it.

    Returns:
        Whether they start anew.
    """
    if empty and revivable(seeds, index, chunks):
        revive_(seeds, index)
        return True
    seeds.cull(chunks, reason="starved", figures=figures)
    return False


def revivable(seeds: SeedBeds, index: int, chunks: Sequence[int]) -> bool:
    """Whether a bed may start anew: nothing lies there but these seeds, and it has not done so too often."""
    bed = seeds.bed_at(index)
    alone = set(np.flatnonzero(bed.occupied).tolist()) == set(chunks) and not bed.kept.any()
    return alone and bed.revivals < seeds.config.starvation.revivals


def revive_(seeds: SeedBeds, index: int) -> None:
    """Give a bed new parameters, as at a germination; its seeds stay what they are.

    The output does not change if the seeds gave nothing: new ones give exactly zero.
    """
    bed = seeds.bed_at(index)
    revivals = bed.revivals + 1
    generator = derived_generator(seeds.config.seed, seeds.name, "revival", bed.event, revivals)
    bed.fill(seeds.blueprint, generator)
    bed.take(bed.event, seeds.config.warmup.length(seeds.steps))
    redraw_links_(seeds, index, generator)
    bed.revivals = revivals
    seeds.starvation.forget(index)
    seeds.refresh()
