"""Models of every common kind that grew by training, and a batch for each."""

from __future__ import annotations

import copy
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from benchmarks.architectures import ARCHITECTURES, data, images
from lightning_morpho import (
    BlueprintConfig,
    LayersConfig,
    LifecycleConfig,
    MorphoCallback,
    MorphoConfig,
    OptimizerLink,
    TelemetryConfig,
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
    """A net as it is before growth, and a batch."""
    torch.manual_seed(0)
    net = ARCHITECTURES[name]().net
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


def adapted(kind: str) -> tuple[nn.Module, Tensor]:
    """A frozen transformer that ``preset="adapt_pretrained"`` adapted in a Trainer, by seeds of this kind."""
    torch.manual_seed(0)
    module = ARCHITECTURES["gpt"]()
    callback = MorphoCallback(
        preset="adapt_pretrained",
        blueprint=BlueprintConfig(kind=kind, hidden=4),
        warmup=WarmupConfig(steps=0, min_steps=0),
        telemetry=TelemetryConfig(log=False, events=False, table=False),
    )
    quiet = {name: False for name in ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")}
    trainer = L.Trainer(max_epochs=5, accelerator="cpu", callbacks=[callback], **quiet)
    trainer.fit(module, **data())
    return module.net.eval(), images(6, 0).tensors[0]


def grown(name: str, kind: str, dtype: torch.dtype = torch.float32, **options: Any) -> tuple[nn.Module, Tensor]:
    """A net that grew; ``adapter``: a trained host that was adapted (float32 alone)."""
    if name == "adapter":
        return adapted(kind)
    model, x = architecture(name)
    model, x = model.to(dtype), x.to(dtype)
    one_channel = {"seeds": 1} if name == "unet" else {}  # its last layer has a single channel
    grow_(model, x, config(kind, **one_channel, **options))
    return model, x
