"""What the benchmark of several processes looks at: equal weights, seconds of a step, bytes that growth sends."""

from __future__ import annotations

import hashlib
import statistics
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from lightning_morpho import MorphoCallback, optim
from lightning_morpho.integrations import reshard_


def whole(parameter: Tensor) -> Tensor:
    """The full tensor, of shards too; every rank must ask."""
    value = parameter.detach()
    return value.full_tensor() if isinstance(value, DTensor) else value


def digest(model: nn.Module) -> str:
    """One string for all weights, bit for bit."""
    reshard_(model)
    hashed = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters(), key=lambda item: item[0].replace("_orig_mod.", "")):
        hashed.update(name.replace("_orig_mod.", "").encode())
        hashed.update(whole(parameter).float().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return hashed.hexdigest()


class Equal(L.Callback):
    """Fails the run if the ranks' weights differ after a batch that had a tick."""

    def __init__(self, growth: MorphoCallback, save_at: int | None = None, path: Path | None = None) -> None:
        self.growth, self.save_at, self.path = growth, save_at, path
        self.ticks = 0
        self.digests: dict[int, str] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert self.growth.engine is not None
        self.ticks = self.growth.engine.ticks

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        assert self.growth.engine is not None
        if self.growth.engine.ticks == self.ticks:
            return
        self.ticks = self.growth.engine.ticks
        own = digest(pl_module)
        everyone: list[Any] = [None] * trainer.world_size
        dist.all_gather_object(everyone, own)
        if set(everyone) != {own}:
            raise RuntimeError(f"The ranks' weights differ after tick {self.ticks}: {everyone}.")
        self.digests[self.ticks] = own
        if self.ticks == self.save_at and self.path is not None:
            trainer.save_checkpoint(self.path)


class Clock(L.Callback):
    """Seconds of each training step, the device's work and all callbacks between ``start`` and this one included."""

    def __init__(self, skip: int) -> None:
        self.skip = skip
        self.times: list[float] = []
        self.start = Start()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        synchronize()
        self.times.append(time.perf_counter() - self.start.began)

    @property
    def median(self) -> float:
        return statistics.median(self.times[self.skip :])

    def above_median(self, step: int) -> float:
        """Seconds by which an optimizer step took longer than the median."""
        return self.times[step - 1] - self.median


class Start(L.Callback):
    """Begins the time of a step; it stands first among the callbacks."""

    began = 0.0

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        synchronize()
        self.began = time.perf_counter()


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


class CountedReduce:
    """Counts the bytes that growth itself reduces over the ranks: what DDP's reducer and Lightning send is theirs."""

    def __init__(self) -> None:
        self.bytes = 0

    def __enter__(self) -> CountedReduce:
        self._original = optim.dist

        class Counting:
            def __getattr__(_, name: str) -> Any:  # noqa: N805
                return self._counted if name == "all_reduce" else getattr(self._original, name)

        optim.dist = Counting()  # type: ignore[assignment]
        return self

    def _counted(self, tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        self.bytes += tensor.numel() * tensor.element_size()
        return self._original.all_reduce(tensor, *args, **kwargs)

    def __exit__(self, *_: object) -> None:
        optim.dist = self._original  # type: ignore[assignment]
