"""Sampling of the layers while they train: activations, gradients, time. The one source of a layer's statistics."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from lightning_morpho.layers import HybridKasminaLayer
from lightning_morpho.telemetry.metrics import (
    ChunkCorrelation,
    ChunkGradients,
    ChunkMetric,
    ChunkStatistics,
    ForwardTime,
)

Gather = Callable[[Any], list[Any]]
"""The same item of all ranks."""

_TOGETHER = 1 << 15
"""Elements of small samples that a CPU gathers before it looks: of a few thousand, it computes less than it calls."""


class LayerSampler:
    """The metrics of one layer between two ticks, on its device; no step waits for the device.

    Args:
        layer: The layer.
        device: Its device.
        activations: Whether its output can be looked at: not in a compiled model.
        gradients: Whether to look at gradients.
        detailed: Whether to measure correlations and time as well.
    """

    def __init__(
        self, layer: HybridKasminaLayer, device: torch.device, *, activations: bool, gradients: bool, detailed: bool
    ) -> None:
        self.layer = layer
        self.seeds = seeds = layer.morpho
        self.together = _TOGETHER if device.type == "cpu" else 0
        self._samples: list[Tensor] = []  # not yet in the statistics
        self.statistics = ChunkStatistics(layer.chunks).to(device) if activations else None
        self.correlation = ChunkCorrelation(layer.chunks).to(device) if activations and detailed else None
        self.clock = ForwardClock(layer, device) if activations and detailed else None
        per_chunk = seeds.blueprint.source == "chunk"
        self.gradients = ChunkGradients(layer.chunks, len(seeds.beds), per_chunk).to(device) if gradients else None

    def open(self) -> None:
        """Look at the forward passes from now on."""
        if self.statistics is not None:
            self.seeds.observe(self._look)
        if self.clock is not None:
            self.clock.open()

    def close(self) -> None:
        """Look no more."""
        self.seeds.observe(None)
        if self.clock is not None:
            self.clock.close()

    def _look(self, columns: Tensor) -> None:
        if columns.numel() < self.together:
            self._samples.append(columns.clone())  # the model may overwrite its own
            if columns.numel() * len(self._samples) >= self.together:
                self._settle()
        elif self.statistics is not None:
            self._settle()
            self.statistics.update(columns)
        if self.correlation is not None:
            self.correlation.update(columns)

    def _settle(self) -> None:
        """Put the samples that were gathered into the statistics."""
        if self.statistics is not None and self._samples:
            self.statistics.update(torch.cat([sample.reshape(-1, sample.shape[-1]) for sample in self._samples]))
            self._samples.clear()

    def take_gradients(self, held: set[int]) -> None:
        """Look at the gradients that lie in parameters now.

        Args:
            held: Identities of the parameters that the present optimizer holds.
        """
        seeds = self.seeds
        if self.gradients is None or seeds.off:
            return
        weight = self.layer._parameters.get("weight")  # not of a parametrized layer: it would be computed anew
        host = _gradient(weight) if weight is not None and id(weight) in held else None
        beds = {}
        for index in np.unique(seeds.state.bed[seeds.state.bed >= 0]).tolist():
            own = seeds.bed_at(index).parameters(recurse=False)
            found = [g for p in own if id(p) in held and (g := _gradient(p)) is not None]
            if found:
                beds[index] = found
        if host is not None or beds:
            self.gradients.update(host, beds)

    @property
    def touched(self) -> tuple[bool, bool]:
        """Whether there are samples of activations, and of gradients, since the last :meth:`collect`."""
        return (
            bool(self._samples) or (self.statistics is not None and self.statistics.update_called),
            self.gradients is not None and self.gradients.update_called,
        )

    def collect(self, activations: bool, gradients: bool) -> dict[str, Tensor]:
        """Statistics since the last call, over all ranks; every rank must ask for the same.

        Args:
            activations: Whether any rank has samples of activations.
            gradients: Whether any rank has samples of gradients.

        Returns:
            Values by name, ``(N,)`` each, on the CPU.
        """
        found: dict[str, Tensor] = {}
        self._touch(activations, gradients)  # so that a rank without samples of its own takes part, too
        if activations:
            self._settle()
            for metric in (self.statistics, self.correlation):
                if metric is not None:
                    found |= metric.compute()
                    metric.reset()
        if gradients and self.gradients is not None:
            found |= self._by_seed(self.gradients.compute())
            self.gradients.reset()
        return {name: values.reshape(-1).cpu() for name, values in found.items()}

    def _touch(self, activations: bool, gradients: bool) -> None:
        """Count a sample of nothing."""
        for metric in (self.statistics, self.correlation):
            if activations and metric is not None:
                metric.update(torch.empty(0, self.layer.chunks.num_features, device=metric.device))
        if gradients and self.gradients is not None:
            self.gradients.update(None, {})

    @property
    def _metrics(self) -> dict[str, ChunkMetric]:
        own = {"statistics": self.statistics, "correlation": self.correlation, "gradients": self.gradients}
        return {name: metric for name, metric in own.items() if metric is not None}

    def state_dict(self) -> dict[str, Any]:
        """This rank's samples since the last tick, and the statistics as of then; waits for the device."""
        pending = {name: metric for name, metric in self._metrics.items() if metric.update_called}
        return {
            "pending": {
                name: {key: _copy(value) for key, value in metric.metric_state.items() if isinstance(value, Tensor)}
                for name, metric in pending.items()
            },
            "samples": [_copy(sample) for sample in self._samples],
            "health": {name: _copy(values) for name, values in self.seeds.health.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave; what this run does not measure is left out."""
        self.seeds.health = dict(state["health"])
        pending = state["pending"]
        self._touch("statistics" in pending, "gradients" in pending)
        for name, metric in self._metrics.items():
            for key, value in pending.get(name, {}).items():
                setattr(metric, key, _copy(value).to(metric.device))
        if self.statistics is not None:  # checkpoints of earlier versions hold no samples
            self._samples = [_copy(sample).to(self.statistics.device) for sample in state.get("samples", ())]

    def _by_seed(self, computed: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Give each seed the gradient of its bed."""
        bed = torch.from_numpy(self.seeds.state.bed.astype(np.int64))
        # torchmetrics makes scalars of single values.
        host = computed["host_gradient"].cpu().reshape(len(bed))
        beds = computed["bed_gradient"].cpu().reshape(-1, len(bed))
        own = torch.full_like(host, torch.nan)
        chunks = (bed >= 0).nonzero().squeeze(1)
        own[chunks] = beds[bed[chunks], chunks]
        return {"host_gradient": host, "seed_gradient": own, "gradient_ratio": own / host}


def _copy(values: Tensor) -> Tensor:
    """A copy on the CPU that later samples leave alone."""
    return values.detach().clone().cpu()


def _gradient(parameter: nn.Parameter) -> Tensor | None:
    """Gradient of a parameter, whole if it is sharded."""
    gradient = parameter.grad
    return gradient.full_tensor() if isinstance(gradient, DTensor) else gradient


class ForwardClock:
    """Measures the forward calls of a layer, through hooks that are there only while it is open.

    Args:
        layer: The layer.
        device: Its device. On CUDA events are recorded, which are read at the tick.
    """

    def __init__(self, layer: nn.Module, device: torch.device) -> None:
        self.layer = layer
        self.cuda = device.type == "cuda"
        self.metric = ForwardTime().to(device)
        self._spans: list[tuple[Any, Any]] = []
        self._started: list[Any] = []
        self._handles: list[Any] = []

    def open(self) -> None:
        """Measure from now on."""
        if not self._handles:
            self._handles = [
                self.layer.register_forward_pre_hook(lambda *_: self._started.append(self._now()), prepend=True),
                self.layer.register_forward_hook(lambda *_: self._stop()),
            ]

    def close(self) -> None:
        """Measure no more."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._started.clear()

    def _now(self) -> Any:
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _stop(self) -> None:
        if self._started:
            self._spans.append((self._started.pop(), self._now()))

    def collect(self) -> float:
        """Mean milliseconds of a call since the last time, over all ranks; NaN without any."""
        if self.cuda and self._spans:
            self._spans[-1][1].synchronize()
        elapsed = sum(a.elapsed_time(b) if self.cuda else 1e3 * (b - a) for a, b in self._spans)
        self.metric.update(elapsed, len(self._spans))
        self._spans.clear()
        value = float(self.metric.compute())
        self.metric.reset()
        return value


class Sampler:
    """Samples all layers once in a while.

    Args:
        layers: The hybrid layers by name.
        every_n_steps: Training steps between two samples, 0 for none.
        device: Device of the layers.
        activations: Whether outputs can be looked at: not in a compiled model.
        gradients: Whether to look at gradients.
        detailed: Whether to measure correlations and time as well.

    Attributes:
        forward_ms: Mean milliseconds of a forward call by layer, as of the last :meth:`collect`.
    """

    def __init__(
        self,
        layers: Mapping[str, HybridKasminaLayer],
        every_n_steps: int,
        device: torch.device,
        *,
        activations: bool = True,
        gradients: bool = True,
        detailed: bool = False,
    ) -> None:
        self.every_n_steps = every_n_steps
        options = {"activations": activations, "gradients": gradients, "detailed": detailed}
        wanted = bool(every_n_steps) and (activations or gradients)
        self.layers = {name: LayerSampler(layer, device, **options) for name, layer in layers.items() if wanted}
        self.forward_ms: dict[str, float] = {}
        self._open = False
        self._gradients_due = False
        self._gradients_taken = False

    def due(self, batch: int) -> bool:
        """Whether this training batch is one that is sampled."""
        return self.every_n_steps > 0 and batch % self.every_n_steps == 0

    def open(self, batch: int) -> None:
        """Sample this training batch, and the optimizer's next step, if it is one that is to be sampled."""
        if self.layers and self.due(batch):
            self._open = self._gradients_due = True
            for layer in self.layers.values():
                layer.open()

    def close(self) -> None:
        """The batch is over."""
        if self._gradients_taken:
            self._gradients_due = self._gradients_taken = False
        if self._open:
            self._open = False
            for layer in self.layers.values():
                layer.close()

    def take_gradients(self, optimizer: Optimizer) -> None:
        """Sample the gradients of an optimizer's parameters, right before its step, if it is time to."""
        if not self._gradients_due:
            return
        self._gradients_taken = True
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        for layer in self.layers.values():
            layer.take_gradients(held)

    def collect(self, gather: Gather = lambda item: [item]) -> None:
        """Put the statistics since the last time into ``layer.morpho.health``; on every rank, at a tick.

        What was sampled on no rank keeps its last value there.

        Args:
            gather: Gives the same item of all ranks.
        """
        ranks = gather({name: layer.touched for name, layer in self.layers.items()})
        for name, layer in self.layers.items():
            activations, gradients = (any(rank[name][kind] for rank in ranks) for kind in (0, 1))
            found = layer.collect(activations, gradients)
            if found:
                layer.seeds.health = layer.seeds.health | found
            if activations and layer.clock is not None:
                self.forward_ms[name] = layer.clock.collect()

    def state_dict(self) -> dict[str, Any]:
        """This rank's samples since the last tick and the statistics as of then, as tensors. Times are not saved."""
        layers = {name: layer.state_dict() for name, layer in self.layers.items()}
        return {"gradients_due": self._gradients_due, "layers": layers}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave."""
        self._gradients_due = state["gradients_due"]
        for name, layer in self.layers.items():
            if name in state["layers"]:
                layer.load_state_dict(state["layers"][name])
