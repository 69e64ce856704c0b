"""Base against chunked implementation of the same model, on the same batches."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightning_morpho.layers import HybridKasminaLayer
from lightning_morpho.wording import memory


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Latency of one implementation.

    Attributes:
        p50: Median, in seconds.
        p90: 90th percentile, in seconds.
        p99: 99th percentile, in seconds.
        peak_memory: Most memory allocated on the GPU during a call, in bytes; None on other devices.
    """

    p50: float
    p90: float
    p99: float
    peak_memory: int | None

    @classmethod
    def of(cls, seconds: list[float], peaks: list[int]) -> Timing:
        """Summary of single calls."""
        p50, p90, p99 = (float(p) for p in np.percentile(seconds, (50, 90, 99)))
        return cls(p50=p50, p90=p90, p99=p99, peak_memory=max(peaks, default=None))


@dataclass(frozen=True, kw_only=True)
class ImplementationComparison:
    """What the chunked implementation costs and changes.

    Attributes:
        base: Latency of the base implementation.
        chunked: Latency of the chunked one.
        ratio: Median of the chunked one by that of the base one; 1: no difference.
        max_difference: Largest absolute difference of an output element; 0 while all seeds are dormant.
        bed_bytes: Memory of the seeds' parameters, which both hold.
    """

    base: Timing
    chunked: Timing
    ratio: float
    max_difference: float
    bed_bytes: int

    def __str__(self) -> str:
        rows = [
            f"{name:>7}: p50 {1e3 * t.p50:.3f} ms, p90 {1e3 * t.p90:.3f} ms, p99 {1e3 * t.p99:.3f} ms"
            + ("" if t.peak_memory is None else f", peak {memory(t.peak_memory)}")
            for name, t in (("base", self.base), ("chunked", self.chunked))
        ]
        summary = f"chunked / base {self.ratio:.2f}, largest difference {self.max_difference:.3g}"
        return "\n".join([*rows, f"{summary}, beds {memory(self.bed_bytes)}"])


def compare_implementations(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    forward: Callable[[nn.Module, Any], Tensor] | None = None,
    warmup: int = 5,
    rounds: int = 10,
) -> ImplementationComparison:
    """Measure both implementations on the same batches, in turn and warmed up.

    The model is run in eval mode and without gradients; modes and implementations are put back.

    Args:
        model: A model with hybrid layers, or one such layer.
        batches: The batches, on the model's device.
        forward: Output of the model for a batch; None: ``model(batch)``.
        warmup: Unmeasured calls of each implementation, ``>= 0``.
        rounds: Times that all batches are run with each, ``>= 1``.

    Raises:
        ValueError: If the model has no hybrid layer, or there is no batch.

    Example:
        >>> from lightning_morpho import morph_
        >>> model = nn.Linear(4, 4)
        >>> report = morph_(model)
        >>> compare_implementations(model, [torch.ones(2, 4)]).max_difference
        0.0
    """
    layers = [m for m in model.modules() if isinstance(m, HybridKasminaLayer)]
    items = list(batches)
    if not layers:
        raise ValueError("`model` has no hybrid layer; swap its layers with `morph_` first.")
    if not items:
        raise ValueError("`batches` must hold at least one batch, got none.")
    if warmup < 0 or rounds < 1:
        raise ValueError(f"`warmup` must be at least 0 and `rounds` at least 1, got {warmup} and {rounds}.")
    run = forward or (lambda module, batch: module(batch))
    device = next(layers[0].parameters()).device
    seconds: dict[str, list[float]] = {"base": [], "chunked": []}
    peaks: dict[str, list[int]] = {"base": [], "chunked": []}
    largest = 0.0
    with _evaluating(model, layers), torch.no_grad():
        for number in range(warmup + rounds * len(items)):
            batch = items[number % len(items)]
            outputs = {}
            # The order alternates, so that neither always runs on the other's warm caches.
            for name in ("base", "chunked") if number % 2 else ("chunked", "base"):
                for layer in layers:
                    layer.implementation = name
                outputs[name], duration, peak = _timed(run, model, batch, device)
                if number >= warmup:
                    seconds[name].append(duration)
                    peaks[name] += [] if peak is None else [peak]
            largest = max(largest, float((outputs["chunked"] - outputs["base"]).abs().max()))
    base, chunked = (Timing.of(seconds[name], peaks[name]) for name in ("base", "chunked"))
    bed_bytes = sum(p.nbytes for layer in layers for p in layer.morpho.parameters())
    return ImplementationComparison(
        base=base, chunked=chunked, ratio=chunked.p50 / base.p50, max_difference=largest, bed_bytes=bed_bytes
    )


def _timed(
    run: Callable[[nn.Module, Any], Tensor], model: nn.Module, batch: Any, device: torch.device
) -> tuple[Tensor, float, int | None]:
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    begun = time.perf_counter()
    output = run(model, batch)
    if on_gpu:
        torch.cuda.synchronize(device)
    duration = time.perf_counter() - begun
    return output, duration, torch.cuda.max_memory_allocated(device) if on_gpu else None


@contextmanager
def _evaluating(model: nn.Module, layers: list[HybridKasminaLayer]) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    before = [layer.implementation for layer in layers]
    gradients = [(p, p.grad) for layer in layers for p in layer.morpho.parameters()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for layer, implementation in zip(layers, before, strict=True):
            layer.implementation = implementation
        for parameter, gradient in gradients:
            parameter.grad = gradient
