"""Linked spans in real Lightning runs: confirmed, grown, resumed, spread over processes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

sys.path.insert(0, str(Path(__file__).parent))
from torch import nn  # noqa: E402

from families import Skip  # noqa: E402
from hosts import Host, Record, assert_equal, loaders, make_trainer, run_script  # noqa: E402
from lightning_morpho import (  # noqa: E402
    BlueprintConfig,
    Never,
    Scripted,
    Uniform,
    WarmupConfig,
    export,
    hybrid_layers,
)
from lightning_morpho.telemetry import EVENTS_FILE, read_events  # noqa: E402
from runs import callback, chain  # noqa: E402


def fit(root: Path, module: L.LightningModule, *callbacks: L.Callback, ckpt: Any = None, **options: Any) -> L.Trainer:
    L.seed_everything(0)
    trainer = make_trainer(root, *callbacks, **options)
    trainer.fit(module, **loaders(), ckpt_path=ckpt)
    return trainer


def norm_chain() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4), nn.ReLU(), *list(chain())[2:])


def test_default_round_grows_every_consecutive_pair_at_once_and_the_report_says_how(tmp_path):
    grow = callback(blueprint=BlueprintConfig(), tamiyo=Uniform(at=0.0))
    module = Host(norm_chain())
    fit(tmp_path, module, grow, max_epochs=2)
    layers = hybrid_layers(module)
    assert {name: layer.morpho.events for name, layer in layers.items()} == {"net.0": 0, "net.3": 1, "net.5": 1}
    assert not layers["net.5"].morpho.links.between(0, 0).free
    assert "span, confirmed: `net.0` -> net.1 -> net.2 -> `net.3`" in str(grow.report)
    assert "becomes wider with `net.3`" in str(grow.report)
    module.eval()
    x = torch.randn(5, 8)
    assert torch.allclose(export(module).net(x), module.net(x), atol=1e-6)


def test_dormant_spans_change_no_bit_of_training(tmp_path):
    bare, watched = Record(), Record()
    torch.manual_seed(1)
    a, b = Host(norm_chain()), Host(norm_chain())
    b.load_state_dict(a.state_dict())
    fit(tmp_path, a, bare, max_epochs=2)
    fit(tmp_path, b, callback(tamiyo=Never()), watched, max_epochs=2)
    own = {name: value for name, value in b.state_dict().items() if ".morpho." not in name}
    assert_equal(dict(a.state_dict()), own)
    assert_equal(bare.trace, watched.trace)


class Misleading(nn.Module):
    """What a trace takes for a pair and a training step shows to be none."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 6), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.a(x)
        torch.jit.is_scripting() or self.train_only(h)
        return self.b(h)

    def train_only(self, h: torch.Tensor) -> None:
        if type(h) is torch.Tensor and self.training:
            h.mul_(h.detach().sigmoid())


def test_refused_pair_trains_on_bit_for_bit_and_is_reported(tmp_path, recwarn):
    torch.manual_seed(1)
    a, b = Host(Misleading()), Host(Misleading())
    b.load_state_dict(a.state_dict())
    fit(tmp_path, a, max_epochs=2)
    grow = callback(tamiyo=Uniform(at=0.0))
    fit(tmp_path, b, grow, max_epochs=2)
    assert any("the pair proposed for it is refused" in str(w.message) for w in recwarn)
    assert "refused (" in str(grow.report)
    own = {name: value for name, value in b.state_dict().items() if ".morpho." not in name}
    assert_equal(dict(a.state_dict()), own)


def test_layers_without_a_pair_grow_neurons(tmp_path):
    grow = callback(tamiyo=Uniform(at=0.0))
    module = Host(nn.Sequential(nn.Linear(8, 6), nn.LayerNorm(6), Skip(), nn.Linear(6, 3)))
    fit(tmp_path, module, grow, max_epochs=1)
    kinds = {name: layer.morpho.kind for name, layer in hybrid_layers(module).items()}
    assert set(kinds.values()) == {"neurons"} and all(la.morpho.events for la in hybrid_layers(module).values())
    assert "neurons, no pair: `net.1` (LayerNorm) is not known" in str(grow.report)


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_run_that_is_killed_and_resumed_with_linked_spans_is_bit_equal(stop, tmp_path):
    torch.manual_seed(1)
    whole, again = Host(norm_chain()), Host(norm_chain())
    again.load_state_dict(whole.state_dict())

    def run(module: Host, root: Path, epochs: int, ckpt: Path | None = None) -> None:
        script = [{"tick": 1, "layer": "net.5"}, {"tick": 2, "layer": "net.3"}]
        keep = ModelCheckpoint(root, save_last=True)
        fit(
            root,
            module,
            callback(tamiyo=Scripted(events=script)),
            keep,
            ckpt=ckpt,
            max_epochs=epochs,
            enable_checkpointing=True,
        )

    run(whole, tmp_path / "whole", 5)
    run(again, tmp_path / "part", stop)
    resumed = Host(norm_chain())
    run(resumed, tmp_path / "rest", 5, tmp_path / "part" / "last.ckpt")
    assert_equal(dict(whole.state_dict()), dict(resumed.state_dict()))


class Decayed(Host):
    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 0.4**epoch)
        return [optimizer], [schedule]


def refusals(root: Path) -> list[dict[str, Any]]:
    return [entry for entry in read_events(root / EVENTS_FILE) if entry["event"] == "refused"]


def test_growth_is_refused_once_the_schedule_has_decayed_and_the_log_says_why(tmp_path):
    module = Decayed(chain())
    fit(tmp_path, module, callback(tamiyo=Uniform(at=0.6)), max_epochs=4)
    assert all(layer.morpho.dormant for layer in hybrid_layers(module).values())
    said = refusals(tmp_path)
    assert [entry["layer"] for entry in said] == ["net.2", "net.4"], "once a layer, not at every tick"
    assert "decayed to" in said[0]["reason"] and "warmup.min_rate" in said[0]["reason"]


def test_forced_growth_comes_at_any_learning_rate(tmp_path):
    for name, options in {
        "script": {"tamiyo": Scripted(events=[{"tick": 3, "layer": "net.2", "force": True}])},
        "setting": {"tamiyo": Uniform(at=0.6), "warmup": WarmupConfig(steps=5, min_steps=5, min_rate=0.0)},
    }.items():
        module = Decayed(chain())
        fit(tmp_path / name, module, callback(**options), max_epochs=4)
        assert not hybrid_layers(module)["net.2"].morpho.dormant
        assert refusals(tmp_path / name) == []


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["plain", "static_graph", "accumulation", "fsdp2"])
def test_replicas_that_grow_linked_spans_at_different_steps_stay_bit_equal(variant, tmp_path):
    run_script(Path(__file__).with_name("runs.py"), str(tmp_path), variant)
    first, second = (torch.load(tmp_path / f"{variant}-{rank}.pt") for rank in range(2))
    assert first["events"] == {"net.0": 0, "net.2": 1, "net.4": 1}
    assert_equal(first["state"], second["state"])
    assert any("links" in name and value.abs().sum() > 0 for name, value in first["state"].items())
