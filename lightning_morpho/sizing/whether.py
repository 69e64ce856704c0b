"""Whether to grow at all: would new hidden units explain anything that those there are never could?"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from lightning_morpho.blueprints import Site, Span
from lightning_morpho.layers import ChunkedKasminaLayer, HiddenLayer, hidden_layers
from lightning_morpho.layers.beds import derived_generator
from lightning_morpho.tamiyo import Assessment

NEW_UNITS = 32
MOST_ROWS = 4096
MOST_FEATURES = 512
FOLDS = 8
RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
NOISE = 1e-6
"""Added to the diagonal of correlations, for any ridge: what products of float32 rows are exact to."""


def assess(
    layers: Iterable[ChunkedKasminaLayer],
    losses: Callable[[], Iterator[Tensor]],
    *,
    seed: int,
    reduce: Callable[[Tensor], Tensor] = lambda flat: flat,
) -> list[Assessment]:
    r"""What new random hidden units would explain of the held-out residual, and what the host's own still could.

    The residual is the loss's negative gradient with respect to the consumer's output. It is regressed on a constant,
    then on the pair's own units and on what these would give if their incoming weights moved (their tangents, along
    the axes or, if there are many, along random directions), then on all that and 32 new random units. By which shares
    the squared error falls, cross-validated and each regression at its best of seven ridges, is the answer. Without the
    tangents a host that has merely not learnt yet what it could looks too narrow.

    How much can be explained at all differs from task to task: nearly nothing in language modelling, most of it where
    targets have little noise. So the new units' share means something beside what the own units still explain, and
    beside its standard error, which the folds give.

    Args:
        layers: The hybrid layers of a model.
        losses: Gives the held-out loss of one batch after another, with a graph, the model under ``eval``.
        seed: Random seed of new units and directions.
        reduce: Sums a vector over the ranks.

    Returns:
        One entry a pair, last to first. Left out are pairs that hold live beds, and those whose consumer reads
        more than 512 inputs.
    """
    pairs = [layer for layer in hidden_layers(layers) if not layer.seeds.off and len(layer.blocks) == 1]
    probes = [_Probe(layer, seed) for layer in pairs if _width(layer) <= MOST_FEATURES]
    if not probes:
        return []
    with contextlib.ExitStack() as stack, torch.enable_grad():
        for probe in probes:
            stack.enter_context(probe.watching())
        for loss in losses():
            calls = [(probe, *call) for probe in probes for call in probe.calls]
            gradients = torch.autograd.grad(loss, [output for _, _, output in calls], allow_unused=True)
            with torch.no_grad():
                for (probe, sources, _), gradient in zip(calls, gradients, strict=True):
                    if gradient is not None:  # a step may run the model again, for a metric
                        probe.take(sources, gradient)
            for probe in probes:
                probe.calls.clear()
    for probe in probes:
        probe.add_up()
    return [probe.result(reduce) for probe in probes if probe.folds]


def _width(layer: HiddenLayer) -> int:
    """Inputs of a consumer, a convolution's kernel elements counted one by one."""
    route, site = layer.blueprint.route, layer.blueprint.site
    return route.producers[0].out_features * route.positions * math.prod(site.kernel)


class _Probe:
    """What one pair shows in the forward passes of :func:`assess`."""

    def __init__(self, layer: HiddenLayer, seed: int) -> None:
        self.layer = layer
        few = replace(layer.blueprint.config, hidden=NEW_UNITS)
        self.blueprint = Span(layer.blueprint.site, few, layer.blueprint.route)
        generator = derived_generator(seed, layer.name, "whether")
        values = {name: torch.zeros(shape) for name, shape in self.blueprint.shapes().items()}
        self.blueprint.reset_(values, generator)
        self.own = _incoming(layer)
        like = self.own["w_in0"]
        self.new = {name: value.to(like) for name, value in values.items()}
        self.norms = [norm.to(like.device, like.dtype) for norm in self.blueprint.norms()]
        self.directions = list(_directions(self.own, MOST_FEATURES // _width(layer) - 1, generator))
        self.inputs: dict[int, Tensor] = {}
        self.calls: list[tuple[list[Tensor], Tensor]] = []
        self.rows: list[tuple[Tensor, Tensor]] = []
        self.folds: list[_Products] = []
        self.known = 0

    @property
    def dtype(self) -> torch.dtype:
        """That of the host's weights."""
        return self.own["w_in0"].dtype

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Note what the producers read and the consumer gives."""
        handles = [
            producer.register_forward_hook(lambda _, x, y, k=k: self.inputs.update({k: x[0].detach().to(self.dtype)}))
            for k, producer in enumerate(self.layer.producers)
        ]
        handles.append(self.layer.consumer.register_forward_hook(self._note))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _note(self, module: nn.Module, x: tuple[Any, ...], y: Tensor) -> None:
        if y.requires_grad:
            self.calls.append(([self.inputs[k] for k in range(len(self.inputs))], y))

    def take(self, sources: list[Tensor], gradient: Tensor) -> None:
        """Add one batch to the rows of each fold."""
        site = self.layer.blueprint.site
        own, tangents = self._own_units(sources)
        new = self.blueprint.hidden_units(self.new, self.norms, sources)
        known = [_patches(site, units) for units in (own, *tangents)]
        fresh = _patches(site, new)
        target = -site.to_columns(gradient.to(self.dtype)).flatten(0, -2)
        features = torch.cat([torch.ones_like(target[:, :1]), *known, fresh], 1)
        self.known = features.shape[1] - fresh.shape[1]
        thin = slice(None, None, math.ceil(len(features) / MOST_ROWS))
        self.rows.append((features[thin].float(), target[thin].float()))
        if sum(len(rows) for rows, _ in self.rows) >= MOST_ROWS:
            self.add_up()

    def add_up(self) -> None:
        """Take the rows since the last time into the normal equations: all at once, where batches are small."""
        if not self.rows:
            return
        split = [[rows.tensor_split(FOLDS) for rows in batch] for batch in self.rows]
        self.rows.clear()
        found = [_Products.of(*(torch.cat([batch[i][k] for batch in split]) for i in (0, 1))) for k in range(FOLDS)]
        self.folds = [a + b for a, b in zip(self.folds, found, strict=True)] if self.folds else found

    def _own_units(self, sources: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """The host's units, and by how much they change along each direction of their incoming weights."""
        blueprint, norms = self.layer.blueprint, list(self.layer.blueprint.route.norms)
        # One-sided differences; `torch.func.jvp` would do, but its first use loads for seconds.
        fine = max(0.01, math.sqrt(torch.finfo(self.dtype).eps))
        step = fine * self.own["w_in0"].square().mean().sqrt()
        units = blueprint.hidden_units(self.own, norms, sources)
        moved = (
            blueprint.hidden_units({k: v + step * d[k] for k, v in self.own.items()}, norms, sources)
            for d in self.directions
        )
        return units, [(there - units) / step for there in moved]

    def result(self, reduce: Callable[[Tensor], Tensor]) -> Assessment:
        """What own and new units explain of the residual."""
        folds = [_Products(reduce(fold.gram), reduce(fold.cross), reduce(fold.energy)) for fold in self.folds]
        left, before, after = _errors(folds, (1, self.known, len(folds[0].gram)))
        before = min(left, before, key=lambda errors: float(errors.sum()))  # few rows: learning may promise nothing
        total = float(left.sum())
        if not 0 < total < math.inf:
            return Assessment(layer=self.layer.name, share=0.0)
        gains = (before - after) / total
        return Assessment(
            layer=self.layer.name,
            share=float(gains.sum()),
            own=max(0.0, float(left.sum() - before.sum()) / total),
            error=float(gains.std() * len(gains) ** 0.5),
            residual=total / float(sum(fold.gram[0, 0] for fold in folds)),
        )


@dataclass(frozen=True)
class _Products:
    """Sums over the rows of a fold: features by features, features by targets, and the targets' squares."""

    gram: Tensor
    cross: Tensor
    energy: Tensor

    @classmethod
    def of(cls, features: Tensor, targets: Tensor) -> _Products:
        products = features.T @ features, features.T @ targets, targets.square().sum()
        return cls(*(product.double().cpu() for product in products))

    def __add__(self, other: _Products) -> _Products:
        return _Products(self.gram + other.gram, self.cross + other.cross, self.energy + other.energy)

    def __sub__(self, other: _Products) -> _Products:
        return _Products(self.gram - other.gram, self.cross - other.cross, self.energy - other.energy)


def _errors(folds: Sequence[_Products], sizes: Sequence[int]) -> list[Tensor]:
    """Cross-validated squared errors of regressions on the first so many features, each at its best ridge.

    The error falls with the ridge, then rises again: the search goes from the largest down until none gets better.

    Args:
        folds: What to fit and to judge by.
        sizes: How many features each regression uses, the constant included; the last uses all.

    Returns:
        For each regression the error of each fold, ``(folds,)``.
    """
    whole = functools.reduce(_Products.__add__, folds)
    spread = whole.gram.diagonal() - whole.gram[0].square() / whole.gram[0, 0]
    spread[0] = 0  # the constant is free
    pairs = [_scaled(whole - held_out, held_out) for held_out in folds]
    best = torch.full((len(sizes), len(folds)), math.inf, dtype=torch.float64)
    for ridge in sorted(RIDGES, reverse=True):
        now = torch.stack([_held_out_errors(*pair, ridge * spread, sizes) for pair in pairs], 1)
        better = now.sum(1) < best.sum(1)
        if not better.any():
            break
        best = torch.where(better[:, None], now, best)
    return list(best)


def _scaled(fit: _Products, held_out: _Products) -> tuple[Tensor, _Products, _Products]:
    """Both in features of length 1 in the rows to fit, and the scale."""
    size = fit.gram.diagonal()
    scale = torch.where(size > 0, size.rsqrt(), 0.0)  # what never occurs in the rows to fit counts for nothing
    table = torch.outer(scale, scale)
    one, other = (_Products(p.gram * table, p.cross * scale[:, None], p.energy) for p in (fit, held_out))
    return scale, one, other


def _held_out_errors(
    scale: Tensor, fit: _Products, held_out: _Products, penalty: Tensor, sizes: Sequence[int]
) -> Tensor:
    """Squared error on the held-out rows of each regression, ``(regressions,)``."""
    penalised = fit.gram.diagonal_scatter(fit.gram.diagonal() + penalty * scale.square() + NOISE)
    errors = []
    for solution in _solutions(penalised, fit.cross, sizes):
        n = len(solution)
        fitted = (solution * (held_out.gram[:n, :n] @ solution)).sum() - 2 * (solution * held_out.cross[:n]).sum()
        errors.append(held_out.energy + fitted)
    return torch.stack(errors)


def _solutions(matrix: Tensor, right: Tensor, sizes: Sequence[int]) -> Iterator[Tensor]:
    """Solutions of the systems of the first so many equations: one Cholesky factor holds those of all of them."""
    lower, failed = torch.linalg.cholesky_ex(matrix)
    for n in sizes:
        if failed:  # products of float32 rows that nearly repeat each other
            yield torch.linalg.solve(matrix[:n, :n], right[:n])
        else:
            yield torch.cholesky_solve(right[:n], lower[:n, :n])


def _incoming(layer: HiddenLayer) -> dict[str, Tensor]:
    """The host's weights between the producers' inputs and its hidden units, named as those of a bed."""
    values: dict[str, Tensor] = {}
    for k, producer in enumerate(layer.producers):
        for name, value in (("w", producer.weight), ("b", producer.bias)):
            if isinstance(value, Tensor):
                values[f"{name}_in{k}"] = value.detach()
    return values


def _directions(values: dict[str, Tensor], most: int, generator: torch.Generator) -> Iterator[dict[str, Tensor]]:
    """Directions of the incoming weights, the same for every unit: the axes, or random ones if there are too many.

    A unit depends on its own weights alone, so one derivative serves all units at once.
    """
    sizes = {name: value[0].numel() for name, value in values.items()}
    total = sum(sizes.values())
    table = torch.eye(total) if total <= most else torch.randn(max(0, most), total, generator=generator)
    for row in table:
        parts = dict(zip(sizes, row.split([*sizes.values()]), strict=True))
        yield {
            name: parts[name].to(value.device, value.dtype).view(1, *value.shape[1:]).expand_as(value).contiguous()
            for name, value in values.items()
        }


def _patches(site: Site, x: Tensor) -> Tensor:
    """What a layer's weights are multiplied with, one row an output position: a convolution's patches."""
    if not site.kernel:
        return x.reshape(-1, x.shape[-1])
    channels = x.shape[-1 - site.spatial]
    size = channels * math.prod(site.kernel)
    pick = torch.eye(size, device=x.device, dtype=x.dtype).view(size, channels, *site.kernel)
    return site.to_columns(site.project(x, pick)).reshape(-1, size)
