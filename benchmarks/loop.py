"""One seed after another, as the original design did it: what the engine is compared with."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_morpho.chunks import ChunkManager


class LoopLayer(nn.Module):
    """A base layer with one small network a chunk, applied in a loop.

    Args:
        base: The base layer.
        seeds: Chunks.
        telemetry: Whether each seed's variance is read by the host at each pass, as the original did.
    """

    def __init__(self, base: nn.Linear, seeds: int, telemetry: bool = True) -> None:
        super().__init__()
        self.base, self.telemetry = base, telemetry
        self.chunks = ChunkManager(base.out_features, seeds)
        like = {"device": base.weight.device, "dtype": base.weight.dtype}
        widths = [stop - start for start, stop in map(self.chunks.bounds, range(seeds))]
        self.seeds = nn.ModuleList(
            nn.Sequential(nn.Linear(w, 2 * w, **like), nn.ReLU(), nn.Linear(2 * w, w, **like)) for w in widths
        )
        self.health = [0.0] * seeds

    def forward(self, x: Tensor) -> Tensor:
        outputs = []
        for index, (chunk, seed) in enumerate(zip(self.chunks.split_list(self.base(x)), self.seeds, strict=True)):
            if self.telemetry:
                self.health[index] = float(chunk.detach().var(correction=0))
            outputs.append(chunk + seed(chunk))
        return torch.cat(outputs, dim=-1)
