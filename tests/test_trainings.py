"""Growth in the trainings that people run: optimizers, schedules, precisions, ways of building, Trainer's corners."""

from __future__ import annotations

import copy
import pickle
import random
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.strategies import ParallelStrategy
from lightning.pytorch.tuner import Tuner
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, IterableDataset

from hosts import Host, assert_equal, events, linear_net, loaders, make_data, make_trainer, moves, quick
from lightning_morpho import (
    BlueprintConfig,
    GrowthEngine,
    LayersConfig,
    LifecycleConfig,
    LifecycleError,
    LoadsGrown,
    MorphoCallback,
    MorphoConfig,
    Never,
    Observation,
    OptimizerLink,
    Scripted,
    Stage,
    Tamiyo,
    WarmupConfig,
    hybrid_layers,
    load_grown_,
    morph_,
)
from lightning_morpho.tamiyo import Cull, Decision, Germinate, Keep


class Configured(Host):
    """A host with a given optimizer."""

    def __init__(self, make: Callable[[Any], Any], net: nn.Module | None = None) -> None:
        super().__init__(linear_net() if net is None else net)
        self.make = make

    def configure_optimizers(self) -> Any:
        return self.make(self)


class QuantisedMomentum(torch.optim.Optimizer):
    """SGD whose momentum is kept in int8 with one scale, made when a parameter first has a gradient."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                old = state["q"].float() * state["scale"] if state else torch.zeros_like(p)
                momentum = 0.9 * old + p.grad
                state["scale"] = momentum.abs().max().clamp(min=1e-12) / 127
                state["q"] = (momentum / state["scale"]).round().to(torch.int8)
                p -= group["lr"] * momentum
        return loss


OPTIMIZERS: dict[str, Callable[[Any], Any]] = {
    "sgd": lambda m: torch.optim.SGD(m.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3),
    "adam": lambda m: torch.optim.Adam(m.parameters(), lr=1e-2),
    "adamw_foreach": lambda m: torch.optim.AdamW(m.parameters(), lr=1e-2, foreach=True),
    "adamw_fused": lambda m: torch.optim.AdamW(m.parameters(), lr=1e-2, fused=True),
    "rmsprop": lambda m: torch.optim.RMSprop(m.parameters(), lr=1e-3),
    "adagrad": lambda m: torch.optim.Adagrad(m.parameters(), lr=1e-2),
    "quantised": lambda m: QuantisedMomentum(m.parameters(), lr=0.02),
}


class StepWatch(L.Callback):
    """Largest move of any newborn's weight in each optimizer step, and incumbents around each tick."""

    def __init__(self, lr: float = 0.0) -> None:
        self.moves: list[float] = []
        self.previous: dict[str, Tensor] = {}

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        self.previous = {n: p.detach().clone() for n, p in pl_module.named_parameters() if p.requires_grad}

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        named = dict(pl_module.named_parameters())
        moved = [(named[n] - p).abs().max().item() for n, p in self.previous.items() if ".morpho." in n]
        if moved:
            self.moves.append(max(moved))


def train(root: Path, module: L.LightningModule, *callbacks: L.Callback, **options: Any) -> L.Trainer:
    trainer = make_trainer(root, *callbacks, **options)
    trainer.fit(module, **loaders())
    return trainer


# --------------------------------------------------------------------------------------------------- optimizers
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_any_optimizer_trains_newborns_after_a_gentle_start(name: str, tmp_path: Path) -> None:
    def first_moves(warmup: WarmupConfig) -> list[float]:
        L.seed_everything(0)
        watch = StepWatch()
        callback = quick(warmup=warmup, lifecycle=LifecycleConfig(active_ticks=90))
        train(tmp_path, Configured(OPTIMIZERS[name]), callback, watch, max_epochs=4)
        return watch.moves

    warmed = first_moves(WarmupConfig(steps=20, min_steps=20, share=0.0))
    cold = first_moves(WarmupConfig(steps=0))
    assert len(warmed) == len(cold) == 30
    # Step k moves by (k + 1) / 20 of what the optimizer asks for; the first step asks for the same in both.
    assert warmed[0] == pytest.approx(cold[0] / 20, rel=1e-3)
    assert max(warmed[20:]) > 0


def test_without_warmup_adam_moves_no_newborn_weight_by_more_than_its_rate(tmp_path: Path) -> None:
    """A row in a shared, aged parameter would overshoot up to 5.9 times; the bound of Adam's own start is 1.2."""
    script = [{"tick": 1, "layer": "net.0"}, {"tick": 8, "layer": "net.0"}]
    L.seed_everything(0)
    watch = StepWatch()

    class CullOnce(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
            if trainer.global_step == 35:
                pl_module.net[0].cancel_germination(0)

    callback = quick(
        tamiyo=Scripted(events=script),
        warmup=WarmupConfig(steps=0),
        lifecycle=LifecycleConfig(active_ticks=90, embargo_ticks=0, alpha_step=1.0),
    )
    train(tmp_path, Configured(OPTIMIZERS["adam"]), callback, CullOnce(), watch, max_epochs=11)
    assert [m[2:] for m in moves(tmp_path)].count(("DORMANT", "LOADING")) == 2
    newborn_steps = watch.moves[:20] + watch.moves[-30:-10]
    assert max(newborn_steps) <= 1.2e-2


@pytest.mark.parametrize("name", ["adam", "adamw_fused", "rmsprop", "quantised"])
def test_a_germination_leaves_the_incumbents_state_bit_equal(name: str, tmp_path: Path) -> None:
    class AroundTick(L.Callback):
        before: Any = None
        compared = 0

        def _incumbents(self, trainer: L.Trainer, module: L.LightningModule) -> Any:
            named = [(n, p) for n, p in module.named_parameters() if ".morpho." not in n]
            state = trainer.optimizers[0].state
            return copy.deepcopy([(n, p.detach(), dict(state[p])) for n, p in named])

        def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            self.before = self._incumbents(trainer, pl_module)

        def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            assert_equal(self.before, self._incumbents(trainer, pl_module))
            self.compared += 1

    L.seed_everything(0)
    around = AroundTick()
    train(tmp_path, Configured(OPTIMIZERS[name]), quick(), around, max_epochs=4)
    assert around.compared == 4 and events(tmp_path)


def test_beds_join_the_users_parameter_groups(tmp_path: Path) -> None:
    def groups(module: Any) -> Any:
        weights = [p for p in module.parameters() if p.ndim > 1 and p.requires_grad]
        biases = [p for p in module.parameters() if p.ndim <= 1 and p.requires_grad]
        return torch.optim.AdamW([{"params": weights, "weight_decay": 0.1}, {"params": biases, "weight_decay": 0.0}])

    module = Configured(groups)
    trainer = train(tmp_path, module, quick(), max_epochs=3)
    decayed = {id(p) for p in trainer.optimizers[0].param_groups[0]["params"]}
    everywhere = [id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]]
    for layer in hybrid_layers(module).values():
        assert all((id(p) in decayed) == (p.ndim > 1) for p in layer.morpho.parameters())
    assert len(everywhere) == len(set(everywhere))


SCHEDULES = ["one_cycle", "cosine", "plateau"]


def scheduled(kind: str) -> Callable[[Any], Any]:
    """Adam under a schedule."""

    def make(module: Any) -> Any:
        optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
        if kind == "one_cycle":
            scheduler: Any = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=40)
        elif kind == "cosine":
            scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 40)
        else:
            scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, threshold=0.5)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "val_loss"}}
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    return make


@pytest.mark.parametrize("kind", SCHEDULES)
def test_learning_rate_schedules_go_on_through_growth(kind: str, tmp_path: Path) -> None:
    rates = []
    for callbacks in ([], [quick()]):
        L.seed_everything(0)
        trainer = train(tmp_path / str(len(rates)), Configured(scheduled(kind)), *callbacks, max_epochs=4)
        rates.append([group["lr"] for group in trainer.optimizers[0].param_groups])
    assert rates[0] == rates[1] and len(rates[0]) == 1


@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize("blueprint", ["neurons", "mlp", "span", "block"])
def test_newborns_start_gently_under_every_schedule(kind: str, blueprint: str, tmp_path: Path) -> None:
    def first_move(warmup: WarmupConfig) -> float:
        L.seed_everything(0)
        watch = StepWatch()
        callback = quick(
            warmup=warmup, blueprint=BlueprintConfig(kind=blueprint), lifecycle=LifecycleConfig(active_ticks=90)
        )
        train(tmp_path, Configured(scheduled(kind)), callback, watch, max_epochs=3)
        return watch.moves[0]

    warmed = first_move(WarmupConfig(steps=20, min_steps=20, share=0.0, min_rate=0.0))
    assert warmed == pytest.approx(first_move(WarmupConfig(steps=0, min_rate=0.0)) / 20, rel=1e-3)


@pytest.mark.parametrize("norm", ["norm", "value"])
def test_gradient_clipping_counts_live_beds_only(norm: str, tmp_path: Path) -> None:
    class Norm(L.Callback):
        seen: list[float] = []

        def on_before_zero_grad(self, trainer: L.Trainer, pl_module: L.LightningModule, _: Any) -> None:
            grads = [p.grad for p in pl_module.parameters() if p.grad is not None]
            if grads and norm == "norm":
                self.seen.append(torch.stack([g.norm() for g in grads]).norm().item())
            for name, p in pl_module.named_parameters():
                assert p.requires_grad or p.grad is None, name

    L.seed_everything(0)
    probe = Norm()
    probe.seen = []
    train(tmp_path, Host(linear_net()), quick(), probe, gradient_clip_val=0.1, gradient_clip_algorithm=norm)
    assert norm == "value" or max(probe.seen) <= 0.1 + 1e-6


def test_weight_decay_moves_no_empty_row(tmp_path: Path) -> None:
    module = Configured(lambda m: torch.optim.AdamW(m.parameters(), lr=1e-2, weight_decay=0.5), linear_net())
    script = Scripted(events=[{"tick": 1, "layer": "net.0", "chunks": [1]}])
    callback = quick(tamiyo=script, blueprint=BlueprintConfig(kind="mlp"), layers=LayersConfig(num_seeds=3))
    train(tmp_path, module, callback, max_epochs=3)
    for parameter in module.net[0].morpho.beds[0].parameters():
        assert parameter[1].any() and not parameter[0].any() and not parameter[2].any()
    assert not any(p.any() for p in module.net[2].morpho.parameters())


class GAN(L.LightningModule):
    """Two optimizers, manual optimization."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.generator = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8))
        self.critic = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1))

    def training_step(self, batch: Any, batch_idx: int) -> None:
        real, optimizers = batch[0], self.optimizers()
        for index, optimizer in enumerate(optimizers):  # type: ignore[arg-type, union-attr]
            fake = self.generator(torch.randn(len(real), 4))
            score = nn.functional.softplus(-self.critic(fake)).mean()
            if index:
                score = nn.functional.softplus(-self.critic(real)).mean() - score
            self.toggle_optimizer(optimizer)
            optimizer.zero_grad()
            self.manual_backward(score)
            optimizer.step()
            self.untoggle_optimizer(optimizer)

    def validation_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.critic(batch[0]).square().mean()

    def configure_optimizers(self) -> Any:
        return [torch.optim.Adam(net.parameters(), lr=1e-3) for net in (self.generator, self.critic)]


def test_each_bed_of_a_gan_is_trained_by_its_own_optimizer_alone(tmp_path: Path) -> None:
    L.seed_everything(0)
    module = GAN()
    callback = quick(lifecycle=LifecycleConfig(active_ticks=90))
    trainer = train(tmp_path, module, callback, max_epochs=3)
    for optimizer, net in zip(trainer.optimizers, (module.generator, module.critic), strict=True):
        beds = [p for n, p in net.named_parameters() if ".morpho." in n]
        assert beds and all(p in optimizer.state for p in beds)
        assert {int(optimizer.state[p]["step"]) for p in beds} == {20}
    steps = {layer.morpho.beds[0].steps for layer in hybrid_layers(module).values()}
    assert steps == {20}


# -------------------------------------------------------------------------------------------------- precision
@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
@pytest.mark.parametrize("kind", ["neurons", "mlp"])
def test_growth_works_in_other_precisions(precision: Any, kind: str, tmp_path: Path) -> None:
    class Cast(Host):
        def loss(self, batch: Any) -> Tensor:
            x, y = batch
            return nn.functional.cross_entropy(self.net(x.to(self.net[0].weight.dtype)), y)

    L.seed_everything(0)
    module = Cast(linear_net())
    callback = quick(blueprint=BlueprintConfig(kind=kind))
    train(tmp_path, module, callback, precision=precision, max_epochs=6)
    expected = {"bf16-mixed": torch.float32, "bf16-true": torch.bfloat16, "64-true": torch.float64}[precision]
    assert {p.dtype for n, p in module.named_parameters() if ".morpho." in n} == {expected}
    judged = [e for e in events(tmp_path) if e["from"] == "ACTIVE"]
    assert judged and not any(e["reason"].startswith("unjudged") for e in judged)


# ------------------------------------------------------------------------------------------------- checkpoints
def test_a_run_made_without_the_callback_goes_on_with_it(tmp_path: Path) -> None:
    L.seed_everything(0)
    bare = Host(linear_net())
    trainer = train(tmp_path / "a", bare, max_epochs=2)
    trainer.save_checkpoint(tmp_path / "plain.ckpt")
    bare = Host(linear_net())
    make_trainer(tmp_path / "a", max_epochs=4).fit(bare, **loaders(), ckpt_path=tmp_path / "plain.ckpt")

    grown = Host(linear_net())
    other = make_trainer(tmp_path / "b", MorphoCallback(tamiyo=Never()), max_epochs=4)
    other.fit(grown, **loaders(), ckpt_path=tmp_path / "plain.ckpt")
    for name, parameter in bare.named_parameters():
        assert torch.equal(parameter, dict(grown.named_parameters())[name]), name


@pytest.mark.parametrize("kind", ["neurons", "mlp"])
def test_a_grown_checkpoint_loads_without_the_callback(kind: str, tmp_path: Path) -> None:
    L.seed_everything(0)
    grown = Host(linear_net())
    blueprint = BlueprintConfig(kind=kind, hidden=5, activation="gelu")
    trainer = train(tmp_path, grown, quick(blueprint=blueprint, layers=LayersConfig(num_seeds=2)), max_epochs=3)
    trainer.save_checkpoint(tmp_path / "grown.ckpt")
    plain = Host(linear_net())
    assert load_grown_(plain, tmp_path / "grown.ckpt") == ["net.0", "net.2"]
    x = torch.randn(4, 8)
    assert torch.equal(plain.net(x), grown.net(x))
    assert any(p.requires_grad for n, p in plain.named_parameters() if ".morpho." in n)


def test_the_end_of_a_fit_says_how_what_grew_is_loaded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """torch's own error, "Unexpected key(s) in state_dict", names no way out."""
    for grow, told in ((Never(), 0), (quick().tamiyo, 1)):
        caplog.clear()
        with caplog.at_level("INFO", "lightning.pytorch"):
            train(tmp_path, Host(linear_net()), quick(tamiyo=grow), max_epochs=2)
        assert caplog.text.count("`Host.load_from_checkpoint(path)`") == told


def test_a_grown_checkpoint_that_does_not_fit_changes_nothing(tmp_path: Path) -> None:
    L.seed_everything(0)
    grown = Host(linear_net())
    trainer = train(tmp_path, grown, quick(), max_epochs=2)
    trainer.save_checkpoint(tmp_path / "grown.ckpt")
    other = nn.Sequential(nn.Linear(8, 3))
    with pytest.raises(ValueError, match=r"holds seeds in \['net.0', 'net.2'\]"):
        load_grown_(other, tmp_path / "grown.ckpt")
    assert not hybrid_layers(other)


def test_a_checkpoint_grown_with_another_activation_is_refused(tmp_path: Path) -> None:
    L.seed_everything(0)
    trainer = train(
        tmp_path, Host(linear_net()), quick(blueprint=BlueprintConfig(kind="neurons", activation="gelu")), max_epochs=2
    )
    trainer.save_checkpoint(tmp_path / "gelu.ckpt")
    with pytest.raises(ValueError, match="'activation': 'gelu'.*'activation': 'relu'"):
        make_trainer(tmp_path, quick()).fit(Host(linear_net()), **loaders(), ckpt_path=tmp_path / "gelu.ckpt")


def test_an_optimizer_of_another_run_is_refused_with_both_counts(tmp_path: Path) -> None:
    L.seed_everything(0)
    trainer = train(tmp_path, Configured(lambda m: torch.optim.Adam(m.net[0].parameters())), max_epochs=1)
    trainer.save_checkpoint(tmp_path / "part.ckpt")
    with pytest.raises(ValueError, match=r"holds 2 parameters in group 0, this run's 4"):
        make_trainer(tmp_path, quick()).fit(Host(linear_net()), **loaders(), ckpt_path=tmp_path / "part.ckpt")


# ------------------------------------------------------------------------------------------- ways of building
def _shared() -> nn.Module:
    a, b = nn.Linear(8, 8), nn.Linear(8, 8)
    b.weight = a.weight
    return nn.Sequential(a, nn.ReLU(), b, nn.ReLU(), nn.Linear(8, 3))


def _pruned() -> nn.Module:
    net = linear_net()
    prune.l1_unstructured(net[0], "weight", amount=0.5)
    return net


def _called_twice() -> nn.Module:
    layer = nn.Linear(8, 8)
    return nn.Sequential(layer, nn.ReLU(), layer, nn.Linear(8, 3))


BUILDS = {"tied": _shared, "pruned": _pruned, "called_twice": _called_twice}


@pytest.mark.parametrize("build", BUILDS)
def test_unusual_layers_grow(build: str, tmp_path: Path) -> None:
    L.seed_everything(0)
    module = Host(BUILDS[build]())
    train(tmp_path, module, quick(), max_epochs=4)
    assert {e["layer"] for e in events(tmp_path)} == set(hybrid_layers(module))
    assert any(e["to"] == "FOSSILIZED" for e in events(tmp_path))
    if build == "pruned":
        assert (module.net[0].weight == 0).float().mean() >= 0.5
    if build == "tied":
        assert module.net[0].weight is module.net[2].weight


@pytest.mark.parametrize("norm", [parametrizations.weight_norm, parametrizations.spectral_norm])
def test_parametrized_layers_are_left_out_with_the_reason(norm: Any, tmp_path: Path) -> None:
    L.seed_everything(0)
    net = linear_net()
    norm(net[0])
    callback = quick()
    module = Host(net)
    train(tmp_path, module, callback, max_epochs=3)
    assert set(hybrid_layers(module)) == {"net.2"}
    assert callback.report is not None
    reasons = {m.name: (m.type, m.reason) for m in callback.report.modules}
    assert "exactly" in reasons["net.0"][1]


def test_layers_made_in_setup_grow(tmp_path: Path) -> None:
    class Late(Host):
        def __init__(self) -> None:
            super().__init__(nn.Identity())

        def setup(self, stage: str) -> None:
            self.net = linear_net()

    L.seed_everything(0)
    train(tmp_path, Late(), quick(), max_epochs=2)
    assert {e["layer"] for e in events(tmp_path)} == {"net.0", "net.2"}


@pytest.mark.parametrize("kind", ["neurons", "span"])
@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_changes_nothing(reentrant: bool, kind: str, tmp_path: Path) -> None:
    """The forward pass is run a second time in the backward pass: no seed may count it, or be born in between."""

    class Recomputes(Host):
        def loss(self, batch: Any) -> Tensor:
            if not self.training:
                return super().loss(batch)
            x, y = batch
            return nn.functional.cross_entropy(checkpoint(self.net, x.requires_grad_(), use_reentrant=reentrant), y)

    ends = []
    for host in (Host, Recomputes):
        L.seed_everything(0)
        module = host(linear_net())
        train(tmp_path / host.__name__, module, quick(blueprint=BlueprintConfig(kind=kind)), max_epochs=4)
        ends.append((dict(module.state_dict()), moves(tmp_path / host.__name__)))
    assert_equal(*ends)


def test_an_optimizer_that_replaces_another_in_the_middle_is_refused(tmp_path: Path) -> None:
    class Replace(L.Callback):
        def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            if trainer.current_epoch == 2:
                trainer.strategy.optimizers = [torch.optim.SGD(pl_module.parameters(), lr=0.1)]

    with pytest.raises(LifecycleError, match=r"SGD came in the middle of the run.*begin another fit"):
        train(tmp_path, Host(linear_net()), quick(), Replace())


def test_a_grown_module_is_copied_and_pickled_after_training(tmp_path: Path) -> None:
    L.seed_everything(0)
    module = Host(linear_net())
    train(tmp_path, module, quick(), max_epochs=3)
    x = torch.randn(4, 8)
    for twin in (copy.deepcopy(module.net), pickle.loads(pickle.dumps(module.net))):
        assert torch.equal(twin(x), module.net(x))
        twin[0].weight.data.zero_()
        assert not torch.equal(twin(x), module.net(x))


# --------------------------------------------------------------------------------------------- Trainer's corners
def test_the_learning_rate_finder_leaves_no_growth_behind(tmp_path: Path) -> None:
    L.seed_everything(0)
    module = Host(linear_net())
    callback = quick(every_n_steps=5)
    trainer = make_trainer(tmp_path, callback, max_epochs=2)
    data = loaders()
    Tuner(trainer).lr_find(module, **data, num_training=20, update_attr=True)
    assert all(layer.morpho.dormant for layer in hybrid_layers(module).values())
    trainer.fit(module, **data)
    assert any(not layer.morpho.dormant for layer in hybrid_layers(module).values())


def test_fast_dev_run_works_and_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    train(tmp_path, Host(linear_net()), quick(), fast_dev_run=True)
    assert not list(tmp_path.rglob("*.jsonl"))


class Stream(IterableDataset):  # type: ignore[type-arg]
    """Samples without end."""

    def __iter__(self) -> Iterator[Any]:
        data = make_data(64, 0)
        while True:
            yield from data


def test_one_endless_epoch_grows_by_steps(tmp_path: Path) -> None:
    L.seed_everything(0)
    callback = quick(every_n_steps=10)
    trainer = make_trainer(tmp_path, callback, max_steps=60, max_epochs=-1, val_check_interval=20)
    trainer.fit(Host(linear_net()), DataLoader(Stream(), batch_size=16), loaders()["val_dataloaders"])
    assert any("lower" in e["figures"] for e in events(tmp_path))


@pytest.mark.parametrize(
    ("length", "words"),
    [
        ({"max_steps": 8, "max_epochs": -1}, "may have none.*`every_n_steps=0.05`"),
        ({"max_epochs": 2, "limit_train_batches": 3}, "has 2 of them.*`every_n_steps=0.05`"),
        ({"max_steps": 9, "max_epochs": -1, "limit_train_batches": 4, "accumulate_grad_batches": 2}, None),
    ],
)
def test_a_training_with_hardly_a_tick_says_so(length: dict[str, Any], words: str | None, tmp_path: Path) -> None:
    """With the defaults an endless epoch had its only tick at the very end: nothing grew, without a word."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        train = DataLoader(Stream(), batch_size=16) if words and "none" in words else loaders()["train_dataloaders"]
        make_trainer(tmp_path, MorphoCallback(), **length).fit(Host(linear_net()), train, loaders()["val_dataloaders"])
    texts = [str(w.message) for w in told if "decision ticks are at epochs' ends" in str(w.message)]
    assert len(texts) == (words is not None) and all(re.search(words or "", text) for text in texts)


def test_of_several_validation_loaders_the_first_one_gives_the_loss(tmp_path: Path) -> None:
    """Policies that watch it, and the ramp, had none: Lightning adds the loader's number to the metric's name."""

    class Several(Host):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:  # type: ignore[override]
            self.log("val_loss", self.loss(batch) * (1 + dataloader_idx))

    L.seed_everything(0)
    callback = quick()
    held_out = loaders()["val_dataloaders"]
    trainer = make_trainer(tmp_path, callback, max_epochs=2)
    trainer.fit(Several(linear_net()), loaders()["train_dataloaders"], [held_out, held_out])
    losses = callback.state_dict()["engine"]["losses"]
    assert losses[-1] == float(trainer.callback_metrics["val_loss/dataloader_idx_0"])


@pytest.mark.parametrize("mode", ["min_size", "max_size"])
def test_validation_loaders_that_are_read_together_give_their_batches_together(mode: Any, tmp_path: Path) -> None:
    """A tick gave `validation_step` a batch of the first loader alone, and the run ended there."""

    class Joint(Host):
        def validation_step(self, batch: Any, batch_idx: int) -> Tensor:  # type: ignore[override]
            loss = sum((self.loss(part) for part in batch.values() if part is not None), torch.zeros(()))
            self.log("val_loss", loss)
            return loss

    L.seed_everything(0)
    trainer = make_trainer(tmp_path, quick(), max_epochs=4)
    held_out = {name: DataLoader(make_data(count, 1), batch_size=16) for name, count in (("a", 128), ("b", 64))}
    trainer.fit(Joint(linear_net()), loaders()["train_dataloaders"], CombinedLoader(held_out, mode))
    judged = [e for e in events(tmp_path) if e["from"] == "ACTIVE"]
    assert judged and {e["figures"]["batches"] for e in judged} == {4 if mode == "min_size" else 8}


def test_a_validation_step_that_runs_in_a_validation_alone_is_refused_with_the_way_out(tmp_path: Path) -> None:
    """All that one saw was `no attribute 'seen'`, an epoch later than the code had worked."""

    class Collects(Host):
        def on_validation_epoch_start(self) -> None:
            self.seen: list[Any] = []

        def validation_step(self, batch: Any, batch_idx: int) -> Tensor:
            self.seen.append(batch_idx)
            return super().validation_step(batch, batch_idx)

        def on_validation_epoch_end(self) -> None:
            del self.seen

    with pytest.raises(RuntimeError, match=r"between two epochs.*'seen'.*`loss_fn="):
        train(tmp_path, Collects(linear_net()), quick())
    train(tmp_path, Collects(linear_net()), quick(loss_fn=lambda module, batch: module.loss(batch)), max_epochs=4)
    assert any("lower" in e["figures"] for e in events(tmp_path))


@pytest.mark.parametrize("use", ["validate", "test", "predict"])
def test_a_grown_checkpoint_is_evaluated_as_it_was_saved(use: str, tmp_path: Path) -> None:
    class Predicts(Host):
        def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
            return self.net(batch[0])

    L.seed_everything(0)
    module = Predicts(linear_net())
    trainer = train(tmp_path, module, quick(), max_epochs=4)
    trainer.save_checkpoint(tmp_path / "grown.ckpt")
    held_out = loaders()["val_dataloaders"]
    expected = getattr(trainer, use)(module, held_out)
    fresh = make_trainer(tmp_path, quick())
    found = getattr(fresh, use)(Predicts(linear_net()), held_out, ckpt_path=tmp_path / "grown.ckpt")
    assert_equal(expected, found)


def test_a_module_that_swaps_its_layers_itself_loads_by_lightnings_own_call(tmp_path: Path) -> None:
    class Swapped(Host):
        def __init__(self) -> None:
            super().__init__(linear_net())
            morph_(self, quick().config)

    L.seed_everything(0)
    module = Swapped()
    train(tmp_path, module, quick(), max_epochs=4).save_checkpoint(tmp_path / "grown.ckpt")
    loaded = Swapped.load_from_checkpoint(tmp_path / "grown.ckpt")
    assert any(not layer.morpho.dormant for layer in hybrid_layers(loaded).values())
    x = torch.randn(5, 8)
    assert torch.equal(module.eval().net(x), loaded.eval().net(x))


class Grown(LoadsGrown, Host):
    def __init__(self, hidden: int = 6) -> None:
        super().__init__(linear_net(hidden))
        self.save_hyperparameters()


@pytest.mark.parametrize("kind", ["neurons", "span"])
def test_a_class_that_says_so_loads_what_grew_by_lightnings_own_calls(kind: str, tmp_path: Path) -> None:
    L.seed_everything(0)
    module = Grown(hidden=5)
    trainer = train(tmp_path, module, quick(blueprint=BlueprintConfig(kind=kind)), max_epochs=4)
    trainer.save_checkpoint(tmp_path / "grown.ckpt")
    loaded = Grown.load_from_checkpoint(tmp_path / "grown.ckpt")
    x = torch.randn(5, 8)
    assert torch.equal(module.eval().net(x), loaded.eval().net(x))
    held_out = loaders()["val_dataloaders"]
    expected = trainer.test(module, held_out, verbose=False)
    fresh = make_trainer(tmp_path).test(Grown(hidden=5), held_out, tmp_path / "grown.ckpt", verbose=False)
    assert_equal(expected, fresh)
    with pytest.raises((RuntimeError, ValueError), match="size mismatch|has 5 hidden units before it, this model 7"):
        Grown.load_from_checkpoint(tmp_path / "grown.ckpt", hidden=7)
    plain = train(tmp_path / "plain", Grown(), max_epochs=1)
    plain.save_checkpoint(tmp_path / "plain.ckpt")
    assert not hybrid_layers(Grown.load_from_checkpoint(tmp_path / "plain.ckpt"))


def test_early_stopping_may_watch_growth(tmp_path: Path) -> None:
    L.seed_everything(0)
    stop = EarlyStopping("morpho/run/germinations", mode="max", patience=2, check_on_train_epoch_end=True)
    trainer = train(tmp_path, Host(linear_net()), quick(), stop, max_epochs=20)
    assert trainer.current_epoch < 20


def test_a_keyboard_interrupt_leaves_a_model_that_trains_on(tmp_path: Path) -> None:
    class Interrupt(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
            if trainer.global_step == 25:
                raise KeyboardInterrupt

    L.seed_everything(0)
    module = Host(linear_net())
    with pytest.raises(SystemExit):
        train(tmp_path, module, quick(), Interrupt(), max_epochs=6)
    train(tmp_path, module, quick(), max_epochs=2)


LIMITS = [{"limit_train_batches": 3}, {"limit_val_batches": 2}, {"check_val_every_n_epoch": 2}]


@pytest.mark.parametrize("limit", LIMITS)
def test_limits_and_rare_validation_are_respected(limit: dict[str, Any], tmp_path: Path) -> None:
    L.seed_everything(0)
    train(tmp_path, Host(linear_net()), quick(), max_epochs=6, **limit)
    judged = [e for e in events(tmp_path) if e["from"] == "ACTIVE"]
    assert judged and all(e["figures"]["batches"] == limit.get("limit_val_batches", 8) for e in judged)


def test_the_same_callback_starts_afresh_with_a_new_model(tmp_path: Path) -> None:
    callback = quick()
    histories = []
    for run in ("a", "b"):
        L.seed_everything(0)
        train(tmp_path / run, Host(linear_net()), callback, max_epochs=4)
        histories.append(moves(tmp_path / run))
    assert histories[0] == histories[1]


class Foreign(ParallelStrategy):
    """Stands for a strategy that keeps parameters where growth can't reach them."""

    @property
    def root_device(self) -> torch.device:
        return torch.device("cpu")

    def model_to_device(self) -> None: ...

    def reduce(self, tensor: Any, *_: Any, **__: Any) -> Any:
        return tensor

    def all_gather(self, tensor: Tensor, *_: Any, **__: Any) -> Tensor:
        return tensor

    def barrier(self, name: str | None = None) -> None: ...

    def broadcast(self, obj: Any, src: int = 0) -> Any:
        return obj

    def reduce_boolean_decision(self, decision: bool, all: bool = True) -> bool:
        return decision

    @property
    def is_global_zero(self) -> bool:
        return True


def test_an_unsupported_strategy_is_refused_before_anything_changes(tmp_path: Path) -> None:
    module = Host(linear_net())
    trainer = make_trainer(tmp_path, quick(), strategy=Foreign())
    with pytest.raises(ValueError, match="Foreign is not supported"):
        trainer.fit(module, **loaders())
    assert not hybrid_layers(module)


@pytest.mark.parametrize("strategy", ["ddp_spawn", "ddp_fork"])
def test_processes_that_bring_no_new_layers_back_are_refused_unless_they_are_made_before(strategy: str, tmp_path: Path):
    module, morpho = Host(linear_net()), quick()
    trainer = make_trainer(tmp_path, morpho, strategy=strategy, devices=2)
    with pytest.raises(ValueError, match=r"Call `morph_\(module, callback.config\)` before"):
        morpho.setup(trainer, module, "fit")
    morph_(module, morpho.config)
    morpho.setup(trainer, module, "fit")


# ------------------------------------------------------------------------------------------------ any sequence
class Drawn(Tamiyo):
    """Germinates, keeps and culls at random."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)

    def grow(self, observation: Observation) -> list[Germinate]:
        return []

    def decide(self, observation: Observation) -> list[Decision]:
        decisions: list[Decision] = []
        for layer in observation.layers:
            if layer.dormant and layer.free_beds and self.draw.random() < 0.5:
                some = self.draw.sample(layer.dormant, self.draw.randint(1, len(layer.dormant)))
                decisions.append(Germinate(layer=layer.name, chunks=tuple(some), reason="drawn"))
            for seed in layer.seeds:
                if seed.stage in (Stage.LOADING, Stage.ACTIVE) and not seed.fading and self.draw.random() < 0.4:
                    kept = seed.stage is Stage.ACTIVE and self.draw.random() < 0.3
                    act = Keep if kept else Cull
                    decisions.append(act(seed=(layer.name, seed.chunk), reason="drawn"))
        return decisions


SEQUENCES = [pytest.param(range(25), id="some"), pytest.param(range(25, 1000), id="all", marks=pytest.mark.exhaustive)]


@pytest.mark.parametrize("seeds", SEQUENCES)
def test_any_sequence_of_events_keeps_optimizer_and_incumbents_in_order(seeds: range) -> None:
    """Each parameter in one group; incumbents' weights, moments and counters bit-equal across each event."""
    x, y = make_data(16, 3).tensors
    for seed in seeds:
        torch.manual_seed(seed)
        net = linear_net()
        config = MorphoConfig(
            layers=LayersConfig(num_seeds=2, beds=2),
            warmup=WarmupConfig(steps=2, min_steps=1),
            lifecycle=LifecycleConfig(active_ticks=0, embargo_ticks=seed % 2, alpha_step=(0.25, 1.0)[seed % 2]),
        )
        morph_(net, config)
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
        layers = hybrid_layers(net)
        engine = GrowthEngine(layers, Drawn(seed), OptimizerLink(layers, [optimizer]))
        for step in range(1, 9):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x), y).backward()
            optimizer.step()
            before = _incumbents(net, optimizer)
            engine.tick(step=step, total_steps=None, loss=None, measure=None)
            after = _incumbents(net, optimizer)
            assert_equal(
                {k: v for k, v in before.items() if k in after}, {k: v for k, v in after.items() if k in before}
            )
            held = [id(p) for group in optimizer.param_groups for p in group["params"]]
            assert len(held) == len(set(held)) and all(id(p) in held for p in net.parameters())
            for layer in layers.values():
                for bed in layer.morpho.beds:
                    assert all(p.requires_grad != bed.free for p in bed.parameters())
                    assert not bed.free or not any(p in optimizer.state or p.any() for p in bed.parameters())


def _incumbents(net: nn.Module, optimizer: torch.optim.Optimizer) -> dict[Any, Any]:
    """Weights and state of what lives, by parameter name and germination event."""
    events = {
        f"{n}.morpho.beds.{i}": b.event for n, y in hybrid_layers(net).items() for i, b in enumerate(y.morpho.beds)
    }
    return {
        (name, events.get(name.rpartition(".")[0])): copy.deepcopy([p.detach(), dict(optimizer.state[p])])
        for name, p in net.named_parameters()
        if p in optimizer.state
    }


# ----------------------------------------------------------------------------------------- other ways to call it
def test_a_grown_layer_works_under_functional_call_vmap_and_export() -> None:
    torch.manual_seed(0)
    net = linear_net()
    morph_(net, MorphoConfig(blueprint=BlueprintConfig(kind="neurons")))
    net[0].request_germination()
    with torch.no_grad():
        net[0].morpho.beds[0].w_out.normal_()
    x = torch.randn(5, 8)
    expected = net(x)
    parameters = dict(net.named_parameters()) | dict(net.named_buffers())
    assert torch.equal(torch.func.functional_call(net, parameters, (x,)), expected)
    one_by_one = torch.vmap(lambda row: torch.func.functional_call(net, parameters, (row,)))(x)
    # float32: one row at a time sums in another order
    assert torch.allclose(one_by_one, expected, atol=1e-6)
    exported = torch.export.export(net, (x,)).module()
    assert torch.allclose(exported(x), expected, atol=1e-6)


class MyLinear(nn.Linear):
    pass


def test_lazy_layers_and_subclasses_are_left_out_with_the_reason(tmp_path: Path) -> None:
    L.seed_everything(0)
    net = nn.Sequential(nn.Linear(8, 8), MyLinear(8, 8), nn.LazyLinear(3))
    with torch.no_grad():
        lazy = copy.deepcopy(net)
        net(torch.randn(2, 8))
    assert [m.name for m in morph_(net).taken] == ["0", "2"]
    reasons = {m.name: (m.type, m.reason) for m in morph_(lazy).modules if not m.taken}
    assert reasons["1"][0] == "MyLinear" and reasons["2"][0] == "LazyLinear"


def test_the_batch_size_finder_leaves_no_growth_behind(tmp_path: Path) -> None:
    class Sized(Host):
        batch_size = 4

        def train_dataloader(self) -> Any:
            return DataLoader(make_data(64, 0), batch_size=self.batch_size)

        def val_dataloader(self) -> Any:
            return loaders()["val_dataloaders"]

    L.seed_everything(0)
    module = Sized(linear_net())
    trainer = make_trainer(tmp_path, quick(every_n_steps=2), max_epochs=1)
    Tuner(trainer).scale_batch_size(module, max_trials=2, steps_per_trial=3)
    assert all(layer.morpho.dormant for layer in hybrid_layers(module).values())
    trainer.fit(module)
    assert any(not layer.morpho.dormant for layer in hybrid_layers(module).values())


class Idle(Host):
    """Leaves out the first steps, as loops with a condition do."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
        return None if self.trainer.global_step == 0 and batch_idx < 3 else super().training_step(batch, batch_idx)


def test_a_pair_that_the_first_batches_leave_out_is_confirmed_by_a_later_one(tmp_path: Path) -> None:
    module, morpho = Idle(linear_net()), quick(blueprint=BlueprintConfig(kind="span"))
    make_trainer(tmp_path, morpho, max_epochs=6).fit(module, **loaders())
    assert ("net.2", "DORMANT", "LOADING") in {move[1:] for move in moves(tmp_path)}


def test_a_pair_that_never_runs_is_refused_in_the_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Unused(Host):
        def __init__(self) -> None:
            super().__init__(linear_net())
            self.never = linear_net()

    module, morpho = Unused(), quick(blueprint=BlueprintConfig(kind="span"))
    told = pytest.warns(UserWarning, match=r"`never.2` stays as it is.*not called in the steps watched")
    with told, caplog.at_level("INFO", "lightning.pytorch"):
        make_trainer(tmp_path, morpho, max_epochs=6).fit(module, **loaders())
    assert caplog.text.count("['never.2'] did not run in the first step") == 1
    assert {move[1] for move in moves(tmp_path)} == {"net.2"}
