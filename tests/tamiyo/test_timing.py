"""When a round opens, and when another one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping
from torch.utils.data import DataLoader, TensorDataset

from hosts import Host, events, linear_net, loaders, make_data, make_trainer, quick
from lightning_morpho import LayersConfig, LifecycleConfig, Observation, Uniform
from lightning_morpho.tamiyo import LayerView
from lightning_morpho.tamiyo.replay import read_ticks
from lightning_morpho.tamiyo.timing import risen, stalled


def seen(losses: list[Any], training: list[Any], *, germinations: int = 1, **values: Any) -> Observation:
    layer = LayerView(
        name="a", features=4, bed_parameters=10, free_beds=1, germinations=germinations, dormant=(0,), seeds=()
    )
    plain: dict[str, Any] = {"tick": len(losses), "step": 50, "total_steps": 100}
    plain |= {"last_round": 2 if germinations else None, "losses": tuple(losses), "training_losses": tuple(training)}
    return Observation(layers=(layer,), **(plain | values))


FELL, ROSE = [2.0, 1.5, 1.0, 0.9, 0.8, 0.8, 0.8], [2.0, 1.5, 1.0, 0.9, 1.2, 1.3, 1.2]


@pytest.mark.parametrize(
    ("losses", "training", "opens"),
    [
        (ROSE, ROSE, True),
        (ROSE, FELL, False),  # overfitting: more capacity would make it worse
        (FELL, ROSE, False),
        (ROSE, [None] * 7, False),  # not known is no evidence
        ([*ROSE[:-1], 1.0], ROSE, False),  # must last
        ([*ROSE[:-1], None], ROSE, False),
        (FELL, FELL, False),
        ([0.1, 1.0, 1.0, 1.0, 1.0], [0.1, 1.0, 1.0, 1.0, 1.0], False),  # the best before the round counts no more
    ],
)
def test_another_round_opens_when_both_losses_have_risen_for_good(losses: Any, training: Any, opens: bool) -> None:
    grown = Uniform().grow(seen(losses, training))
    assert bool(grown) == opens
    assert all("the data have changed" in d.reason for d in grown)
    assert not Uniform(reopen=None).grow(seen(losses, training))


@pytest.mark.parametrize(
    ("patience", "losses", "opens"),
    [
        (None, [1.0, 1.0, 1.0, 1.0, 1.0], False),  # a known length: the share of training decides
        (10, [1.0, 1.0, 1.0, 1.0], True),
        (10, [1.0, 1.0, 1.0], False),
        (3, [1.0, 1.0, 1.0], True),  # two ticks, one before training would be stopped
        (1, [1.0, 1.0], True),
        (3, [1.0, 0.9, 0.8], False),
    ],
)
def test_round_comes_before_early_stopping_ends_the_training(patience: Any, losses: Any, opens: bool) -> None:
    observation = seen(losses, losses, germinations=0, step=1, stop_patience=patience)
    assert bool(Uniform().grow(observation)) == opens


@pytest.mark.parametrize("options", [{"max_epochs": 1000}, {"max_epochs": -1}], ids=["stopped_early", "open_ended"])
def test_run_that_ends_early_grows_before_it_ends(options: dict[str, Any], tmp_path: Path) -> None:
    stop = EarlyStopping("val_loss", patience=4, min_delta=0.01)
    L.seed_everything(0)
    trainer = make_trainer(tmp_path, quick(tamiyo=Uniform()), stop, **options)
    trainer.fit(Host(linear_net(), lr=0.05), **loaders())
    assert trainer.current_epoch < 150 and stop.stopped_epoch
    assert any(e["to"] == "LOADING" and "validation loss fell by less" in e["reason"] for e in events(tmp_path))


@pytest.mark.parametrize("patience", [1, 5])
def test_early_stopping_waits_until_what_grows_is_judged_and_then_stops(patience: int, tmp_path: Path) -> None:
    """Else the run ends with seeds that nobody has kept or culled."""
    L.seed_everything(0)
    stop = EarlyStopping("val_loss", patience=patience)
    callback = quick(tamiyo=Uniform(min_delta=0.1), lifecycle=LifecycleConfig(active_ticks=6))
    trainer = make_trainer(tmp_path, callback, stop, max_epochs=-1)
    trainer.fit(Host(linear_net(), lr=0.05), **loaders())
    last = {e["layer"]: e["to"] for e in events(tmp_path)}
    assert last and not {"LOADING", "ACTIVE"} & set(last.values())
    assert stop.stopped_epoch and trainer.current_epoch < 150


class ShiftedData(L.LightningDataModule):
    """The labels are others from the eighth epoch on."""

    def loader(self, count: int, seed: int, batch: int) -> DataLoader:
        x, y = make_data(count, seed).tensors
        assert self.trainer is not None
        return DataLoader(TensorDataset(x, (y + (self.trainer.current_epoch >= 8)) % 3), batch_size=batch)

    def train_dataloader(self) -> DataLoader:
        return self.loader(320, 0, 32)

    def val_dataloader(self) -> DataLoader:
        return self.loader(128, 1, 16)


def test_shifted_data_open_another_round_in_a_run(tmp_path: Path) -> None:
    L.seed_everything(0)
    callback = quick(layers=LayersConfig(beds=2), tamiyo=Uniform(at=0.0, reopen=0.2, reopen_ticks=1))
    options = {"max_epochs": 12, "reload_dataloaders_every_n_epochs": 1}
    make_trainer(tmp_path, callback, **options).fit(Host(linear_net()), datamodule=ShiftedData())
    reasons = {e["tick"]: e["reason"] for e in events(tmp_path) if e["to"] == "LOADING"}
    assert "one round" in reasons[1] and any("the data have changed" in r and t >= 9 for t, r in reasons.items())
    losses = [tick.observation.training_losses[-1] for tick in read_ticks(tmp_path)]
    assert all(loss is not None and torch.isfinite(torch.tensor(loss)) for loss in losses)


def test_losses_below_zero_rise_and_stall_like_others() -> None:
    """A log-likelihood: a share of the best is a share of its size."""
    assert not risen([-1.0, -2.0, -1.9, -1.8], 2, 0.2) and risen([-1.0, -2.0, -1.5, -1.4], 2, 0.2)
    assert stalled([-1.0, -2.0, -2.01], 1, 0.02) and not stalled([-1.0, -2.0, -2.1], 1, 0.02)
