"""What seeds are worth: held-out loss with and without them, on the same batches, leaving no trace."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torchmetrics import Metric, MetricCollection

from lightning_morpho.evidence import paired_bounds
from lightning_morpho.isolation import isolated
from lightning_morpho.layers import HybridKasminaLayer
from lightning_morpho.layers.scaling import muting_factors, scaled
from lightning_morpho.random_state import preserved_random_state
from lightning_morpho.tamiyo import Measurement
from lightning_morpho.tamiyo.observation import Group, SeedKey

log = logging.getLogger(__name__)

Loss = Callable[[Any], Tensor]
"""A held-out loss of one batch: a scalar."""


def group_seeds(seeds: Sequence[SeedKey], layers: Mapping[str, HybridKasminaLayer], most: int) -> list[Group]:
    """Seeds to leave out together: one by one, or by bed if there would be more than ``most`` groups."""
    if len(seeds) <= most:
        return [(key,) for key in seeds]
    by_bed: dict[tuple[str, int], list[SeedKey]] = {}
    for layer, chunk in seeds:
        by_bed.setdefault((layer, int(layers[layer].morpho.state.bed[chunk])), []).append((layer, chunk))
    return [tuple(group) for group in by_bed.values()]


def affordable(groups: Sequence[Group], most: int, *, least: int = 0) -> list[Group]:
    """The first groups that can be measured, if the loss of the whole model beside them counts as one of ``most``.

    Example:
        >>> groups = [(("net.0", chunk),) for chunk in range(9)]
        >>> len(affordable(groups, 4)), len(affordable(groups, 0)), len(affordable(groups, 0, least=1))
        (3, 0, 1)
    """
    return list(groups[: max(least, most - 1)])


def measure(
    model: nn.Module,
    layers: Mapping[str, HybridKasminaLayer],
    groups: Sequence[Group],
    batches: Iterable[Any],
    loss: Loss,
    *,
    confidence: float,
    replicas: int = 1,
    probe: bool = True,
    gather: Callable[[Any], list[Any]] = lambda own: [own],
) -> list[Measurement]:
    """Leave-one-out: the rise of the held-out loss without each group of seeds, on the same batches.

    Nothing of the model, its metrics or the random state differs afterwards. All losses of a batch are computed
    from the same random state, so that a random loss is paired too.

    Args:
        model: The model, in any mode; it is evaluated under ``no_grad`` and ``eval``.
        layers: Its hybrid layers by name.
        groups: Seeds to leave out together.
        batches: Held-out batches, on the model's device.
        loss: Loss of one batch.
        confidence: Level of the lower bound.
        replicas: Most groups measured in one pass by ``torch.func.vmap``, 1: one by one. What ``vmap`` can't do,
            gives another result for, or has no memory for, is measured one by one.
        probe: Whether to find out which layers each group feeds, by their inputs on the first batch.
        gather: Joins what the ranks measured: one value a rank.
    """
    with isolated(model):
        runner = _Runner(model, layers, groups, loss, replicas, probe)
        own = [runner(batch) for batch in batches]
    parts = gather((own, {name: sorted(found) for name, found in runner.reaches.items()}))
    losses = [row for rows, _ in parts for row in rows]
    reaches = {name: frozenset().union(*(found.get(name, ()) for _, found in parts)) for name in layers}
    full = tuple(row[0][0] for row in losses)
    measurements = []
    for number, group in enumerate(groups):
        pairs = [row[number + 1] for row in losses]
        differences = tuple(without - whole for whole, without in pairs)
        bounds = paired_bounds(differences, confidence)
        measurements.append(
            Measurement(
                seeds=group,
                rise=bounds.mean,
                lower=bounds.lower,
                batches=len(differences),
                differences=differences,
                losses=full,
                confidence=confidence,
                reaches=frozenset().union(*(reaches[layer] for layer, _ in group)),
            )
        )
    return measurements


Pair = tuple[float, float]
"""Loss of the whole model and loss without a group, computed in the same way."""


class _Runner:
    """Losses of one batch after another: of the whole model, and without each group."""

    def __init__(
        self,
        model: nn.Module,
        layers: Mapping[str, HybridKasminaLayer],
        groups: Sequence[Group],
        loss: Loss,
        replicas: int,
        probe: bool,
    ) -> None:
        self.model, self.layers, self.loss = model, layers, loss
        place = {name: number for number, (name, _) in enumerate(model.named_modules())}
        # Neighbours in one pass: what lies before the first of them is computed once for all.
        some = (i for i, group in enumerate(groups) if group)  # without nobody the model is whole
        self.groups, self.order = groups, sorted(some, key=lambda i: min(place.get(n, 0) for n, _ in groups[i]))
        sharded = any(isinstance(parameter, DTensor) for parameter in model.parameters())
        self.replicas = 1 if sharded or len(self.order) < 2 else replicas
        self._factors: dict[tuple[int, ...], tuple[dict[str, Tensor], dict[str, np.ndarray]]] = {}
        self.reaches = {name: set(_chain(layer)) for name, layer in layers.items()}
        self._probe = probe
        self._first = True

    def __call__(self, batch: Any) -> list[Pair]:
        """The whole model's loss twice, then one pair for each group."""
        known = self._by_hand_first(batch) if self._first else {}
        self._first = False
        pairs: dict[int, Pair] = {}
        while self.replicas > 1 and not pairs:
            try:
                pairs = self._vectorised(batch, known)
            except torch.OutOfMemoryError:
                self.replicas //= 2
            except Exception as error:  # whatever a user's step does that vmap can't
                log.debug("credit is measured one by one: %s", error)
                self.replicas = 1
        missing = [i for i in self.order if i not in pairs and i not in known]
        losses = {i: self._value(batch, self.groups[i]) for i in missing} | known
        full = self._value(batch, (), advance=True)
        plain = {i: value.double().reshape(()) for i, value in losses.items()}
        values = torch.stack([full.double().reshape(()), *plain.values()]).tolist()
        whole = values[0]
        pairs = {i: (whole, value) for i, value in zip(plain, values[1:], strict=True)} | pairs
        return [(whole, whole), *(pairs.get(i, (whole, whole)) for i in range(len(self.groups)))]

    def _value(self, batch: Any, group: Group, *, advance: bool = False) -> Tensor:
        """Loss of a batch with some seeds muted; unless told to, the random state does not advance."""
        with contextlib.nullcontext() if advance else preserved_random_state(), _muted(self.layers, group):
            return self.loss(batch).detach()

    def _by_hand_first(self, batch: Any) -> dict[int, Tensor]:
        """Losses of the first batch without one group of each layer: a probe of what it feeds, and a reference."""
        firsts: dict[str, int] = {}
        for i in self.order:
            for name, _ in self.groups[i]:
                firsts.setdefault(name, i)
        if not self._probe:
            return {i: self._value(batch, self.groups[i]) for i in list(firsts.values())[:1] if self.replicas > 1}
        known: dict[int, Tensor] = {}
        with _fingerprints(self.layers) as whole:
            self._value(batch, ())
        for name, i in firsts.items():
            with _fingerprints(self.layers) as prints:
                known[i] = self._value(batch, self.groups[i])
            changed = {other for other, value in prints.items() if not torch.equal(value, whole[other])}
            self.reaches[name] |= changed
        return known

    def _vectorised(self, batch: Any, known: Mapping[int, Tensor]) -> dict[int, Pair]:
        """Many groups a pass: one copy of the batch, a vector of blend weights."""
        pairs: dict[int, Pair] = {}
        for start in range(0, len(self.order), self.replicas):
            part = self.order[start : start + self.replicas]
            keep, every = self._factors_of(part)

            def one(keep: dict[str, Tensor], every: dict[str, np.ndarray] = every) -> Tensor:
                with contextlib.ExitStack() as stack:
                    for name, factors in keep.items():
                        stack.enter_context(scaled(self.layers[name].morpho, factors, every[name]))
                    return self.loss(batch).detach()

            with preserved_random_state(), _inert_metrics(self.model), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # where an operation has no batching rule
                whole, *without = torch.func.vmap(one, randomness="same")(keep).double().reshape(-1).tolist()
            pairs |= {i: (whole, value) for i, value in zip(part, without, strict=True)}
        for i, value in known.items():
            _check_alike(pairs[i], float(value))
        return pairs

    def _factors_of(self, part: Sequence[int]) -> tuple[dict[str, Tensor], dict[str, np.ndarray]]:
        """0 for the seeds left out, else 1, for each layer that a pass concerns: on its device, and on the host.

        ``(groups, live beds, chunks)``.
        """
        key = tuple(part)
        if key not in self._factors:
            groups = [(), *(self.groups[i] for i in part)]
            keep, every = {}, {}
            for name in {name for group in groups for name, _ in group}:
                seeds = self.layers[name].morpho
                rows = np.stack([muting_factors(seeds, [c for n, c in group if n == name]) for group in groups])
                keep[name], every[name] = torch.from_numpy(rows).to(next(seeds.parameters()).device), rows
            self._factors[key] = keep, every
        return self._factors[key]


def _check_alike(pair: Pair, value: float) -> None:
    """Refuse a vectorised loss that differs from the same loss computed alone by more than rounding."""
    # Rounding of sums in another order, also in half precision, against what another computation would give.
    if not abs(pair[1] - value) <= 1e-2 * abs(value - pair[0]) + 1e-4 * abs(value):
        raise ValueError(f"vmap gives {pair[1]:g}, one by one it is {value:g}")


def _chain(layer: HybridKasminaLayer) -> Iterator[str]:
    """Layers that the spans of a layer can feed through links."""
    tap = layer.morpho.outlet
    while tap is not None:
        yield str(tap.consumer.name)
        tap = tap.consumer.outlet  # type: ignore[assignment]


@contextlib.contextmanager
def _muted(layers: Mapping[str, HybridKasminaLayer], group: Group) -> Iterator[None]:
    muted: dict[str, list[int]] = {}
    for layer, chunk in group:
        muted.setdefault(layer, []).append(chunk)
    try:
        for name, chunks in muted.items():
            layers[name].morpho.mute(chunks)
        yield
    finally:
        for name in muted:
            layers[name].morpho.mute(())


@contextlib.contextmanager
def _fingerprints(layers: Mapping[str, HybridKasminaLayer]) -> Iterator[dict[str, Tensor]]:
    """Sum and sum of squares of all that each layer reads: equal for equal inputs."""
    prints: dict[str, Tensor] = {}

    def note(name: str, x: Any) -> None:
        if isinstance(x, Tensor):
            wide = x.detach().double()
            here = torch.stack([wide.sum(), wide.square().sum()])
            prints[name] = prints[name] + here if name in prints else here

    handles = [
        layer.register_forward_pre_hook(lambda _, args, name=name: note(name, args[0]))
        for name, layer in layers.items()
    ]
    try:
        yield prints
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def _inert_metrics(model: nn.Module) -> Iterator[None]:
    """Let metrics take no updates: under ``vmap`` they could not, and no loss is to depend on them."""
    found = [m for m in model.modules() if isinstance(m, (Metric, MetricCollection))]
    saved: list[dict[str, Any]] = [
        {key: m.__dict__[key] for key in ("forward", "update") if key in m.__dict__} for m in found
    ]
    try:
        for metric in found:
            nothing: Any = {} if isinstance(metric, MetricCollection) else torch.zeros(())
            metric.__dict__.update(forward=lambda *_, n=nothing, **__: n, update=lambda *_, **__: None)
        yield
    finally:
        for metric, own in zip(found, saved, strict=True):
            for key in ("forward", "update"):
                del metric.__dict__[key]
            metric.__dict__.update(own)
