"""Averaging callbacks copy the model before it grows; the copy must follow, in either order of callbacks."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch import callbacks
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint, StochasticWeightAveraging
from torch import Tensor

from hosts import Host, assert_equal, events, linear_net, loaders, make_trainer, quick
from lightning_morpho import hybrid_layers
from lightning_morpho.integrations import averaging

DECAY = 0.8


class OwnAverage(L.Callback):
    """An independent exponential average: each parameter from the moment it is first trained."""

    def __init__(self) -> None:
        self.average: dict[str, Tensor] = {}

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        for name, parameter in pl_module.named_parameters():
            if not parameter.requires_grad:
                self.average.pop(name, None)
            elif name in self.average:
                self.average[name] = DECAY * self.average[name] + (1 - DECAY) * parameter.detach()
            else:
                self.average[name] = parameter.detach().clone()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for name, parameter in pl_module.named_parameters():
            if parameter.requires_grad and name not in self.average:
                self.average[name] = parameter.detach().clone()  # born at this tick


@pytest.mark.parametrize("morpho_first", [True, False])
def test_seeds_are_averaged_from_their_birth(morpho_first: bool, tmp_path: Path) -> None:
    L.seed_everything(0)
    ema, own, morpho = EMAWeightAveraging(decay=DECAY), OwnAverage(), quick()
    callbacks = [morpho, ema] if morpho_first else [ema, morpho]
    module = Host(linear_net())
    trainer = make_trainer(tmp_path, *callbacks, own, max_epochs=6)
    trainer.fit(module, **loaders())
    assert events(tmp_path)
    # `WeightAveraging` copies its average into the module when training ends.
    for name, parameter in module.named_parameters():
        expected = own.average.get(name, torch.zeros_like(parameter))
        # float32: the two formulas round differently over 60 steps
        assert torch.allclose(parameter, expected, atol=1e-5), name


@pytest.mark.parametrize("morpho_first", [True, False])
def test_topology_survives_averaging_and_its_checkpoint(morpho_first: bool, tmp_path: Path) -> None:
    def run(folder: str, epochs: int, ckpt: Path | None = None) -> tuple[Host, Any]:
        L.seed_everything(0)
        ema, morpho = EMAWeightAveraging(decay=DECAY), quick()
        saver = ModelCheckpoint(tmp_path / folder, filename="{epoch}", save_top_k=-1)
        callbacks = [morpho, ema] if morpho_first else [ema, morpho]
        trainer = make_trainer(tmp_path / folder, *callbacks, saver, max_epochs=epochs, enable_checkpointing=True)
        module = Host(linear_net())
        trainer.fit(module, **loaders(), ckpt_path=ckpt)
        return module, {n: json.loads(layer.morpho.get_extra_state()) for n, layer in hybrid_layers(module).items()}

    module, topology = run("whole", 5)
    assert any(bed["event"] >= 0 for layer in topology.values() for bed in layer["beds"])
    saved = torch.load(tmp_path / "whole" / "epoch=4.ckpt", weights_only=True)
    for name, layer in topology.items():
        stages = json.loads(saved["state_dict"][f"{name}.morpho._extra_state"])["state"]
        assert_equal(stages, layer["state"])
    resumed, again = run("part", 5, tmp_path / "whole" / "epoch=2.ckpt")
    assert_equal(topology, again)
    assert_equal(dict(module.state_dict()), dict(resumed.state_dict()))


@pytest.mark.parametrize("morpho_first", [True, False])
def test_stochastic_weight_averaging_averages_grown_weights(morpho_first: bool, tmp_path: Path) -> None:
    class Mean(L.Callback):
        def __init__(self) -> None:
            self.seen: list[dict[str, Tensor]] = []

        def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            if trainer.current_epoch >= 3:
                self.seen.append({n: p.detach().clone() for n, p in pl_module.named_parameters()})

    L.seed_everything(0)
    swa = StochasticWeightAveraging(swa_lrs=1e-3, swa_epoch_start=4, annealing_epochs=1)
    mean, morpho = Mean(), quick()
    module = Host(linear_net())
    callbacks = [morpho, swa] if morpho_first else [swa, morpho]
    make_trainer(tmp_path, *callbacks, mean, max_epochs=8).fit(module, **loaders())
    for name, parameter in module.named_parameters():
        expected = torch.stack([seen[name] for seen in mean.seen]).mean(0)
        if not parameter.requires_grad:  # culled on the way: nothing of it may come back through the average
            expected = torch.zeros_like(parameter)
        assert torch.allclose(parameter, expected, atol=1e-6), name


def test_a_lightning_without_weight_averaging_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning 2.5 has none: the package could not be imported there."""
    with monkeypatch.context() as patch:
        patch.delattr(callbacks, "WeightAveraging")
        assert (callbacks.StochasticWeightAveraging,) == importlib.reload(averaging).AVERAGING
    assert len(importlib.reload(averaging).AVERAGING) == 2
