"""The callback in real Lightning runs: what growth changes, and what it must leave alone."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torchmetrics import MeanMetric

from hosts import (
    Host,
    Record,
    assert_equal,
    conv_net,
    events,
    linear_net,
    loaders,
    make_trainer,
    moves,
    optimizer_state,
    quick,
)
from lightning_morpho import (
    AutoSize,
    BudgetConfig,
    CreditConfig,
    HybridKasminaLayer,
    LayersConfig,
    LifecycleConfig,
    MorphoCallback,
    Never,
    Periodic,
    RolloutConfig,
    Scripted,
    Stage,
    TelemetryConfig,
    Uniform,
    hybrid_layers,
)
from lightning_morpho.integrations import HeldOut, HeldOutCredit


def fit(root: Path, net: nn.Module, *callbacks: L.Callback, **options: Any) -> tuple[L.Trainer, Host]:
    L.seed_everything(0)
    module = Host(net)
    trainer = make_trainer(root, *callbacks, **options)
    trainer.fit(module, **loaders(shuffle=True))
    return trainer, module


# ---------------------------------------------------------------------------------------------------- dormant
@pytest.mark.parametrize("make_net", [linear_net, conv_net])
def test_dormant_training_is_bit_equal_to_training_without_the_callback(make_net: Any, tmp_path: Path) -> None:
    torch.manual_seed(1)
    net = make_net()
    bare, grown = Record(), Record()
    trainer_a, a = fit(tmp_path, copy.deepcopy(net), bare)
    trainer_b, b = fit(tmp_path, copy.deepcopy(net), MorphoCallback(tamiyo=Never()), grown)

    assert len(hybrid_layers(b)) == 2 and trainer_b.global_step == 50
    assert_equal(a.losses, b.losses)
    assert_equal(bare.trace, grown.trace)
    own = {k: v for k, v in b.state_dict().items() if ".morpho." not in k}
    assert_equal(dict(a.state_dict()), own)
    assert_equal(optimizer_state(trainer_a, a), optimizer_state(trainer_b, b))
    for key in ("val_loss", "val_acc"):
        assert_equal(trainer_a.callback_metrics[key], trainer_b.callback_metrics[key])


def test_a_cohort_that_selects_nobody_trains_without_growth_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="lightning.pytorch.utilities.rank_zero")
    callback = MorphoCallback(rollout=RolloutConfig(percentage=0))
    _, module = fit(tmp_path, linear_net(), callback, max_epochs=1)
    assert not hybrid_layers(module)
    assert callback.report is not None and not callback.report.taken
    assert "is not below 0 %" in str(callback.report)
    assert "trains without growth" in caplog.text


def test_a_chunk_local_blueprint_comes_with_a_hint_of_its_cost(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from lightning_morpho import BlueprintConfig

    caplog.set_level(logging.INFO, logger="lightning.pytorch.utilities.rank_zero")
    for seeds in (1, 3):
        caplog.clear()
        blueprint, layers = BlueprintConfig(kind="mlp"), LayersConfig(num_seeds=seeds)
        fit(tmp_path, linear_net(), quick(blueprint=blueprint, layers=layers), max_epochs=1)
        assert ("sees one chunk at a time" in caplog.text) == (seeds > 1)


# --------------------------------------------------------------------------------------------------- germination
@pytest.mark.parametrize("kind", ["neurons", "mlp"])
@pytest.mark.parametrize("make_net", [linear_net, conv_net])
def test_seeds_germinate_train_and_are_judged(make_net: Any, kind: str, tmp_path: Path) -> None:
    from lightning_morpho import BlueprintConfig

    callback = quick(blueprint=BlueprintConfig(kind=kind, hidden=16))
    trainer, module = fit(tmp_path, make_net(), callback, max_epochs=8)
    layers = hybrid_layers(module)
    path = [(e["from"], e["to"]) for e in events(tmp_path)]
    assert path[: len(layers)] == [("DORMANT", "LOADING")] * len(layers)
    judged = [e for e in events(tmp_path) if e["to"] in ("FOSSILIZED", "CULLED")]
    assert len(judged) == len(layers)
    for event in judged:
        assert (event["figures"]["lower"] > 0) == (event["to"] == "FOSSILIZED")
    assert (make_net, kind) != (linear_net, "neurons") or "FOSSILIZED" in {e["to"] for e in judged}
    for event in judged:
        bed = layers[event["layer"]].morpho.beds[0]
        held = event["to"] == "FOSSILIZED"
        assert all(bool(p.any()) == held for p in bed.parameters())


class Watch(L.Callback):
    """Loss of a fixed batch around each tick, and the seeds' state around each validation."""

    def __init__(self) -> None:
        self.batch = next(iter(loaders()["val_dataloaders"]))
        self.before: list[float] = []
        self.after: list[float] = []
        self.validated: list[tuple[Any, Any]] = []

    def _loss(self, module: Any) -> float:
        module.eval()
        with torch.no_grad():
            loss = module.loss(self.batch).item()
        module.train()
        return loss

    def _seeds(self, module: Any) -> Any:
        return copy.deepcopy([layer.morpho.get_extra_state() for layer in hybrid_layers(module).values()])

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.validated.append((self._seeds(pl_module), None))

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.validated[-1] = (self.validated[-1][0], self._seeds(pl_module))
        self.before.append(self._loss(pl_module))


class After(L.Callback):
    def __init__(self, watch: Watch) -> None:
        self.watch = watch

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.watch.after.append(self.watch._loss(pl_module))


@pytest.mark.parametrize("make_net", [linear_net, conv_net])
def test_germination_and_fossilization_leave_the_function_as_it_was(make_net: Any, tmp_path: Path) -> None:
    watch = Watch()
    module = NoLoss(make_net())  # kept without judgement, so that every stage occurs
    with pytest.warns(UserWarning, match="kept without judgement"):
        make_trainer(tmp_path, watch, quick(), After(watch), max_epochs=4).fit(module, **loaders())
    ticks = {e["tick"] for e in events(tmp_path) if e["to"] in ("LOADING", "ACTIVE", "FOSSILIZED")}
    assert {1, 2, 3} <= ticks
    for tick in ticks:
        assert abs(watch.after[tick - 1] - watch.before[tick - 1]) <= 1e-6, tick


def test_evaluation_changes_no_stage_age_or_alpha(tmp_path: Path) -> None:
    watch = Watch()
    trainer, module = fit(tmp_path, linear_net(), watch, quick(), max_epochs=5)
    assert len(watch.validated) == 5
    for before, after in watch.validated:
        assert_equal(before, after)
    seeds = watch._seeds(module)
    trainer.validate(module, loaders()["val_dataloaders"], verbose=False)
    assert_equal(seeds, watch._seeds(module))


@pytest.mark.parametrize("activation", ["relu", "gelu", "selu"])
def test_newborn_gradients_are_live_from_the_first_step(activation: str, tmp_path: Path) -> None:
    from lightning_morpho import BlueprintConfig

    class FirstGradient(L.Callback):
        seen: float | None = None

        def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, _: Any) -> None:
            gradient = pl_module.net[0].morpho.beds[0].w_out.grad
            if gradient is not None and self.seen is None:
                self.seen = float(gradient.abs().sum())

    probe = FirstGradient()
    callback = quick(blueprint=BlueprintConfig(kind="neurons", activation=activation))
    fit(tmp_path, linear_net(), callback, probe, max_epochs=2)
    assert probe.seen is not None and probe.seen > 0


def test_newborns_are_in_the_optimizer_move_and_are_saved(tmp_path: Path) -> None:
    trainer, module = fit(tmp_path, linear_net(), quick(), max_epochs=2)
    held = {id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]}
    beds = {n: p for n, p in module.named_parameters() if ".morpho." in n}
    assert beds and all(id(p) in held and p.requires_grad for p in beds.values())
    assert all(p.any() for n, p in beds.items() if n.endswith("w_out"))
    trainer.save_checkpoint(tmp_path / "grown.ckpt")
    saved = torch.load(tmp_path / "grown.ckpt", weights_only=True)
    for name, parameter in beds.items():
        assert torch.equal(saved["state_dict"][name], parameter)


# ------------------------------------------------------------------------------------------------- checkpoints
def _states(module: L.LightningModule) -> dict[str, Any]:
    return {k: v for k, v in module.state_dict().items()}


@pytest.mark.parametrize("stop", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("every_n_steps", [None, 7])
def test_a_resumed_run_continues_bit_equal(stop: int, every_n_steps: int | None, tmp_path: Path) -> None:
    def run(root: Path, epochs: int, ckpt: Path | None = None) -> Host:
        L.seed_everything(0)
        module = Host(linear_net())
        callback = quick(every_n_steps=every_n_steps, layers=LayersConfig(num_seeds=2))
        trainer = make_trainer(root, callback, max_epochs=epochs)
        trainer.fit(module, **loaders(), ckpt_path=ckpt)
        trainer.save_checkpoint(root / "last.ckpt")
        return module

    whole = run(tmp_path / "whole", 8)
    run(tmp_path / "part", stop)
    resumed = run(tmp_path / "part", 8, tmp_path / "part" / "last.ckpt")
    assert_equal(_states(whole), _states(resumed))
    a, b = (torch.load(tmp_path / d / "last.ckpt", weights_only=True) for d in ("whole", "part"))
    assert_equal(a["optimizer_states"], b["optimizer_states"])
    assert_equal(moves(tmp_path / "whole"), moves(tmp_path / "part"))
    mine = [k for k in a["callbacks"] if "Morpho" in k][0]
    assert_equal(a["callbacks"][mine], b["callbacks"][mine])


def test_resuming_from_a_checkpoint_written_at_validation_end_repeats_no_tick_and_skips_none(tmp_path: Path) -> None:
    def run(root: Path, ckpt: Path | None = None) -> list[Any]:
        L.seed_everything(0)
        saver = ModelCheckpoint(root, filename="{epoch}", save_top_k=-1, save_on_train_epoch_end=False)
        trainer = make_trainer(root, quick(), saver, max_epochs=6, enable_checkpointing=True)
        module = Host(linear_net())
        trainer.fit(module, **loaders(), ckpt_path=ckpt)
        return [moves(root), _states(module)]

    whole = run(tmp_path / "whole")
    for epoch in (0, 2):
        part = tmp_path / f"part{epoch}"
        part.mkdir()
        resumed = run(part, tmp_path / "whole" / f"epoch={epoch}.ckpt")
        assert_equal([m for m in whole[0] if m[0] > epoch], resumed[0])
        assert_equal(whole[1], resumed[1])


def test_a_grown_checkpoint_is_tested_strictly_with_equal_outputs(tmp_path: Path) -> None:
    trainer, module = fit(tmp_path, conv_net(), quick(), max_epochs=4)
    trainer.save_checkpoint(tmp_path / "grown.ckpt")
    fresh = Host(conv_net())
    tester = make_trainer(tmp_path, quick())
    tester.test(fresh, loaders()["val_dataloaders"], ckpt_path=tmp_path / "grown.ckpt", verbose=False)
    assert any(not layer.morpho.dormant for layer in hybrid_layers(fresh).values())
    x = torch.randn(5, 8)
    module.eval(), fresh.eval()
    assert torch.equal(module.net(x), fresh.net(x))


def test_a_checkpoint_configured_otherwise_is_refused_with_both_values_and_loads_nothing(tmp_path: Path) -> None:
    trainer, _ = fit(tmp_path, linear_net(), quick(layers=LayersConfig(num_seeds=2)), max_epochs=2)
    trainer.save_checkpoint(tmp_path / "two.ckpt")
    other = make_trainer(tmp_path, quick(layers=LayersConfig(num_seeds=3)))
    module = Host(linear_net())
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(ValueError, match=r"'num_seeds': 2.*'num_seeds': 3"):
        other.fit(module, **loaders(), ckpt_path=tmp_path / "two.ckpt")
    assert_equal(dict(before), {k: v for k, v in module.state_dict().items() if ".morpho." not in k})


# ------------------------------------------------------------------------------------------------------- credit
class Traces(Host):
    """Draws randomness and shows what validation leaves behind."""

    def validation_step(self, batch: Any, batch_idx: int) -> Tensor:
        torch.rand(1)
        return super().validation_step(batch, batch_idx)


def test_measuring_credit_leaves_metrics_buffers_and_random_state_as_they_were(tmp_path: Path) -> None:
    class Around(L.Callback):
        """Compares the trainer's and module's state just before and just after the judging tick."""

        def __init__(self, callback: MorphoCallback) -> None:
            self.callback = callback
            self.measured = 0

        def on_train_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
            engine = self.callback.engine
            assert engine is not None
            live = [(n, c) for n, layer in engine.layers.items() for c in layer.morpho.state.where(Stage.ACTIVE)]
            if not live:
                return
            before = self._all(trainer, pl_module)
            credit = HeldOutCredit(HeldOut(trainer, pl_module, self.callback.credit, None), engine.layers)
            results = credit(live, [tuple(live)])
            assert len(results) == len(live) + 1 and all(m.batches == 8 for m in results)
            assert_equal(before, self._all(trainer, pl_module))
            self.measured += 1

        def _all(self, trainer: L.Trainer, module: Any) -> Any:
            metric = {k: copy.deepcopy(v) for k, v in module.accuracy.metric_state.items()}
            return [
                dict(trainer.callback_metrics),
                metric,
                module.accuracy._update_count,
                id(module.accuracy),
                {k: v.clone() for k, v in module.named_buffers()},
                torch.get_rng_state(),
                list(module.validation_losses),
                [m.training for m in module.modules()],
                copy.deepcopy(trainer.val_dataloaders.generator),
            ]

    L.seed_everything(0)
    callback = quick(lifecycle=LifecycleConfig(active_ticks=100, timeout_ticks=100))
    around = Around(callback)
    trainer = make_trainer(tmp_path, callback, around, max_epochs=5)
    trainer.fit(Traces(conv_net()), **loaders())
    assert around.measured >= 2


def test_judging_changes_no_logged_metric_of_the_host(tmp_path: Path) -> None:
    kept = quick(lifecycle=LifecycleConfig(active_ticks=1))
    never_judged = quick(lifecycle=LifecycleConfig(active_ticks=90, timeout_ticks=90))
    net = linear_net()
    trainer_a, _ = fit(tmp_path / "a", copy.deepcopy(net), kept, max_epochs=3)
    trainer_b, _ = fit(tmp_path / "b", copy.deepcopy(net), never_judged, max_epochs=3)
    assert any("lower" in e["figures"] for e in events(tmp_path / "a"))
    assert not any("lower" in e["figures"] for e in events(tmp_path / "b"))
    for key in ("val_loss", "val_acc"):
        assert_equal(trainer_a.callback_metrics[key], trainer_b.callback_metrics[key])


class LogsOnly(Host):
    def validation_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
        super().validation_step(batch, batch_idx)


class NoLoss(Host):
    def validation_step(self, batch: Any) -> None:  # type: ignore[override]
        self.log("other", self.loss(batch))


def _judge_reasons(root: Path, module: L.LightningModule, callback: MorphoCallback, **data: Any) -> set[str]:
    make_trainer(root, callback, max_epochs=5).fit(module, **(loaders() | data))
    return {e["reason"] for e in events(root) if e["from"] == "ACTIVE"}


def test_a_loss_that_is_only_logged_is_found(tmp_path: Path) -> None:
    reasons = _judge_reasons(tmp_path, LogsOnly(linear_net()), quick())
    assert reasons and not any("unjudged" in r for r in reasons)


class LogsMetric(Host):
    """As lightning-hydra-template writes it: the loss is in a torchmetrics object, and nothing is returned."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__(net)
        self.mean = MeanMetric()

    def validation_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
        self.mean(self.loss(batch)) if self.global_step % 20 else self.mean.update(self.loss(batch))
        self.log("val/loss", self.mean)


@pytest.mark.parametrize("replicas", [1, 8])
def test_a_loss_logged_as_a_metric_object_judges_as_the_loss_itself_does(replicas: int, tmp_path: Path) -> None:
    figures, logged = [], []
    for name, host, monitor in (("plain", Host, "val_loss"), ("metric", LogsMetric, "val/loss")):
        L.seed_everything(0)
        callback = quick(credit=CreditConfig(monitor=monitor, replicas=replicas))
        trainer = make_trainer(tmp_path / name, callback, max_epochs=6)
        trainer.fit(host(linear_net()), **loaders())
        logged.append(float(trainer.callback_metrics[monitor]))
        figures.append([e["figures"] for e in events(tmp_path / name) if e["from"] == "ACTIVE"])
    assert figures[0] and "rise" in figures[0][0]
    for plain, metric in zip(*figures, strict=True):
        assert metric == pytest.approx(plain, rel=1e-5, abs=1e-7)  # a mean of float32 losses in another order
    assert logged[1] == pytest.approx(logged[0], rel=1e-5)


def test_without_a_held_out_loss_seeds_are_kept_unjudged_and_the_user_is_told(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="kept without judgement"):
        reasons = _judge_reasons(tmp_path, NoLoss(linear_net()), quick())
    assert reasons == {"unjudged: no held-out loss"}


def test_without_a_validation_loader_the_user_is_told_at_the_start(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="no validation"):
        reasons = _judge_reasons(tmp_path, Host(linear_net()), quick(), val_dataloaders=None)
    assert reasons == {"unjudged: no held-out loss"}


def test_a_users_own_loss_function_is_used(tmp_path: Path) -> None:
    seen = []

    def loss_fn(module: Any, batch: Any) -> Tensor:
        seen.append(module.training)
        return module.loss(batch)

    reasons = _judge_reasons(tmp_path, NoLoss(linear_net()), quick(loss_fn=loss_fn))
    assert seen and not any(seen)
    assert not any("unjudged" in r for r in reasons)


def test_a_loss_function_may_give_a_plain_number(tmp_path: Path) -> None:
    callback = quick(loss_fn=lambda module, batch: module.loss(batch).item())
    reasons = _judge_reasons(tmp_path, NoLoss(linear_net()), callback)
    assert reasons and not any("unjudged" in r for r in reasons)


def test_a_loss_function_that_gives_no_single_number_is_named(tmp_path: Path) -> None:
    callback = quick(loss_fn=lambda module, batch: module.net(batch[0]))
    with pytest.raises(TypeError, match=r"`loss_fn` must be a single number.*shape \(\d+, 3\)"):
        _judge_reasons(tmp_path, NoLoss(linear_net()), callback)


# ------------------------------------------------------------------------------------------------ time and place
def test_ticks_by_steps_follow_the_optimizer(tmp_path: Path) -> None:
    callback = quick(every_n_steps=4, tamiyo=Scripted(events=[{"tick": 2, "layer": "net.0", "chunks": [0]}]))
    fit(tmp_path, linear_net(), callback, max_epochs=2, accumulate_grad_batches=2)
    first = events(tmp_path)[0]
    assert (first["tick"], first["step"], first["layer"], first["chunk"]) == (2, 8, "net.0", 0)


def test_one_round_comes_at_its_share_of_training_in_every_layer(tmp_path: Path) -> None:
    fit(tmp_path, conv_net(), quick(tamiyo=Uniform(at=0.5)), max_epochs=6)
    births = [(e["step"], e["layer"]) for e in events(tmp_path) if e["to"] == "LOADING"]
    assert births == [(30, "net.1"), (30, "net.5")]


def test_one_round_waits_for_a_plateau_where_the_length_of_training_is_unknown(tmp_path: Path) -> None:
    class Stop(L.Callback):
        def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            trainer.should_stop = trainer.current_epoch >= 12

    callback = quick(tamiyo=Uniform(patience=2, min_delta=0.5))
    fit(tmp_path, linear_net(), callback, Stop(), max_epochs=-1)
    born = events(tmp_path)[0]
    assert born["tick"] == 3 and "fell by less than 50%" in born["reason"]


def test_a_layer_made_in_configure_model_grows(tmp_path: Path) -> None:
    class Late(Host):
        def configure_model(self) -> None:
            if not len(self.net):
                self.net.extend(linear_net())

    L.seed_everything(0)
    module = Late(nn.Sequential())
    make_trainer(tmp_path, quick(), max_epochs=3).fit(module, **loaders())
    assert {e["layer"] for e in events(tmp_path)} == {"net.0", "net.2"}
    assert "configure_model" not in vars(module)


def test_a_second_fit_goes_on_with_the_grown_model(tmp_path: Path) -> None:
    callback = quick()
    L.seed_everything(0)
    module = Host(linear_net())
    make_trainer(tmp_path, callback, max_epochs=4).fit(module, **loaders())
    grown = [layer.morpho.events for layer in hybrid_layers(module).values()]
    make_trainer(tmp_path, callback, max_epochs=2).fit(module, **loaders())
    assert [layer.morpho.events for layer in hybrid_layers(module).values()] == grown
    assert max(e["tick"] for e in events(tmp_path)) > 1


def test_a_user_may_germinate_and_cancel_in_the_middle_of_training(tmp_path: Path) -> None:
    class Gardener(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
            if trainer.global_step == 5:
                pl_module.net[0].request_germination()
            if trainer.global_step == 25:
                pl_module.net[0].cancel_germination(0)

    patient = LifecycleConfig(active_ticks=50, embargo_ticks=1, alpha_step=0.5)
    callback = quick(tamiyo=Never(), lifecycle=patient)
    trainer, module = fit(tmp_path, linear_net(), Gardener(), callback, max_epochs=6)
    path = [(e["from"], e["to"], e["reason"]) for e in events(tmp_path)]
    assert path == [
        ("DORMANT", "LOADING", "requested"),
        ("LOADING", "ACTIVE", "warm-up over"),
        ("ACTIVE", "CULLED", "cancelled"),
        ("CULLED", "DORMANT", "embargo over"),
    ]
    assert not any(p in trainer.optimizers[0].state for p in module.net[0].morpho.parameters())


def test_the_budget_is_never_exceeded(tmp_path: Path) -> None:
    callback = quick(budget=BudgetConfig(parameters=150), tamiyo=Periodic(every=1, events=9))
    _, module = fit(tmp_path, linear_net(), callback, max_epochs=4)
    added = sum(p.numel() for n, p in module.named_parameters() if ".morpho." in n)
    assert 0 < added <= 150
    assert callback.report is not None and "is spent" in str(callback.report)


# ---------------------------------------------------------------------------------------------------- telemetry
def test_what_is_logged_can_be_read_back(tmp_path: Path) -> None:
    import csv

    from lightning.pytorch.loggers import CSVLogger

    logger = CSVLogger(tmp_path)
    fit(tmp_path, linear_net(), quick(), logger=logger, max_epochs=4, log_every_n_steps=1)
    with open(Path(logger.log_dir) / "metrics.csv") as file:
        everything = list(csv.DictReader(file))
    rows = [row for row in everything if row["morpho/run/added_parameters"]]
    layers = [row for row in everything if row["morpho/net.0/variance"]]
    assert [float(r["morpho/run/germinations"]) for r in rows] == [2.0] * 4
    assert float(rows[-1]["morpho/run/added_parameters"]) > 0
    assert len(layers) == 4 and float(layers[0]["morpho/net.0/variance"]) > 0
    assert (Path(logger.log_dir) / "morpho_events.jsonl").exists()


def test_growth_is_visible_to_callbacks_that_monitor_metrics(tmp_path: Path) -> None:
    trainer, _ = fit(tmp_path, linear_net(), quick(), max_epochs=2)
    assert trainer.callback_metrics["morpho/run/seeds_live"] == 2


def test_the_table_of_seeds_is_printed_at_the_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(tmp_path, linear_net(), quick(telemetry=TelemetryConfig()), max_epochs=4)
    printed = capsys.readouterr().out
    assert "net.0[0]" in printed and "FOSSILIZED" in printed


# ---------------------------------------------------------------------------------------------------- bad input
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"layers": "default"}, TypeError, "bare string 'default'"),
        ({"tamiyo": "periodic"}, TypeError, "bare string 'periodic'"),
        ({"tamiyo": AutoSize}, TypeError, r"the class itself: write `AutoSize\(\)`"),
        ({"rollout": {"enabled": True}}, TypeError, r"instance of RolloutConfig, got dict.*`RolloutConfig\(...\)`"),
        ({"loss_fn": "val_loss"}, ValueError, r"`loss_fn` must be a function.*got 'val_loss'"),
        ({"preset": "adapt"}, ValueError, "`preset` can't be 'adapt'.*Known: adapt_pretrained"),
        (
            {"layers": LayersConfig(kinds={"net.*": "neuron"})},
            ValueError,
            r"`layers.kinds\['net.\*'\]` can't be 'neuron'",
        ),
        ({"every_n_steps": 0}, ValueError, "at least 1 optimizer step"),
        ({"model_id": ""}, ValueError, "`model_id`"),
    ],
)
def test_bad_arguments_are_refused_when_the_callback_is_made(options: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        MorphoCallback(**options)


def test_an_unknown_blueprint_is_refused_with_the_known_ones() -> None:
    from lightning_morpho import BlueprintConfig

    with pytest.raises(
        ValueError, match=r"`blueprint.kind` can't be 'neuron': did you mean `neurons`\? Known: affine, bl"
    ):
        MorphoCallback(blueprint=BlueprintConfig(kind="neuron"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": LayersConfig(num_seeds=7)}, "between 1 and the 6 features, got 7"),
        ({"layers": LayersConfig(include="encoder.*")}, "matches none of the model's 2 eligible layers"),
        ({"layers": LayersConfig(exclude="encoder.*")}, "matches none"),
        ({"budget": BudgetConfig(parameters=10)}, "too small for one bed"),
    ],
)
def test_a_configuration_that_does_not_fit_the_model_changes_nothing(
    options: Any, message: str, tmp_path: Path
) -> None:
    module = Host(linear_net())
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path, MorphoCallback(**options)).fit(module, **loaders())
    assert not any(isinstance(m, HybridKasminaLayer) for m in module.modules())
    assert_equal(dict(before), dict(module.state_dict()))


def test_a_second_callback_in_one_trainer_is_refused(tmp_path: Path) -> None:
    module = Host(linear_net())
    with pytest.raises(ValueError, match="takes one MorphoCallback, got 2"):
        make_trainer(tmp_path, MorphoCallback(), MorphoCallback()).fit(module, **loaders())
    assert not hybrid_layers(module)


def test_an_exception_in_training_leaves_the_model_usable(tmp_path: Path) -> None:
    class Fails(Host):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            if self.trainer.global_step == 15:
                raise RuntimeError("user's bug")
            return super().training_step(batch, batch_idx)

    L.seed_everything(0)
    module = Fails(linear_net())
    with pytest.raises(RuntimeError, match="user's bug"):
        make_trainer(tmp_path, quick()).fit(module, **loaders())
    assert all(layer.morpho.observer is None for layer in hybrid_layers(module).values())
    copy.deepcopy(module)
    module.net(torch.randn(2, 8))
