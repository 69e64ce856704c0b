"""Switching a rollout in a running fit: off must mean the base layers, and nothing may be lost."""

from __future__ import annotations

import copy
import json
import logging
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch._dynamo.testing
from torch import Tensor, nn

from hosts import Host, assert_equal, linear_net, loaders, make_trainer, optimizer_state, quick
from lightning_morpho import (
    BlueprintConfig,
    GuardConfig,
    LayersConfig,
    LifecycleConfig,
    MorphoConfig,
    Periodic,
    RampConfig,
    RolloutConfig,
    compare_implementations,
    hybrid_layers,
    morph_,
)
from lightning_morpho.telemetry import EVENTS_FILE, read_events, read_run

KEEP_ALIVE = LifecycleConfig(active_ticks=50, timeout_ticks=90)


class Momentum(Host):
    """Momentum and weight decay: whatever is not skipped by the optimizer moves."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-2, weight_decay=0.1)


class Script(L.Callback):
    """Write flags after some optimizer steps, and remember seeds and optimizer state after each step."""

    def __init__(self, path: Path, script: dict[int, str]) -> None:
        self.path, self.script = path, script
        self.seeds: dict[int, Any] = {}
        self.hosts: dict[int, dict[str, Tensor]] = {}
        self.implementations: dict[int, set[str]] = {}

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, idx: int) -> None:
        self.implementations[trainer.global_step] = {
            layer.implementation for layer in hybrid_layers(pl_module).values()
        }
        state = copy.deepcopy(dict(pl_module.state_dict()))
        moments = copy.deepcopy(optimizer_state(trainer, pl_module))  # type: ignore[arg-type]
        both = {**state, **{f"optimizer/{name}": value for name, value in moments.items()}}
        self.seeds[trainer.global_step] = {k: without_switch(v) for k, v in both.items() if ".morpho." in k}
        self.hosts[trainer.global_step] = {k: v for k, v in both.items() if ".morpho." not in k}
        if trainer.global_step in self.script:
            self.path.write_text(self.script[trainer.global_step])


def without_switch(value: Any) -> Any:
    """A layer's extra state but for the switch itself and the host's own step counter."""
    if not isinstance(value, str):
        return value
    return {k: v for k, v in json.loads(value).items() if k not in ("off", "steps")}


def fit(root: Path, *callbacks: L.Callback, module: Host | None = None, **options: Any) -> tuple[L.Trainer, Host]:
    L.seed_everything(0)
    torch.manual_seed(1)
    module = module or Momentum(linear_net())
    trainer = make_trainer(root, *callbacks, **options)
    trainer.fit(module, **loaders())
    return trainer, module


def rollouts(root: Path) -> list[dict[str, Any]]:
    return [e for e in read_events(root / EVENTS_FILE) if e["event"] == "rollout"]


def switching(root: Path, script: dict[int, str], every: int = 5, **options: Any) -> tuple[Any, Script]:
    path = root / "flags.yaml"
    rollout = RolloutConfig(flag_file=str(path), flag_every_n_steps=every, **options)
    return quick(rollout=rollout, lifecycle=KEEP_ALIVE, layers=LayersConfig(num_seeds=2)), Script(path, script)


# ------------------------------------------------------------------------------------------ off and on
@pytest.fixture(scope="module")
def switched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Script]:
    """Germination after epoch 1 (step 10); off before step 15 and on before 25, in the middle of epochs."""
    root = tmp_path_factory.mktemp("switched")
    callback, script = switching(root, {12: "enabled: false", 22: "enabled: true"})
    fit(root, callback, script)
    return root, script


def test_flag_file_is_applied_at_the_next_look(switched: tuple[Path, Script]) -> None:
    implementations = switched[1].implementations
    assert {step for step, seen in implementations.items() if seen == {"base"}} == set(range(15, 25))


def test_switched_off_the_run_computes_exactly_what_base_layers_compute(switched: tuple[Path, Script]) -> None:
    """A plain model that goes on from the same weights and moments must see the same losses and weights."""
    script = switched[1]
    module = Momentum(linear_net())
    weights = {k: v for k, v in script.hosts[15].items() if not k.startswith("optimizer/")}
    module.load_state_dict(weights)
    (optimizer,) = [module.configure_optimizers()]
    for name, parameter in module.named_parameters():
        optimizer.state[parameter] = copy.deepcopy(script.hosts[15][f"optimizer/{name}"])
    batches = list(loaders()["train_dataloaders"])
    for step in range(15, 25):
        for name, parameter in module.named_parameters():
            assert torch.equal(parameter, script.hosts[step][name]), (step, name)
        optimizer.zero_grad()
        module.training_step(batches[step % 10], 0).backward()
        optimizer.step()


def test_switched_on_again_the_seeds_are_as_they_were(switched: tuple[Path, Script]) -> None:
    """Parameters, moments, stages, ages, warm-up: nothing moved in 10 steps and a tick, weight decay or not."""
    seeds = switched[1].seeds
    assert any(key.startswith("optimizer/") for key in seeds[15])
    assert not all(torch.equal(seeds[14][k], seeds[15][k]) for k in seeds[15] if k.endswith(".w_out"))
    for step in range(16, 26):
        assert_equal(seeds[15], seeds[step])
    assert not all(torch.equal(seeds[25][k], seeds[26][k]) for k in seeds[26] if k.endswith(".w_out"))


def test_every_change_is_an_event(switched: tuple[Path, Script]) -> None:
    events = rollouts(switched[0])
    assert [(e["cause"], e["step"], e["layers_on"]) for e in events] == [
        ("start", 0, 2),
        ("flag file", 15, 0),
        ("flag file", 25, 2),
    ]
    assert events[1]["off"] == events[2]["on"] == ["net.0", "net.2"]
    assert events[1]["reason"] == "chunked_layers: {'enabled': False}" and events[1]["percentage"] == 0


def test_gradients_that_were_accumulated_before_the_switch_are_dropped(tmp_path: Path) -> None:
    callback, script = switching(tmp_path, {6: "enabled: false"}, every=1)
    fit(tmp_path, callback, script, accumulate_grad_batches=2)
    assert script.implementations[7] == {"base"}
    for step in range(8, 26):
        if step in script.seeds:
            assert_equal(script.seeds[7], script.seeds[step])


def test_nothing_is_judged_or_germinated_while_off(tmp_path: Path) -> None:
    callback, script = switching(tmp_path, {0: "enabled: false"}, every=1)
    fit(tmp_path, callback, script)
    entries = list(read_events(tmp_path / EVENTS_FILE))
    assert not [e for e in entries if e["event"] == "transition"]


def test_layers_that_come_on_late_get_their_round(tmp_path: Path) -> None:
    start, later = "blocklist: [net.2]", "blocklist: []"
    callback, script = switching(tmp_path, {0: start, 21: later}, every=1, unit="layer")
    (tmp_path / "flags.yaml").write_text(start)
    fit(tmp_path, callback, script)
    born = {
        e["layer"]: e["step"]
        for e in read_events(tmp_path / EVENTS_FILE)
        if e["event"] == "transition" and e["from"] == "DORMANT"
    }
    assert born == {"net.0": 10, "net.2": 30}


# ------------------------------------------------------------------------------------------ the file
def test_file_in_error_changes_nothing_and_says_why(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="lightning.pytorch.utilities.rank_zero")
    callback, script = switching(tmp_path, {3: "enabled: false", 12: "enabled: [", 22: "percentge: 3"})
    fit(tmp_path, callback, script)
    assert script.implementations[49] == {"base"}
    assert [e["step"] for e in rollouts(tmp_path)] == [0, 5, 15, 25]
    assert "is no YAML" in caplog.text and "did you mean `percentage`" in caplog.text


def test_file_in_error_at_the_start_stops_the_run_before_training(tmp_path: Path) -> None:
    callback, script = switching(tmp_path, {})
    (tmp_path / "flags.yaml").write_text("percentage: 120")
    with pytest.raises(ValueError, match=r"flags.yaml`: `rollout.percentage`.*120.*Correct the file"):
        fit(tmp_path, callback, script)


def test_file_that_is_removed_brings_the_configuration_back(tmp_path: Path) -> None:
    callback, script = switching(tmp_path, {})
    (tmp_path / "flags.yaml").write_text("enabled: false")

    class Remove(L.Callback):
        def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            if trainer.current_epoch == 2:
                (tmp_path / "flags.yaml").unlink()

    fit(tmp_path, callback, Remove(), script)
    assert script.implementations[20] == {"base"} and script.implementations[26] == {"chunked"}


def test_kill_switch_in_the_configuration_is_final(tmp_path: Path) -> None:
    callback, script = switching(tmp_path, {0: "enabled: true"}, enabled=False)
    _, module = fit(tmp_path, callback, script)
    assert not hybrid_layers(module)


def test_resumed_run_that_was_off_stays_off_and_keeps_its_seeds(tmp_path: Path) -> None:
    callback, script = switching(tmp_path, {12: "enabled: false"})
    trainer, module = fit(tmp_path, callback, script, max_epochs=3)
    trainer.save_checkpoint(tmp_path / "off.ckpt")
    again, second = switching(tmp_path, {41: "enabled: true"})
    resumed = make_trainer(tmp_path, again, second, max_epochs=5)
    resumed.fit(Momentum(linear_net()), **loaders(), ckpt_path=tmp_path / "off.ckpt", weights_only=True)
    assert second.implementations[30] == {"base"} and second.implementations[46] == {"chunked"}
    assert_equal(script.seeds[29], second.seeds[40])


def test_switching_compiles_each_layer_twice_at_most() -> None:
    model = linear_net()
    morph_(model, MorphoConfig(layers=LayersConfig(num_seeds=2), blueprint=BlueprintConfig(kind="neurons")))
    layers = hybrid_layers(model).values()
    for layer in layers:
        layer.request_germination()
    counter = torch._dynamo.testing.CompileCounter()
    compiled = torch.compile(model, backend=counter)
    for number in range(10):
        for layer in layers:
            layer.implementation = ("base", "chunked")[number % 2]
        compiled(torch.randn(4, 8))
    assert counter.frame_count <= 2


# ------------------------------------------------------------------------------------------ ramps
def test_ramp_adds_layers_and_only_adds(tmp_path: Path) -> None:
    net = nn.Sequential(*(nn.Linear(8, 8) for _ in range(19)), nn.Linear(8, 3))
    ramp = RampConfig(schedule={0: 10, 1: 50, 2: 100}, guard=GuardConfig(val_loss=None))
    callback = quick(rollout=RolloutConfig(unit="layer", ramp=ramp), tamiyo=Periodic())
    fit(tmp_path, callback, module=Momentum(net), max_epochs=4)
    events = rollouts(tmp_path)
    assert [e["percentage"] for e in events] == [10, 50, 100]
    assert [e["step"] for e in events] == [0, 10, 20]
    assert events[-1]["layers_on"] == 20 and not any(e["off"] for e in events[1:])
    assert 0 < len(events[1]["on"]) < 20


def test_resumed_ramp_that_was_rolled_back_stays_so(tmp_path: Path) -> None:
    sick = RampConfig(schedule={0: 99, 3: 100}, guard=GuardConfig(baseline={"val_loss": 0.0}))
    trainer, _ = fit(tmp_path, quick(rollout=RolloutConfig(ramp=sick)), max_epochs=2)
    trainer.save_checkpoint(tmp_path / "rolled_back.ckpt")
    resumed = make_trainer(tmp_path, quick(rollout=RolloutConfig(ramp=sick)), max_epochs=4)
    module = Momentum(linear_net())
    resumed.fit(module, **loaders(), ckpt_path=tmp_path / "rolled_back.ckpt", weights_only=True)
    assert {layer.implementation for layer in hybrid_layers(module).values()} == {"base"}


def test_failing_guard_rolls_back_within_one_tick(tmp_path: Path) -> None:
    ramp = RampConfig(guard=GuardConfig(baseline={"val_loss": 0.0}), schedule={0: 100})
    fit(tmp_path, quick(rollout=RolloutConfig(ramp=ramp)), max_epochs=3)
    start, back = rollouts(tmp_path)
    assert (start["layers_on"], back["layers_on"]) == (2, 0)
    assert (back["tick"], back["step"]) == (0, 10), "before the first tick's own decisions"
    assert "rolled back to 0 %: val_loss" in back["reason"]


def test_diverged_validation_loss_rolls_back(tmp_path: Path) -> None:
    class Diverges(Momentum):
        def validation_step(self, batch: Any, batch_idx: int) -> Tensor:
            loss = self.loss(batch) * (torch.nan if self.current_epoch == 1 else 1)
            self.log("val_loss", loss)
            return loss

    ramp = RampConfig(schedule={0: 100})
    fit(tmp_path, quick(rollout=RolloutConfig(ramp=ramp)), module=Diverges(linear_net()), max_epochs=3)
    assert "val_loss is nan" in rollouts(tmp_path)[-1]["reason"]


def test_layers_on_is_logged(tmp_path: Path) -> None:
    ramp = RampConfig(guard=GuardConfig(baseline={"val_loss": 0.0}), schedule={0: 100})
    fit(tmp_path, quick(rollout=RolloutConfig(ramp=ramp)), max_epochs=1)
    assert read_run(tmp_path).metrics["morpho/run/layers_on"].values == (0,)


# ------------------------------------------------------------------------------------------ comparison
def test_comparison_measures_both_and_leaves_everything_as_it_was() -> None:
    model = linear_net()
    morph_(model, MorphoConfig(blueprint=BlueprintConfig(kind="neurons")))
    layers = hybrid_layers(model).values()
    for layer in layers:
        layer.request_germination()
        nn.init.ones_(layer.morpho.beds[0].w_out)
    model.train()
    model(torch.randn(2, 8)).sum().backward()
    gradients = {n: p.grad for n, p in model.named_parameters()}
    batches = [torch.randn(4, 8) for _ in range(3)]
    result = compare_implementations(model, batches, warmup=1, rounds=2)
    assert result.max_difference > 0 and result.bed_bytes > 0
    assert 0 < result.base.p50 <= result.base.p90 <= result.base.p99
    assert result.ratio == result.chunked.p50 / result.base.p50 and result.base.peak_memory is None
    assert model.training and {layer.implementation for layer in layers} == {"chunked"}
    assert all(p.grad is gradients[n] for n, p in model.named_parameters())
    assert "chunked / base" in str(result)


def test_comparison_of_a_plain_model_is_refused() -> None:
    with pytest.raises(ValueError, match="no hybrid layer"):
        compare_implementations(nn.Linear(2, 2), [torch.zeros(1, 2)])


def test_event_log_lines_are_plain_json(tmp_path: Path) -> None:
    callback, script = switching(tmp_path, {2: "allowlist: [a, b]\nflags: {fused_kernels: {enabled: true}}"})
    _, module = fit(tmp_path, callback, script, max_epochs=1)
    lines = [json.loads(line) for line in (tmp_path / EVENTS_FILE).read_text().splitlines()]
    assert "fused_kernels: {'enabled': True}" in lines[-1]["reason"] or len(lines) > 2
    assert all(layer.morpho.features == {"fused_kernels": True} for layer in hybrid_layers(module).values())
