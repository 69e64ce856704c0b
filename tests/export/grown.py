"""Models of every common kind that grew by training, and a batch for each."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.architectures import ARCHITECTURES, images
from lightning_morpho import (
    BlueprintConfig,
    LayersConfig,
    LifecycleConfig,
    MorphoConfig,
    OptimizerLink,
    WarmupConfig,
    confirm_pairs_,
    hybrid_layers,
    morph_,
    register_module_blueprint,
    unmorph_,
)

register_module_blueprint(
    "own_module",
    lambda width, _: nn.Sequential(nn.Linear(width, 4), nn.LayerNorm(4), nn.Tanh(), nn.Linear(4, width)),
    source="chunk",
)
LIFECYCLE = {"active_ticks": 0, "embargo_ticks": 0}


def config(kind: str, **options: Any) -> MorphoConfig:
    return MorphoConfig(
        blueprint=BlueprintConfig(kind=kind, hidden=4),
        layers=LayersConfig(num_seeds=options.pop("seeds", 2), beds=2),
        warmup=WarmupConfig(steps=0, min_steps=0),
        lifecycle=LifecycleConfig(**LIFECYCLE, **options),
    )


def architecture(name: str) -> tuple[nn.Module, Tensor]:
    """A net as it is before growth, and a batch; ``adapter`` is a transformer that is frozen."""
    torch.manual_seed(0)
    net = ARCHITECTURES["gpt" if name == "adapter" else name]().net
    net.requires_grad_(name != "adapter")
    x = images(6, 0).tensors[0]
    return net, x.flatten(1)[:, :4] if name == "gan" else x


def grow_(model: nn.Module, x: Tensor, settings: MorphoConfig, steps: int = 3) -> None:
    """Two rounds: germinate everywhere, train, keep one chunk and let the other live on; host and seeds learn."""
    morph_(model, settings)
    confirm_pairs_(model, x)
    optimizer = torch.optim.Adam([p for p in model.parameters()], lr=1e-2)
    link = OptimizerLink(hybrid_layers(model), [optimizer])
    target = torch.randn(model(x).shape, generator=torch.Generator().manual_seed(1)).to(x.dtype)
    model.train()
    for _ in range(2):
        for layer in hybrid_layers(model).values():
            if layer.morpho.free_beds:
                layer.request_germination([c for c in range(layer.num_seeds) if layer.seed(c).stage.name == "DORMANT"])
        for _ in range(steps):
            optimizer.zero_grad()
            (model(x) - target).square().mean().backward()
            optimizer.step()
        for layer in hybrid_layers(model).values():
            layer.morpho.advance()
            if layer.seed(0).stage.name == "ACTIVE":
                layer.morpho.keep([0], reason="test")
            layer.morpho.advance()
    link.close()
    model.eval()


def host_alone(model: nn.Module, x: Tensor) -> Tensor:
    """What the host gives without its seeds."""
    host = copy.deepcopy(model)
    unmorph_(host, discard_live=True)
    return host(x)


def grown(name: str, kind: str, dtype: torch.dtype = torch.float32, **options: Any) -> tuple[nn.Module, Tensor]:
    """A net that grew."""
    model, x = architecture(name)
    model, x = model.to(dtype), x.to(dtype)
    one_channel = {"seeds": 1} if name == "unet" else {}  # its last layer has a single channel
    grow_(model, x, config(kind, **one_channel, **options))
    return model, x
