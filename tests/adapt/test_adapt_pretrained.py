"""A trained host is adapted: it must stand still bit for bit, get better, and leave as what it was."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from hydra import compose, initialize_config_module
from hydra.utils import instantiate
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from hosts import Host, assert_equal, events, make_data, make_trainer
from lightning_morpho import (
    BlueprintConfig,
    CreditConfig,
    LayersConfig,
    LifecycleConfig,
    MorphoCallback,
    Probation,
    RampConfig,
    RolloutConfig,
    TelemetryConfig,
    WarmupConfig,
    hybrid_layers,
    merge_,
    morph_,
)

QUIET = TelemetryConfig(table=False)
WARMUP = WarmupConfig(steps=5, min_steps=5)


def net(dropout: float = 0.1) -> nn.Sequential:
    torch.manual_seed(3)
    first = (nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(dropout))
    return nn.Sequential(*first, nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))


class Picky(Host):
    """Its optimizer takes what is trainable, as many do."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.01)


def shifted(count: int, seed: int) -> TensorDataset:
    """The task of `make_data` with its inputs in another order, two of them turned over."""
    x, y = make_data(count, seed).tensors
    return TensorDataset(x[:, [1, 0, 2, 3, 5, 4, 6, 7]] * torch.tensor([1.0, 1, -1, 1, 1, 1, 1, -1]), y)


def shifted_loaders(validation: bool = True) -> dict[str, DataLoader]:
    train = DataLoader(shifted(320, 0), batch_size=32)
    return {"train_dataloaders": train} | (
        {"val_dataloaders": DataLoader(shifted(256, 1), batch_size=32)} if validation else {}
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """Weights of a host that has learnt the task as it was."""
    L.seed_everything(0, verbose=False)
    module = Host(net())
    trainer = make_trainer(tmp_path_factory.mktemp("host"), max_epochs=30)
    trainer.fit(module, DataLoader(make_data(320, 0), batch_size=32, shuffle=True))
    return copy.deepcopy(module.net.state_dict())


def adapt(root: Path, trained: dict[str, Tensor], *callbacks: L.Callback, epochs: int = 10, **options: Any) -> Any:
    """Adapt the trained host; the Trainer and its module."""
    L.seed_everything(1, verbose=False)
    module = options.pop("module", Picky)(net(options.pop("dropout", 0.1)))
    module.net.load_state_dict(trained)
    validation, ckpt = options.pop("validation", True), options.pop("ckpt_path", None)
    callback = MorphoCallback(**({"preset": "adapt_pretrained", "telemetry": QUIET, "warmup": WARMUP} | options))
    trainer = make_trainer(root, callback, *callbacks, max_epochs=epochs, num_sanity_val_steps=2)
    trainer.fit(module, **shifted_loaders(validation), ckpt_path=ckpt, weights_only=True if ckpt else None)
    return trainer, module


def held_out_loss(model: nn.Module) -> float:
    x, y = shifted(1024, 2).tensors
    with torch.no_grad():
        return nn.functional.cross_entropy(model.eval()(x), y).item()


@pytest.fixture(scope="module")
def adapted(trained: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Any]:
    root = tmp_path_factory.mktemp("adapted")
    return root, *adapt(root, trained)


def host_state(module: Host) -> dict[str, Any]:
    return {k: v for k, v in module.net.state_dict().items() if ".morpho." not in k}


def test_host_stands_still_bit_for_bit_and_its_statistics_too(adapted, trained):
    assert_equal(host_state(adapted[2]), trained)


def test_host_gets_better_on_the_shifted_data(adapted, trained):
    host = net()
    host.load_state_dict(trained)
    # Two of eight inputs are turned over and four swapped: about 1.5 before, below 0.7 after 100 steps.
    assert held_out_loss(adapted[2].net) < 0.7 * held_out_loss(host)


def test_seeds_start_before_the_first_step_and_half_move_to_the_best(adapted):
    told = events(adapted[0])
    born = [(e["step"], e["layer"]) for e in told if e["from"] == "DORMANT"]
    names = ["net.0", "net.4", "net.6", "net.8"]
    assert born[:4] == [(0, name) for name in names]
    kept = {e["layer"]: e["figures"]["rise"] for e in told if e["to"] == "FOSSILIZED" and e["step"] == 10}
    culled = {e["layer"]: e["figures"]["rise"] for e in told if e["to"] == "CULLED"}
    assert len(kept) == len(culled) == 2 and {*kept, *culled} == set(names), "probation at a tenth of 100 steps"
    assert min(kept.values()) >= max(culled.values())
    assert {e["step"] for e in told if e["to"] == "CULLED"} == {15}, "gone one tick later"
    assert {layer for step, layer in born[4:]} <= set(kept) and {step for step, _ in born[4:]} == {10}


def test_no_more_parameters_are_added_than_at_the_start(adapted):
    layers = hybrid_layers(adapted[2])
    one_bed_each = sum(layer.morpho.blueprint.numel() for layer in layers.values())
    live = sum(layer.morpho.live_parameters for layer in layers.values())
    assert one_bed_each / 2 < live <= one_bed_each


def test_host_trains_again_afterwards_where_it_did_before(trained, tmp_path):
    class Partly(Picky):
        def __init__(self, body: nn.Module) -> None:
            super().__init__(body)
            self.net[0].bias.requires_grad_(False)

    _, module = adapt(tmp_path, trained, epochs=1, module=Partly)
    host = {name: p.requires_grad for name, p in module.named_parameters() if ".morpho." not in name}
    assert [name for name, trains in host.items() if not trains] == ["net.0.bias"]


def test_host_trains_again_after_a_run_that_failed(trained, tmp_path):
    class Fails(Picky):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            assert not any(p.requires_grad for n, p in self.named_parameters() if ".morpho." not in n)
            raise KeyError("data")

    module = Fails(net())
    with pytest.raises(KeyError, match="data"):
        make_trainer(tmp_path, MorphoCallback(preset="adapt_pretrained"), max_epochs=1).fit(module, **shifted_loaders())
    assert all(p.requires_grad for n, p in module.named_parameters() if ".morpho." not in n)


def test_optimizer_of_trainable_parameters_alone_holds_every_bed(adapted):
    _, trainer, module = adapted
    held = {id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]}
    beds = [p for n, p in module.named_parameters() if ".morpho." in n]
    assert {id(p) for p in beds} == held


@pytest.mark.parametrize("stop", [1, 2, 4])
def test_resumed_adaptation_ends_where_the_whole_one_ends(stop, trained, tmp_path):
    # Without dropout, whose random numbers a checkpoint of Lightning's does not hold.
    _, whole = adapt(tmp_path / "whole", trained, epochs=6, dropout=0.0)
    trainer, _ = adapt(tmp_path / "half", trained, epochs=6, dropout=0.0, module=_stopping(stop))
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    _, resumed = adapt(tmp_path / "rest", trained, epochs=6, dropout=0.0, ckpt_path=tmp_path / "half.ckpt")
    assert [e["to"] for e in events(tmp_path / "rest")] or stop == 4
    assert_equal(dict(whole.state_dict()), dict(resumed.state_dict()))


def _stopping(epochs: int) -> type[Picky]:
    class Stops(Picky):
        def on_train_epoch_end(self) -> None:
            self.trainer.should_stop = self.trainer.should_stop or self.current_epoch + 1 == epochs

    return Stops


def test_merged_host_is_plain_and_computes_the_same(adapted, trained):
    model = copy.deepcopy(adapted[2].net).double().eval()
    x = torch.randn(64, 8, dtype=torch.float64)
    before = model(x).detach()
    merge_(model)
    assert [type(m) for m in model] == [type(m) for m in net()]
    # Double-precision sums of a few hundred terms in another order.
    torch.testing.assert_close(model(x).detach(), before, rtol=1e-10, atol=1e-10)
    host = net()
    host.load_state_dict(model.state_dict(), strict=True)
    assert not all(torch.equal(value, trained[name].double()) for name, value in model.state_dict().items())


def test_convolutions_are_adapted_and_merged_too(tmp_path):
    class Images(Picky):
        def loss(self, batch: Any) -> Tensor:
            return nn.functional.cross_entropy(self.net(batch[0].unflatten(1, (2, 4))), batch[1])

        def validation_step(self, batch: Any, batch_idx: int) -> Tensor:
            return self.loss(batch)

    module = Images(nn.Sequential(nn.Conv1d(2, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)))
    callback = MorphoCallback(preset="adapt_pretrained", telemetry=QUIET, warmup=WARMUP)
    make_trainer(tmp_path, callback, max_epochs=4).fit(module, **shifted_loaders())
    x = torch.randn(4, 2, 4)
    before = module.net(x).detach()
    assert merge_(module.net)
    torch.testing.assert_close(module.net(x).detach(), before, rtol=1e-5, atol=1e-5)


def test_without_validation_all_seeds_are_kept_unjudged(trained, tmp_path):
    adapt(tmp_path, trained, epochs=2, validation=False)
    ends = {e["layer"]: (e["to"], e["reason"]) for e in events(tmp_path)}
    assert set(ends.values()) == {("FOSSILIZED", "unjudged: no held-out loss")}


def test_run_that_the_rollout_turns_off_trains_the_host_as_ever(trained, tmp_path):
    _, module = adapt(tmp_path, trained, epochs=1, rollout=RolloutConfig(enabled=False))
    assert not hybrid_layers(module)
    assert not torch.equal(module.net[0].weight, trained["0.weight"])


# ------------------------------------------------------------------------------------------ which layers
class Encoder(nn.Module):
    """A transformer block with attention of plain linear layers, and one of torch's own."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(8, 8) for _ in range(3))
        self.torch_attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.scaled_dot_product_attention(self.query(x), self.key(x), self.value(x))
        return self.head(self.torch_attention(x, x, x, need_weights=False)[0].mean(1))


def test_attention_of_linear_layers_is_taken_and_torchs_own_is_left_out():
    model = Encoder()
    report = morph_(model, MorphoCallback(preset="adapt_pretrained").config)
    assert [m.name for m in report.taken] == ["query", "key", "value", "head"]
    (left,) = [m for m in report.modules if m.name == "torch_attention.out_proj"]
    assert "reads its weight without calling it" in left.reason or "no seeds grow" in left.reason


# ------------------------------------------------------------------------------------------ settings
def test_preset_in_python_and_in_yaml_are_the_same():
    with initialize_config_module("lightning_morpho.configs", version_base="1.3"):
        composed = instantiate(
            compose("train", ["morpho=full", "morpho/preset=adapt_pretrained"]).morpho, _convert_="all"
        )
    assert composed.run_config == MorphoCallback(preset="adapt_pretrained").run_config


def test_what_is_given_beside_a_preset_holds():
    callback = MorphoCallback(preset="adapt_pretrained", blueprint=BlueprintConfig(kind="lowrank", hidden=2))
    assert callback.config.blueprint.hidden == 2 and callback.freeze_host
    assert not MorphoCallback(preset="adapt_pretrained", freeze_host=False).freeze_host


EVERYTHING: dict[str, Any] = {
    "layers": LayersConfig(),
    "blueprint": BlueprintConfig(),
    "lifecycle": LifecycleConfig(),
    "tamiyo": Probation(),
    "credit": CreditConfig(),
    "every_n_steps": 1,
    "freeze_host": True,
}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preset": "adapt_pretraind"}, "`preset` can't be 'adapt_pretraind': did you mean `adapt_pretrained`"),
        ({"preset": "adapt_pretrained", **EVERYTHING}, "nothing to set.*morpho/preset=adapt_pretrained"),
        ({"freeze_host": "yes"}, "`freeze_host` must be true, false or None, got 'yes'"),
        ({"every_n_steps": 1.5}, r"`every_n_steps` must be .*fraction of training in \(0, 1\).*got 1.5"),
        ({"freeze_host": True, "rollout": RolloutConfig(ramp=RampConfig())}, "`rollout.ramp`"),
        ({"freeze_host": True, "rollout": RolloutConfig(flag_file="flags.yaml")}, "`rollout.flag_file`"),
    ],
)
def test_wrong_settings_are_refused_with_the_way_out(options, message):
    with pytest.raises(ValueError, match=message):
        MorphoCallback(**options)


def test_frozen_host_with_a_policy_that_starts_later_is_refused_before_the_first_step(tmp_path):
    with pytest.raises(ValueError, match=r"leaves nothing to train.*tamiyo=Probation\(\)"):
        make_trainer(tmp_path, MorphoCallback(freeze_host=True), max_epochs=1).fit(Host(net()), **shifted_loaders())


def test_ticks_by_a_share_of_training(tmp_path):
    class Ticks(L.Callback):
        def __init__(self) -> None:
            self.steps: list[int] = []

        def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
            engine = trainer.callbacks[0].engine
            if engine.ticks > len(self.steps):
                self.steps.append(trainer.global_step)

    ticks = Ticks()
    make_trainer(tmp_path, MorphoCallback(every_n_steps=0.25), ticks, max_epochs=4).fit(
        Host(net()), **shifted_loaders()
    )
    assert ticks.steps == [10, 20, 30, 40]


def test_run_log_is_json(adapted):
    lines = [json.loads(line) for line in (adapted[0] / "morpho_events.jsonl").read_text().splitlines()]
    assert any(line.get("reason") == "from the start" for line in lines)
