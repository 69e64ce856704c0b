"""The policy in whole Lightning runs."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from hosts import Host, assert_equal, linear_net, loaders, make_trainer
from lightning_morpho import (
    AutoSize,
    BlueprintConfig,
    BudgetConfig,
    LifecycleConfig,
    MorphoCallback,
    WarmupConfig,
    export,
    hybrid_layers,
)
from lightning_morpho.telemetry import EVENTS_FILE, read_events

EPOCHS = 10


def events_of(root: Path) -> list[dict[str, Any]]:
    return list(read_events(root / EVENTS_FILE))


def callback(every_n_steps: int | None = None, **options: Any) -> MorphoCallback:
    return MorphoCallback(
        tamiyo=AutoSize(**options),
        every_n_steps=every_n_steps,
        budget=BudgetConfig(parameters=400),
        warmup=WarmupConfig(steps=5, min_steps=5),
        lifecycle=LifecycleConfig(active_ticks=1),
    )


def fit(root: Path, morpho: MorphoCallback, hidden: int = 3, **options: Any) -> tuple[Host, L.Trainer]:
    L.seed_everything(0)
    module = Host(linear_net(hidden), lr=0.02)
    trainer = make_trainer(root, morpho, *options.pop("callbacks", ()), max_epochs=EPOCHS, **options)
    trainer.fit(module, **loaders())
    return module, trainer


def assert_counts_what_is_exported(module: Host, trainer: L.Trainer) -> None:
    exported = sum(parameter.numel() for parameter in export(module).parameters())
    assert trainer.callback_metrics["morpho/run/parameters"] == exported


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> tuple[Host, MorphoCallback, Path]:
    root, morpho = tmp_path_factory.mktemp("grown"), callback()
    saver = ModelCheckpoint(root, filename="{epoch}", save_top_k=-1, every_n_epochs=1)
    module, _ = fit(root, morpho, callbacks=[saver], enable_checkpointing=True)
    return module, morpho, root


def test_a_net_too_narrow_grows_to_the_budget_and_is_narrowed_once(grown):
    module, morpho, root = grown
    entries = [entry for entry in events_of(root) if "layer" in entry]
    kinds = [entry["event"] for entry in entries]
    assert kinds.count("assessed") == kinds.count("resized") == 1
    resized = next(entry for entry in entries if entry["event"] == "resized")["figures"]
    assert resized["kept"] < resized["units"]
    assert resized["after"] <= resized["before"] + 0.5
    hidden = export(module).net[0].out_features
    assert 3 < hidden <= resized["kept"]
    assert [t["to"] for t in entries if t["event"] == "transition"][-1] == "FOSSILIZED"


def test_units_removed_stay_out_until_the_end(grown):
    module, _, _ = grown
    bed = hybrid_layers(module.net)["2"].morpho.bed_at(0)
    dead = torch.from_numpy(~bed.alive)
    assert dead.any()
    assert (bed.w_in0[dead] == 0).all()
    assert (bed.w_out[:, dead] == 0).all()


@pytest.mark.parametrize("epoch", [3, 6])
def test_a_run_resumed_between_penalty_and_cull_or_after_it_ends_bit_equal(grown, epoch, tmp_path):
    module, morpho, root = grown
    again = callback()
    L.seed_everything(0)
    resumed = Host(linear_net(3), lr=0.02)
    trainer = make_trainer(tmp_path, again, max_epochs=EPOCHS)
    trainer.fit(resumed, **loaders(), ckpt_path=root / f"epoch={epoch}.ckpt")
    assert_equal(module.state_dict(), resumed.state_dict())
    expected, got = copy.deepcopy(morpho.state_dict()["engine"]), copy.deepcopy(again.state_dict()["engine"])
    for state in (expected, got):
        for entry in state["resizings"]:
            entry["seconds"] = 0.0
    assert_equal(expected, got)


def test_a_run_resumed_between_two_answers_remembers_the_first(tmp_path, monkeypatch):
    """How fast the host learns shows in two answers; a run that forgot one would decide otherwise."""
    monkeypatch.setattr(AutoSize, "_welcome", lambda *_: False)
    whole, resumed = callback(by=0.3), callback(by=0.3)
    saver = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1, every_n_epochs=1)
    fit(tmp_path / "whole", whole, callbacks=[saver], enable_checkpointing=True)
    fit_again = make_trainer(tmp_path / "resumed", resumed, max_epochs=EPOCHS)
    L.seed_everything(0)
    fit_again.fit(Host(linear_net(3), lr=0.02), **loaders(), ckpt_path=tmp_path / "epoch=1.ckpt")
    expected, got = (morpho.state_dict()["engine"]["assessments"] for morpho in (whole, resumed))
    assert [entry["step"] for entry in got] == [10, 20, 30]
    assert got == expected


def test_a_host_that_is_too_wide_shrinks(tmp_path):
    module, trainer = fit(tmp_path, callback(sizing="shrink", tolerance=5.0), hidden=64)
    assert export(module).net[0].out_features < 64
    assert trainer.callback_metrics["morpho/run/added_parameters"] < 0
    assert_counts_what_is_exported(module, trainer)
    assert all(entry["event"] != "transition" for entry in events_of(tmp_path))


def convolution_and_norm() -> nn.Sequential:
    return nn.Sequential(
        nn.Unflatten(1, (1, 2, 4)),
        nn.Conv2d(1, 2, 3, padding=1),
        nn.BatchNorm2d(2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16, 3),
    )


class Residual(nn.Module):
    """A branch beside a shortcut."""

    def __init__(self, *branch: nn.Module) -> None:
        super().__init__()
        self.branch = nn.Sequential(*branch)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


class Attention(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(size, 3 * size), nn.Linear(size, size)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        return self.out(nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True))


def resnet(width: int) -> nn.Sequential:
    """Batch norms in, behind and outside the residual block."""
    inside = [nn.Conv2d(4, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    block = Residual(*inside, nn.Conv2d(width, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4))
    enter = [nn.Unflatten(1, (1, 2, 4)), nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()]
    return nn.Sequential(*enter, block, nn.ReLU(), nn.Flatten(), nn.Linear(32, 3))


def transformer(width: int) -> nn.Sequential:
    """One block over eight tokens."""
    feed_forward = Residual(nn.LayerNorm(6), nn.Linear(6, width), nn.GELU(), nn.Linear(width, 6))
    enter = [nn.Unflatten(1, (8, 1)), nn.Linear(1, 6)]
    return nn.Sequential(*enter, Residual(nn.LayerNorm(6), Attention(6)), feed_forward, nn.Flatten(), nn.Linear(48, 3))


@pytest.mark.parametrize(("sizing", "width"), [("grow", 2), ("both", 12), ("shrink", 24)])
@pytest.mark.parametrize("net", [resnet, transformer])
def test_residual_nets_and_transformers_find_their_size(net, sizing, width, tmp_path):
    """The units go without a jump of the held-out errors, and the plain net that leaves says the same."""
    L.seed_everything(0)
    module, morpho = Host(net(width), lr=0.02), callback(sizing=sizing, explains=0.0, tolerance=5.0)
    trainer = make_trainer(tmp_path, morpho, max_epochs=EPOCHS)
    trainer.fit(module, **loaders())
    found = [entry for entry in events_of(tmp_path) if entry["event"] == "resized"]
    assert [entry["layer"] for entry in found] == ["net.4.branch.3" if net is resnet else "net.3.branch.3"]
    for entry in found:
        figures = entry["figures"]
        assert figures["kept"] < figures["units"]
        assert figures["after"] <= figures["before"] + 5
    assert_counts_what_is_exported(module, trainer)
    module.eval()
    x = loaders()["val_dataloaders"].dataset.tensors[0]
    with torch.no_grad():
        torch.testing.assert_close(export(module).net(x), module.net(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_a_run_is_sized_in_any_precision(precision, tmp_path, monkeypatch):
    monkeypatch.setattr(AutoSize, "_welcome", lambda *_: True)
    L.seed_everything(0)
    module, morpho = Host(convolution_and_norm(), lr=0.02), callback()
    trainer = make_trainer(tmp_path, morpho, max_epochs=EPOCHS, precision=precision)
    trainer.fit(module, **loaders())
    figures = {entry["event"]: entry["figures"] for entry in events_of(tmp_path) if "figures" in entry}
    assert figures["assessed"]["share"] < 1
    assert 1 <= figures["resized"]["kept"] <= figures["resized"]["units"]
    assert_counts_what_is_exported(module, trainer)
    assert torch.isfinite(trainer.callback_metrics["val_loss"])


def test_without_validation_nothing_is_sized_and_seeds_are_kept_with_the_reason(tmp_path):
    L.seed_everything(0)
    module, morpho = Host(linear_net(3)), callback()
    with pytest.warns(UserWarning, match="no validation"):
        make_trainer(tmp_path, morpho, max_epochs=6).fit(module, loaders()["train_dataloaders"])
    entries = events_of(tmp_path)
    assert {"assessed", "resized"}.isdisjoint(entry["event"] for entry in entries)
    assert any("not sized" in entry.get("reason", "") for entry in entries)
    assert hybrid_layers(module.net)["2"].morpho.bed_at(0).alive.all()


def test_growth_waits_for_the_first_validation(tmp_path):
    """Grown before it, the net could never be sized: it would keep the whole budget."""
    fit(tmp_path, callback(every_n_steps=5, at=0.05, explains=0.0))
    entries = [entry for entry in events_of(tmp_path) if entry["event"] in ("transition", "resized")]
    assert entries[0]["event"] == "transition"
    assert entries[0]["step"] > 10  # an epoch has 10 steps, validation follows them
    assert any(entry["event"] == "resized" for entry in entries)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sizing": "both ways"}, "`tamiyo.sizing` must be 'grow', 'shrink' or 'both'"),
        ({"at": 0.3}, "`tamiyo.by` must be not before"),
        ({"by": 0.5, "until": 0.5}, "`tamiyo.until` must be after"),
        ({"tolerance": -1.0}, "`tamiyo.tolerance`"),
        ({"point": 0.0}, "`tamiyo.point`"),
    ],
)
def test_wrong_settings_are_refused_with_the_value(options, message):
    with pytest.raises(ValueError, match=message):
        AutoSize(**options)


def test_a_layer_that_the_budget_leaves_without_a_bed_is_not_sized(tmp_path):
    net = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3))
    morpho = MorphoCallback(
        tamiyo=AutoSize(at=0.0), blueprint=BlueprintConfig(hidden=6), budget=BudgetConfig(parameters=100)
    )
    make_trainer(tmp_path, morpho, max_epochs=3).fit(Host(net), **loaders())
    asked = {entry["layer"] for entry in events_of(tmp_path) if entry["event"] == "assessed"}
    assert asked == {"net.4"}, "what cannot grow is not asked about"
