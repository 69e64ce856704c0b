"""What a run of the growth experiments costs, and what it has for it on the way."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from growth_tasks import Split, Task

LOOKS = 20  # at validation and test points, and decision ticks, in a run


class Recorder(L.Callback):
    """What a run costs, and what it has for it, at 20 moments.

    Seconds are processor time on a CPU, which other processes do not lengthen, and time on the wall on a GPU. FLOPs are
    three times those of a training step's forward pass, counted by torch whenever the size has changed.
    Memory is that of parameters, gradients, Adam's two moments, and of what the forward pass keeps for the backward
    one, at the largest moment; dormant parameters count once.

    Args:
        net: The net in training.
        task: What it is trained on; its samples lie on the training's device.
        steps: Training steps.

    Attributes:
        curve: Training FLOPs in units of 1e9, seconds and test points, at every other moment.
        best: Validation and test points where the validation points are best.
        jumps: By how much the validation loss rises in ticks that grow or cut the net.
    """

    def __init__(self, net: nn.Module, task: Task, steps: int) -> None:
        self.net, self.task, self.every = net, task, max(1, steps // LOOKS)
        self.curve: list[list[float]] = []
        self.best = [-math.inf, -math.inf]
        self._looks = 0
        self.jumps: dict[str, list[float]] = {"growth": [], "cut": []}
        self.flops = self.memory = self.trained = self.seconds = 0.0
        self.live = -1
        self.clock = time.perf_counter if task.splits[0][0].is_cuda else time.process_time
        self._step_flops = self._began = 0.0

    def live_parameters(self) -> int:
        """Parameters in training beside the host's."""
        return 0

    @contextmanager
    def step(self) -> Iterator[None]:
        """Around the forward pass of a training step."""
        live = self.live_parameters()
        if live != self.live:
            self.live = live
            with self._counted():
                yield
        else:
            yield
        self.flops += self._step_flops
        self.trained += live

    @contextmanager
    def _counted(self) -> Iterator[None]:
        kept: dict[int, int] = {}

        def note(tensor: Tensor) -> Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with ExitStack() as stack:
            counter = stack.enter_context(FlopCounterMode(display=False))
            stack.enter_context(saved_tensors_hooks(note, lambda tensor: tensor))
            yield
        self._step_flops = 3 * counter.get_total_flops()
        parameters = {p.untyped_storage().data_ptr(): p for p in self.net.parameters()}
        copies = [p.untyped_storage().nbytes() * (4 if p.requires_grad else 1) for p in parameters.values()]
        self.memory = max(self.memory, sum(copies) + sum(n for at, n in kept.items() if at not in parameters))

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._began = self.clock()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        if trainer.global_step % self.every == 0:
            self.seconds += self.clock() - self._began
            self.look()
            self._began = self.clock()

    def look(self) -> None:
        """Note validation and test points; their time does not count."""
        out, y = outputs(self.net, self.task.splits[1])
        test = self.task.measure.points(*outputs(self.net, self.task.splits[2]))
        points = [round(self.task.measure.points(out, y), 2), round(test, 2)]
        self.best = max(self.best, points, key=lambda found: found[0])
        self._looks += 1
        if self._looks % 2 == 0:
            self.curve.append([*(float(f"{spent:.4g}") for spent in (self.flops / 1e9, self.seconds)), points[1]])

    def pause(self, seconds: float) -> None:
        """Leave out time that was spent on looking."""
        self._began += seconds

    def validation_loss(self) -> float:
        """On all validation samples."""
        return float(self.task.measure.loss(*outputs(self.net, self.task.splits[1])))


@torch.no_grad()
def outputs(net: nn.Module, data: Split) -> tuple[Tensor, Tensor]:
    """What a net says of all samples, in evaluation mode, and the targets."""
    training = net.training
    net.eval()
    out = torch.cat([net(x) for x in data[0].split(4096)])
    net.train(training)
    return out, data[1]
