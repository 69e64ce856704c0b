"""The cull: the fewest hidden units that validation does not miss, the rest folded into them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_morpho.layers import ChunkedKasminaLayer, HiddenLayer, hidden_layers
from lightning_morpho.layers.span import SpanPlan
from lightning_morpho.layers.units import HOST, Reader
from lightning_morpho.sizing.selection import Moments, candidate_widths, fold, greedy_order, stand_in
from lightning_morpho.tamiyo import Resizing

RIDGE = 1e-3

Score = Callable[[], Sequence[float]]
"""Held-out errors in points, lower is better, equal on every rank; each call sees the same batches."""


def resize_(
    layers: Iterable[ChunkedKasminaLayer],
    score: Score,
    *,
    host: bool,
    grown: bool,
    tolerance: float,
    reduce: Callable[[Tensor], Tensor] = lambda flat: flat,
) -> list[Resizing]:
    """Remove the hidden units that the held-out errors do not miss, in place, last layer to first.

    Of each layer the units are ordered by greedy selection on their covariance; what the dropped ones gave is
    folded into the outgoing weights of the kept ones by ridge least squares, the consumer's bias takes the rest.
    The fewest units stay with which no error has risen by more than ``tolerance`` since the beginning, of which the
    i-th of L layers may spend i/L. Dropped units are dead afterwards: exactly zero.

    Args:
        layers: The hybrid layers of a model.
        score: Held-out errors; it must run the layers, under ``eval`` and ``no_grad``.
        host: Whether the host's own units may go.
        grown: Whether units of live beds may go.
        tolerance: In points, ``>= 0``.
        reduce: Sums a vector over the ranks.

    Returns:
        What became of each layer that could lose units, in the order in which they were looked at.
    """
    targets = [layer for layer in hidden_layers(layers) if _settled(layer) and _units(layer, host, grown)[1]]
    if not targets:
        return []
    before, moments = _observe(targets, score, reduce)
    seen = [pair for pair in zip(targets, moments, strict=True) if pair[1].count > 0]  # the others did not run
    done, now = [], before
    for place, (layer, units) in enumerate(seen, 1):
        start = time.perf_counter()
        candidates = _Candidates(layer, units, *_units(layer, host, grown))
        allowed = [error + tolerance * place / len(seen) for error in before]
        kept, after = _fewest(candidates, score, allowed, now)
        done.append(
            Resizing(
                layer=layer.name,
                units=candidates.total,
                kept=kept,
                before=now[0],
                after=after[0],
                seconds=time.perf_counter() - start,
            )
        )
        now = after
    return done


def _units(layer: HiddenLayer, host: bool, grown: bool) -> tuple[list[int], list[int]]:
    """Units that stay in any case, and those that may go."""
    stay: list[int] = []
    go: list[int] = []
    first = 0
    for block, count in layer.blocks.items():
        alive = [first + int(i) for i in layer.alive_in(block).nonzero()[0]]
        may_go = host if block == HOST else grown and not layer.seeds.bed_at(block).kept.any()
        (go if may_go else stay).extend(alive)
        first += count
    return stay, go


def _settled(layer: HiddenLayer) -> bool:
    """Whether the layer works, with all its units blended in fully; else folding would not be exact."""
    blended = all((layer.seeds.row_alpha(block) == 1).all() for block in layer.blocks if block != HOST)
    return blended and not layer.seeds.off


def _observe(
    layers: Sequence[HiddenLayer], score: Score, reduce: Callable[[Tensor], Tensor]
) -> tuple[Sequence[float], list[Moments]]:
    """The errors, and the moments of each layer's units on the same batches."""
    moments = [Moments.zero(layer.units) for layer in layers]
    with contextlib.ExitStack() as stack:
        for layer, seen in zip(layers, moments, strict=True):
            stack.enter_context(units_shown(layer, lambda rows, seen=seen: seen.add(rows)))  # type: ignore[misc]
        before = score()
    return before, [Moments.from_flat(reduce(seen.flat())) for seen in moments]


@contextlib.contextmanager
def units_shown(layer: HiddenLayer, show: Callable[[Tensor], None]) -> Iterator[None]:
    """Show the units of a layer in each forward pass, one row a sample and position, ``(M, units)``."""
    plan = layer.seeds.plan
    inputs: list[Tensor] = []

    def note(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        if len(layer.blocks) == 1:
            show(layer.samples(arguments[0], {}))
        else:
            inputs[:] = [arguments[0]]

    handle = layer.consumer.register_forward_pre_hook(note)
    if isinstance(plan, SpanPlan):
        plan.observer = lambda grown: show(layer.samples(inputs.pop(), grown)) if inputs else None
    try:
        yield
    finally:
        handle.remove()
        if isinstance(plan, SpanPlan):
            plan.observer = None


@dataclass
class _Candidates:
    """The ways to make one layer narrower, each tried from the same state."""

    layer: HiddenLayer
    moments: Moments
    stay: list[int]
    go: list[int]

    def __post_init__(self) -> None:
        self.readers = self.layer.readers
        self._saved = [p.detach().clone() for reader in self.readers for p in _parameters(reader)]
        candidates = [*self.stay, *self.go]
        weights = torch.cat([self._matrix(reader).movedim(1, 0).flatten(1) for reader in self.readers], 1)
        _, second = self.moments.second(centred=all(reader.bias is not None for reader in self.readers))
        order = greedy_order(second[candidates][:, candidates], weights[candidates], fixed=len(self.stay))
        self.order = [candidates[i] for i in order]
        widths = [len(self.stay) + more for more in candidate_widths(len(self.go))]
        self.widths = [width for width in widths if width]

    @property
    def total(self) -> int:
        """Units before."""
        return len(self.order)

    def _matrix(self, reader: Reader) -> Tensor:
        """A reader's weights on all units, float64 on the CPU, ``(rows, units, taps)``; 0 where it reads none."""
        known = {b: self.layer.rows_of(w.detach(), b).double().cpu() for b, w in reader.columns.items()}
        rows, _, taps = known[HOST].shape
        return torch.cat([known.get(b, torch.zeros(rows, n, taps).double()) for b, n in self.layer.blocks.items()], 1)

    @torch.no_grad()
    def restore_(self) -> None:
        """Back to the state before."""
        held = (p for reader in self.readers for p in _parameters(reader))
        for parameter, value in zip(held, self._saved, strict=True):
            parameter.copy_(value)

    @torch.no_grad()
    def try_(self, width: int) -> None:
        """Fold all but the first ``width`` units into those."""
        self.restore_()
        for reader in self.readers:
            reads = torch.cat([torch.full((n,), b in reader.columns) for b, n in self.layer.blocks.items()])
            keep = [unit for unit in self.order[:width] if reads[unit]]
            drop = [unit for unit in self.order[width:] if reads[unit]]
            if not drop:
                continue
            table, shift = stand_in(*self.moments.second(reader.bias is not None), keep, drop, RIDGE)
            matrix = self._matrix(reader)
            if reader.bias is not None:
                reader.bias.add_((matrix[:, drop].sum(2) @ shift).to(reader.bias.device, reader.bias.dtype))
            folded = fold(matrix, table, keep, drop).split([*self.layer.blocks.values()], 1)
            for block, part in zip(self.layer.blocks, folded, strict=True):
                if block in reader.columns:
                    weight = reader.columns[block]
                    weight.copy_(part.reshape(weight.shape))

    def settle_(self, width: int) -> None:
        """Make the dropped units dead."""
        dead = torch.zeros(self.layer.units, dtype=torch.bool)
        dead[self.order[width:]] = True
        self.layer.mark_dead_(dead)


def _parameters(reader: Reader) -> list[nn.Parameter]:
    return [*reader.columns.values(), *([] if reader.bias is None else [reader.bias])]


def _fewest(
    candidates: _Candidates, score: Score, allowed: Sequence[float], now: Sequence[float]
) -> tuple[int, Sequence[float]]:
    """By bisection, the smallest width whose errors are allowed, and those errors; the present width always is."""
    widths, low, high = candidates.widths, 0, len(candidates.widths) - 1
    scores = {high: now}
    while low < high:
        middle = (low + high) // 2
        candidates.try_(widths[middle])
        scores[middle] = score()
        if all(error <= most for error, most in zip(scores[middle], allowed, strict=True)):
            high = middle
        else:
            low = middle + 1
    candidates.try_(widths[high])
    candidates.settle_(widths[high])
    return widths[high], scores[high]
