"""A run that diverges goes back to where it was sound: detection, snapshots, whole runs with a seed that blows up."""

from __future__ import annotations

import copy
import math
import random
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, EMAWeightAveraging
from torch import nn

from hosts import Host, assert_equal, events, linear_net, loaders, make_trainer, quick
from lightning_morpho import (
    BlueprintConfig,
    CreditConfig,
    Governor,
    GovernorConfig,
    GrowthEngine,
    LayersConfig,
    LifecycleConfig,
    MorphoConfig,
    Never,
    OptimizerLink,
    Scripted,
    Stage,
    WarmupConfig,
    hybrid_layers,
    morph_,
)
from lightning_morpho.divergence import LossWatch
from lightning_morpho.evidence import paired_bounds
from lightning_morpho.snapshot import Snapshot
from lightning_morpho.telemetry import EVENTS_FILE, read_events


# ---------------------------------------------------------------- detection
def watch(losses: list[float], **options: Any) -> int | None:
    """Position of the loss at which a divergence is seen."""
    skips = options.pop("skips", False)
    loss_watch = LossWatch(GovernorConfig(**options), skips=skips)
    return next((i for i, loss in enumerate(losses) if loss_watch.add(loss) is not None), None)


def noisy(count: int, scale: float = 1.0, seed: int = 0) -> list[float]:
    draw = random.Random(seed)
    return [scale * (1 + 0.2 * draw.gauss(0, 1)) for _ in range(count)]


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9, -1.0])
def test_a_spike_is_seen_whatever_the_scale_of_the_loss(scale: float) -> None:
    losses = noisy(60, scale) + [loss + 20 * abs(scale) for loss in noisy(20, scale)]
    found = watch(losses)
    assert found is not None and 60 <= found < 68


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_is_a_divergence_at_once(bad: float) -> None:
    assert watch([*noisy(3), bad, 1.0]) == 3


def test_steps_that_a_scaler_skips_are_no_divergence_but_many_of_them_are() -> None:
    assert watch([*noisy(30), math.inf, math.nan, *noisy(30)], skips=True) is None
    found = watch([*noisy(30), *[math.nan] * 20], skips=True)
    assert found is not None and 30 <= found < 38


@pytest.mark.parametrize(
    "losses",
    [
        noisy(300),
        [3 * math.exp(-i / 50) + 0.01 for i in range(300)],  # a loss that falls and settles
        [1e-3 + 1e-9 * (i % 3) for i in range(100)] + [1.2e-3] * 100,  # a settled loss that moves a little
        [50.0 if i % 9 == 0 else 1.0 + 0.1 * (i % 4) for i in range(300)],  # single batches that are hard
        [random.Random(i).paretovariate(1.5) for i in range(500)],  # heavy tails
        [float(i % 2) for i in range(100)],
        [0.0] * 100,
    ],
    ids=["noise", "falling", "settled", "hard batches", "heavy tails", "two values", "zero"],
)
def test_what_healthy_losses_do_is_no_divergence(losses: list[float]) -> None:
    assert watch(losses) is None


def test_a_spike_far_below_the_loss_at_the_snapshot_is_no_divergence() -> None:
    """To go back would cost all that was learnt since: a net at 0.01 fluctuates by as much again, at times by more."""
    loss_watch = LossWatch(GovernorConfig())
    before = noisy(20)
    learnt = [*noisy(20, 0.1), *noisy(100, 0.01)]
    for loss in before:
        assert loss_watch.add(loss) is None
    loss_watch.mark()
    for loss in (*learnt, *noisy(40, 0.1), *learnt):
        assert loss_watch.add(loss) is None
    found = [loss_watch.add(loss) for loss in noisy(20, 3.0)]
    assert found[7] is not None and found[7].figures["limit"] > 0.8


def test_the_loss_before_the_first_germination_is_known_too() -> None:
    """Nothing was watched until then; what grew and brought the loss near zero must not end for a small rise."""
    governor = Governor(GovernorConfig(), nn.Linear(1, 1), [])
    for step, loss in enumerate(noisy(20)):
        assert governor.observe(loss, step) is None
    governor.set_live(True)
    governor.take(20)
    for step, loss in enumerate([*noisy(100, 0.01), *noisy(40, 0.1)]):
        assert governor.observe(loss, 20 + step) is None
    assert any(governor.observe(3.0, 200 + step) for step in range(10))


def test_nothing_is_judged_before_enough_is_known() -> None:
    assert watch([1.0] * 10 + [1e6] * 8) is None


# ---------------------------------------------------------------- snapshots
def grown(kept: bool = True) -> tuple[nn.Module, torch.optim.Optimizer, GrowthEngine]:
    """A model with one fossil and one live seed, both trained a little, under Adam."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2))
    config = MorphoConfig(
        layers=LayersConfig(num_seeds=1, beds=2),
        blueprint=BlueprintConfig(kind="neurons", hidden=3),
        warmup=WarmupConfig(steps=0, min_steps=0),
        lifecycle=LifecycleConfig(active_ticks=0, embargo_ticks=2),
    )
    morph_(model, config)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    engine = GrowthEngine(hybrid_layers(model), Never(), OptimizerLink(hybrid_layers(model), [optimizer]))
    model[0].request_germination()
    train(model, optimizer, 3)
    model[0].morpho.advance()
    model[0].morpho.keep([0], reason="test")
    model[3].request_germination()
    train(model, optimizer, 3)
    return model, optimizer, engine


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, scale: float = 1.0) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        (scale * model(torch.randn(8, 4)).square().mean()).backward()
        optimizer.step()


def lasting(model: nn.Module) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in model.state_dict().items() if torch.is_tensor(v) and not k.startswith("3.morpho")}


def moments(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    named = {k: p for k, p in model.named_parameters() if not k.startswith("3.morpho")}
    return copy.deepcopy({k: optimizer.state[p] for k, p in named.items() if p in optimizer.state})


def test_a_snapshot_restores_weights_buffers_moments_and_counters_bit_for_bit() -> None:
    model, optimizer, _ = grown()
    before, remembered, steps = lasting(model), moments(model, optimizer), model[0].morpho.steps
    snapshot = Snapshot([model], [optimizer], step=6)
    train(model, optimizer, 5, scale=1e6)
    assert not torch.equal(model[0].weight, before["0.weight"])
    tensors = {id(v) for state in optimizer.state.values() for v in state.values() if torch.is_tensor(v)}
    snapshot.restore()
    assert_equal(lasting(model), before)
    assert_equal(moments(model, optimizer), remembered)
    assert model[0].morpho.steps == steps and model[0].morpho.bed_at(0).steps == 6
    assert all(p.grad is None for p in model.parameters())
    assert tensors == {id(v) for state in optimizer.state.values() for v in state.values() if torch.is_tensor(v)}


def test_live_seeds_take_no_memory_in_a_snapshot() -> None:
    model, optimizer, _ = grown()
    host = sum(p.nbytes for p in model.parameters() if p.requires_grad) - sum(
        p.nbytes for p in model[3].morpho.parameters() if p.requires_grad
    )
    buffers = sum(b.nbytes for b in model.buffers())
    taken = Snapshot([model], [optimizer], step=6).nbytes
    # Free beds of a layer that holds a fossil are left out too; Adam's step counters are 4 bytes each.
    assert 3 * host + buffers <= taken <= 3 * host + buffers + 200


def test_a_learning_rate_stays_where_its_schedule_is() -> None:
    model, optimizer, _ = grown()
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    snapshot = Snapshot([model], [optimizer], step=6)
    train(model, optimizer, 1)
    schedule.step(), schedule.step()
    snapshot.restore()
    assert optimizer.param_groups[0]["lr"] == 0.0025
    schedule.step()
    assert optimizer.param_groups[0]["lr"] == 0.00125


def test_a_bed_that_was_freed_and_taken_again_is_not_overwritten() -> None:
    model, optimizer, _ = grown()
    snapshot = Snapshot([model], [optimizer], step=6)
    seeds = model[0].morpho
    seeds.bed_at(0).release(0, True)
    seeds.stages.renew()
    model[0].request_germination()
    new = {k: p.clone() for k, p in seeds.bed_at(0).named_parameters()}
    snapshot.restore()
    assert_equal(
        {k: p.detach() for k, p in seeds.bed_at(0).named_parameters()}, {k: v.detach() for k, v in new.items()}
    )


def test_memory_of_one_snapshot_is_used_for_the_next() -> None:
    model, optimizer, _ = grown()
    first = Snapshot([model], [optimizer], step=1)
    places = {t.data_ptr() for t in first._memory.values()}
    second = Snapshot([model], [optimizer], step=2, previous=first)
    assert places == {t.data_ptr() for t in second._memory.values()}


# ---------------------------------------------------------------- a loop of one's own
def test_a_plain_loop_is_taken_back_and_goes_on() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    morph_(model, MorphoConfig(blueprint=BlueprintConfig(kind="neurons")))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    layers = hybrid_layers(model)
    told: list[Any] = []
    engine = GrowthEngine(
        layers,
        Scripted(events=[{"tick": 1, "layer": "0"}]),
        OptimizerLink(layers, [optimizer]),
        told.append,
        Governor(GovernorConfig(), model, [optimizer]),
    )
    losses = []
    for step in range(1, 40):
        if step == 20:
            engine.tick(step=step, total_steps=None, loss=None, measure=None)
            sound = model[2].weight.detach().clone()
        if step == 22:
            with torch.no_grad():
                model[0].weight.fill_(1e30)
        optimizer.zero_grad()
        loss = model(torch.randn(8, 4)).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if engine.watch(loss, step):
            assert torch.equal(model[2].weight, sound)
    restored = [e for e in told if type(e).__name__ == "Restored"]
    assert [(e.step, e.snapshot_step) for e in restored] == [(22, 20)]
    assert all(math.isfinite(loss) for loss in losses[23:]) and len(losses) == 39
    assert model[0].morpho.dormant and model[0].seed(0).stage is Stage.CULLED


def test_while_nothing_lives_nothing_is_read_and_nothing_held() -> None:
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    governor = Governor(GovernorConfig(), model, [optimizer])

    for step in range(200):
        assert governor.observe(torch.tensor(math.nan), step) is None
    governor.take(3)
    assert governor.snapshot is None
    assert len(governor._waiting) == 72, "the losses before a germination are known"


def test_it_stands_down_where_rolling_back_does_not_help() -> None:
    model, optimizer, engine = grown()
    told: list[Any] = []
    engine.on_event = told.append
    engine.recovery.governor = Governor(GovernorConfig(always=True), model, [optimizer])
    engine.snapshot(0)
    for step in range(1, 10):
        engine.watch(torch.tensor(math.nan), step)
    assert sum(type(e).__name__ == "Restored" for e in told) == 3
    governor = engine.recovery.governor
    assert not governor.watching and governor.snapshot is None


# ---------------------------------------------------------------- whole runs
class Breaks(L.Callback):
    """Makes the live seeds of a layer blow up once, when they are in a stage."""

    def __init__(
        self, stage: Stage, value: float, layer: str = "net.0", *, after: int = 25, host: bool = False
    ) -> None:
        self.host = host  # errors of seeds alone are contained already
        self.stage, self.value, self.layer, self.after = stage, value, layer, after
        self.broken_at: int | None = None

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        seeds = hybrid_layers(pl_module)[self.layer].morpho
        if self.broken_at is not None or seeds.state.stage[0] != self.stage or trainer.global_step < self.after:
            return
        self.broken_at = trainer.global_step
        with torch.no_grad():
            if self.host:
                pl_module.get_submodule(self.layer).weight.fill_(self.value)
                return
            for parameter in seeds.bed_at(int(seeds.state.bed[0])).parameters():
                parameter.fill_(self.value)


def run(root: Path, *more: L.Callback, seed: int = 0, module: Host | None = None, **options: Any) -> Any:
    trainer_options = {
        k: options.pop(k) for k in ("max_epochs", "precision", "accumulate_grad_batches") if k in options
    }
    L.seed_everything(seed)
    callback = quick(**{"lifecycle": LifecycleConfig(active_ticks=3, embargo_ticks=1, alpha_step=0.5)} | options)
    module = Host(linear_net()) if module is None else module
    trainer = make_trainer(root, callback, *more, **({"max_epochs": 9} | trainer_options))
    trainer.fit(module, **loaders())
    return trainer, module, callback


def restored(root: Path) -> list[dict[str, Any]]:
    return [e for e in read_events(root / EVENTS_FILE) if e["event"] == "restored"]


PHASE1 = [Stage.LOADING, Stage.ACTIVE]


def warm(stage: Stage) -> dict[str, Any]:
    return {"warmup": WarmupConfig(steps=40, min_steps=40)} if stage is Stage.LOADING else {}


@pytest.mark.parametrize("value", [1e6, math.inf, math.nan], ids=["explodes", "infinite", "nan"])
@pytest.mark.parametrize("stage", PHASE1, ids=lambda s: s.name)
def test_a_seed_that_blows_up_in_any_stage_does_not_hurt_the_run(stage: Stage, value: float, tmp_path: Path) -> None:
    breaks = Breaks(stage, value)
    governor = GovernorConfig(window=16, patience=4)
    stop = EarlyStopping("val_loss", patience=50, check_finite=True)
    trainer, module, _ = run(tmp_path, breaks, stop, governor=governor, **warm(stage))
    assert breaks.broken_at is not None
    assert trainer.global_step == 90, "the run was stopped"
    assert all(p.isfinite().all() for p in module.parameters())
    assert trainer.callback_metrics["val_loss"] < 1.0
    if math.isfinite(value):  # what is not is contained before it reaches the host
        (entry,) = restored(tmp_path)
        assert entry["step"] <= breaks.broken_at + 6


FULL = [
    Stage.GERMINATED,
    Stage.TRAINING,
    Stage.GRAFTING,
    Stage.STABILIZATION,
    Stage.EVALUATING,
    Stage.FINE_TUNING,
]


@pytest.mark.parametrize("value", [1e6, math.inf], ids=["explodes", "infinite"])
@pytest.mark.parametrize("stage", FULL, ids=lambda s: s.name)
def test_nor_does_one_in_any_stage_of_the_full_lifecycle(stage: Stage, value: float, tmp_path: Path) -> None:
    breaks = Breaks(stage, value, after=13)
    trainer, module, _ = run(
        tmp_path,
        breaks,
        governor=GovernorConfig(window=8, patience=3),
        lifecycle=LifecycleConfig(kind="full", embargo_ticks=1, alpha_step=0.5),
        credit=CreditConfig(confidence=0.501),
        max_epochs=24,
    )
    assert all(p.isfinite().all() for p in module.parameters())
    assert trainer.global_step == 240 and trainer.callback_metrics["val_loss"] < 1.0
    if breaks.broken_at is None:
        pytest.skip("no seed came so far")


def test_without_the_governor_the_same_seed_ruins_the_run(tmp_path: Path) -> None:
    """What the other tests would not notice: that the seed does harm at all."""
    _, module, _ = run(tmp_path, Breaks(Stage.ACTIVE, 1e6), governor=GovernorConfig(enabled=False))
    assert not all(loss < 10 for loss in module.losses[30:])


@pytest.mark.slow
def test_the_run_ends_within_noise_of_one_without_the_seed(tmp_path: Path) -> None:
    """Over eight paired runs, design section 8: the 95 % interval of the difference contains 0."""
    differences = []
    for seed in range(8):
        governor = GovernorConfig(window=16, patience=4, every_n_steps=5)
        broken, *_ = run(tmp_path / f"{seed}b", Breaks(Stage.ACTIVE, 1e6), seed=seed, governor=governor, max_epochs=30)
        assert restored(tmp_path / f"{seed}b")
        plain, *_ = run(tmp_path / f"{seed}p", seed=seed, tamiyo=Never(), max_epochs=30)
        differences.append(float(broken.callback_metrics["val_loss"] - plain.callback_metrics["val_loss"]))
    bounds = paired_bounds(differences, 0.975)
    print(bounds)
    assert bounds.lower <= 0 <= bounds.upper or bounds.mean < 0, "the run lost by it"


def test_a_rollback_is_told_in_the_event_log_with_its_figures(tmp_path: Path) -> None:
    run(tmp_path, Breaks(Stage.ACTIVE, 1e6), governor=GovernorConfig(window=16, patience=4))
    (entry,) = restored(tmp_path)
    assert entry["reason"] == "the median of 4 losses is above its limit"
    assert entry["snapshot_step"] < entry["step"]
    assert entry["figures"]["loss"] > entry["figures"]["limit"] > entry["figures"]["median"]
    ended = [e for e in events(tmp_path) if e["reason"] == "rollback"]
    assert ended and all(e["to"] == "CULLED" and e["step"] == entry["step"] for e in ended)


def test_a_seed_that_was_kept_before_stays_and_goes_back_with_the_host(tmp_path: Path) -> None:
    script = [{"tick": 1, "layer": "net.2"}, {"tick": 6, "layer": "net.0", "force": True}]
    _, module, callback = run(
        tmp_path,
        Breaks(Stage.ACTIVE, 1e6),
        tamiyo=Scripted(events=script),
        governor=GovernorConfig(window=16, patience=4),
        max_epochs=12,
        loss_fn=lambda m, batch: m.loss(batch),
        lifecycle=LifecycleConfig(active_ticks=2, embargo_ticks=1, alpha_step=0.5),
        credit=CreditConfig(confidence=0.501),
    )
    assert restored(tmp_path)
    stages = {(r["layer"], r["stage"]) for r in callback.state_dict()["engine"]["records"]}
    assert ("net.2", "FOSSILIZED") in stages and ("net.0", "CULLED") in stages
    assert any(p.abs().sum() > 0 for p in hybrid_layers(module)["net.2"].morpho.bed_at(0).parameters())


def test_averaged_weights_are_taken_back_too(tmp_path: Path) -> None:
    average = EMAWeightAveraging(decay=0.9)
    trainer, module, _ = run(tmp_path, Breaks(Stage.ACTIVE, math.nan, host=True), average)
    assert restored(tmp_path)
    assert all(p.isfinite().all() for p in module.parameters())
    assert trainer.callback_metrics["val_loss"].isfinite()


def test_accumulated_gradients_are_dropped_with_the_rest(tmp_path: Path) -> None:
    trainer, module, _ = run(
        tmp_path, Breaks(Stage.ACTIVE, math.inf, after=13, host=True), accumulate_grad_batches=2, max_epochs=14
    )
    assert restored(tmp_path)
    assert all(p.isfinite().all() for p in module.parameters())


class WithManualLoss(Host):
    """Manual optimization gives the callback no loss: the weights are looked at before each validation."""

    def __init__(self) -> None:
        super().__init__(linear_net())
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(self.loss(batch))
        optimizer.step()


def test_without_a_loss_broken_weights_are_seen_before_validation(tmp_path: Path) -> None:
    trainer, module, _ = run(tmp_path, Breaks(Stage.ACTIVE, math.nan, host=True), module=WithManualLoss())
    (entry,) = restored(tmp_path)
    assert entry["reason"] == "weights are not finite"
    assert trainer.callback_metrics["val_loss"].isfinite()


def test_a_healthy_run_is_bit_equal_with_and_without_the_governor(tmp_path: Path) -> None:
    on = run(tmp_path / "on", governor=GovernorConfig(every_n_steps=3, always=True))[1]
    off = run(tmp_path / "off", governor=GovernorConfig(enabled=False))[1]
    assert on.losses == off.losses
    assert not restored(tmp_path / "on")


def test_a_resumed_run_rolls_back_to_what_the_checkpoint_held(tmp_path: Path) -> None:
    """Bit for bit: the uninterrupted run holds the same snapshot from the moment the checkpoint was written."""

    class Save(L.Callback):
        def on_train_epoch_end(self, trainer: L.Trainer, *_: Any) -> None:
            if trainer.global_step == 30 and not (tmp_path / "saved.ckpt").exists():
                trainer.save_checkpoint(tmp_path / "saved.ckpt")

    ends = []
    for name, ckpt in (("whole", None), ("resumed", tmp_path / "saved.ckpt")):
        L.seed_everything(0)
        governor = GovernorConfig(window=16, patience=4)
        callback = quick(lifecycle=LifecycleConfig(active_ticks=3, embargo_ticks=1), governor=governor)
        module = Host(linear_net())
        trainer = make_trainer(tmp_path / name, callback, Breaks(Stage.ACTIVE, 1e6, after=33), Save(), max_epochs=6)
        trainer.fit(module, **loaders(), ckpt_path=ckpt)
        assert len(restored(tmp_path / name)) == 1
        state = callback.state_dict()["engine"]
        ends.append([module.state_dict(), trainer.optimizers[0].state_dict(), state["governor"], state["records"]])
    assert_equal(*ends)
