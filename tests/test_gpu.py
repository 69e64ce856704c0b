"""Growth on a CUDA device; skipped without one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.fsdp import FSDPModule, fully_shard

from hosts import Host, assert_equal, conv_net, events, linear_net, loaders, make_trainer, quick
from lightning_morpho import (
    BlueprintConfig,
    LayersConfig,
    LifecycleConfig,
    MorphoCallback,
    Never,
    Periodic,
    hybrid_layers,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def train(root: Path, module: L.LightningModule, *callbacks: L.Callback, **options: Any) -> L.Trainer:
    trainer = make_trainer(root, *callbacks, **({"accelerator": "gpu", "devices": 1} | options))
    trainer.fit(module, **loaders())
    return trainer


@pytest.mark.parametrize("precision", ["32-true", "16-mixed", "bf16-mixed", "bf16-true", "64-true"])
@pytest.mark.parametrize("kind", ["neurons", "mlp"])
@pytest.mark.parametrize("make_net", [linear_net, conv_net])
def test_growth_works_in_every_precision(precision: Any, kind: str, make_net: Any, tmp_path: Path) -> None:
    class Cast(Host):
        def loss(self, batch: Any) -> torch.Tensor:
            x, y = batch
            dtype = next(self.net.parameters()).dtype
            return torch.nn.functional.cross_entropy(self.net(x.to(dtype)).float(), y)

    L.seed_everything(0)
    module = Cast(make_net())
    train(tmp_path, module, quick(blueprint=BlueprintConfig(kind=kind)), precision=precision, max_epochs=6)
    judged = [e for e in events(tmp_path) if e["from"] == "ACTIVE"]
    assert judged and not any(e["reason"].startswith("unjudged") for e in judged)
    assert all(p.isfinite().all() for p in module.parameters())


def test_dormant_training_is_bit_equal_on_the_device(tmp_path: Path) -> None:
    states = []
    for callbacks in ([], [MorphoCallback(tamiyo=Never())]):
        L.seed_everything(0)
        module = Host(linear_net())
        train(tmp_path, module, *callbacks)
        states.append({k: v.cpu() for k, v in module.state_dict().items() if ".morpho." not in k})
    assert_equal(*states)


def test_fused_adamw_trains_newborns(tmp_path: Path) -> None:
    class Fused(Host):
        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters(), lr=1e-2, fused=True)

    L.seed_everything(0)
    module = Fused(linear_net())
    train(tmp_path, module, quick(), max_epochs=3)
    assert all(layer.morpho.beds[0].w_out.any() for layer in hybrid_layers(module).values())


class Sharded(Host):
    def configure_model(self) -> None:
        if not isinstance(self.net, FSDPModule):
            fully_shard(self.net, mesh=self.device_mesh["data_parallel"])


def test_one_sharded_process_learns_what_a_plain_one_does(tmp_path: Path) -> None:
    grown = []
    for kind, options in ((Host, {}), (Sharded, {"strategy": ModelParallelStrategy(1, 1)})):
        L.seed_everything(0)
        module = kind(linear_net())
        train(tmp_path / kind.__name__, module, quick(), max_epochs=4, **options)
        grown.append([(e["tick"], e["layer"], e["to"]) for e in events(tmp_path / kind.__name__)])
    assert grown[0] and grown[0] == grown[1]


def deep_net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 6), nn.GELU(), nn.Linear(6, 3))


class Whole(nn.Module):
    """Compiled in one piece; an ``nn.Sequential`` by itself is compiled layer by layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = deep_net()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


@pytest.mark.parametrize("table", ["phase1", "full"])
@pytest.mark.parametrize("make_net", [deep_net, Whole])
@pytest.mark.parametrize("kind", ["neurons", "mlp", "span"])
def test_a_host_compiled_into_cuda_graphs_grows_as_an_eager_one(
    kind: str, make_net: Any, table: str, tmp_path: Path
) -> None:
    """``mode="reduce-overhead"`` replays captured graphs: what they don't see, or see as it was, is trained wrong."""
    lifecycle = LifecycleConfig(
        kind=table,
        active_ticks=1,
        embargo_ticks=1,
        alpha_step=0.5,
        incubation="boosting" if table == "full" else "none",
    )
    grown = []
    for compiled in (False, True):
        torch._dynamo.reset()
        L.seed_everything(0)
        module = Host(make_net())
        if compiled:
            module.net.compile(mode="reduce-overhead", fullgraph=True)
        root = tmp_path / str(compiled)
        callback = quick(
            blueprint=BlueprintConfig(kind=kind),
            tamiyo=Periodic(every=1),
            layers=LayersConfig(beds=2),
            lifecycle=lifecycle,
        )
        train(root, module, callback, max_epochs=8)
        weights = {n.replace("_orig_mod.", ""): p.detach().cpu() for n, p in module.named_parameters()}
        grown.append(([(e["tick"], e["layer"], e["to"]) for e in events(root)], weights))
    (moves, weights), (compiled_moves, compiled_weights) = grown
    assert moves and moves == compiled_moves
    for name, value in weights.items():
        # float32: fused kernels round in another order, over 80 Adam steps
        assert torch.allclose(value, compiled_weights[name], atol=1e-4), name
