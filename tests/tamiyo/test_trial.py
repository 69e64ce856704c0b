"""Trials: what proves best grows, nothing else of them remains, and they are paid for."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import nn, optim
from torch.utils.data import DataLoader, IterableDataset, Sampler, TensorDataset

from hosts import (
    Host,
    Record,
    assert_equal,
    conv_net,
    linear_net,
    loaders,
    make_data,
    make_trainer,
    optimizer_state,
    run_script,
)
from lightning_morpho import (
    BlueprintConfig,
    LifecycleConfig,
    MorphoCallback,
    MorphoConfig,
    Observation,
    Placed,
    TelemetryConfig,
    Trial,
    WarmupConfig,
    hybrid_layers,
    morph_,
)
from lightning_morpho.cli.main import main
from lightning_morpho.rewind import rewound
from lightning_morpho.tamiyo import Germinate, LayerView, Tried, Try
from lightning_morpho.telemetry import EVENTS_FILE, read_events
from lightning_morpho.telemetry.field_reports import FIELD_REPORTS_FILE, read_field_reports
from lightning_morpho.telemetry.run_log import METRICS_FILE

TESTS = Path(__file__).parent.parent


# ---- the policy on hand-made observations
def layer(name: str, position: int, width: int = 8, germinations: int = 0) -> LayerView:
    return LayerView(
        name=name,
        position=position,
        features=8,
        width=width,
        bed_parameters=10,
        free_beds=1 - germinations,
        germinations=germinations,
        dormant=(0,),
        seeds=(),
    )


def seen(*layers: LayerView, **values: Any) -> Observation:
    plain: dict[str, Any] = {"tick": 1, "step": 50, "total_steps": 200, "losses": (1.0,), "no_trial": None}
    return Observation(layers=layers, **(plain | values))


NET = (layer("a", 0), layer("b", 1, width=4), layer("c", 2))


def tried(**losses: float) -> tuple[Tried, ...]:
    return tuple(Tried(place=(name,), losses=(loss, loss), steps=10) for name, loss in losses.items())


def test_all_places_are_tried_at_the_moment_and_the_best_grows() -> None:
    assert Trial().grow(seen(*NET, step=10)) == []
    assert Trial(share=0.1).grow(seen(*NET)) == [Try(places=(("b",), ("a",), ("c",)), steps=20)]
    (grown,) = Trial().grow(seen(*NET, trials=tried(b=0.3, a=0.5, c=0.2)))
    assert isinstance(grown, Germinate) and grown.layer == "c" and "the best of 3 trials" in grown.reason


def test_candidates_are_limited_to_the_narrowest_and_several_can_win() -> None:
    assert Trial(candidates=2).grow(seen(*NET))[0].places == (("b",), ("a",))  # type: ignore[union-attr]
    grown = Trial(layers=2).grow(seen(*NET, trials=tried(b=0.3, a=0.5, c=0.2)))
    assert [d.layer for d in grown] == ["c", "b"]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"no_trial": "optimization is manual"}, "by narrowest, no trial: optimization is manual"),
        ({"trials": ()}, "by narrowest, no trial came to an end"),
        ({"trials": tried(a=float("nan"), b=float("inf"))}, "by narrowest, no trial came to an end"),
    ],
)
def test_without_a_trial_the_narrowest_grows_and_the_reason_says_why(values: Any, reason: str) -> None:
    (grown,) = Trial().grow(seen(*NET, **values))
    assert isinstance(grown, Germinate) and grown.layer == "b" and reason in grown.reason


def test_equal_losses_go_to_the_narrowest_and_one_layer_needs_no_trial() -> None:
    (grown,) = Trial().grow(seen(*NET, trials=tried(c=0.5, a=0.5, b=0.5)))
    assert isinstance(grown, Germinate) and grown.layer == "b"
    (alone,) = Trial().grow(seen(NET[0]))
    assert isinstance(alone, Germinate) and "nothing to choose from" in alone.reason


def together(**rises: float) -> tuple[Tried, ...]:
    return tuple(Tried(place=(n,), losses=(0.5, 0.5), steps=10, rise=rise) for n, rise in rises.items())


def test_in_a_shared_trial_the_place_that_is_missed_most_grows() -> None:
    assert Trial(shared=True).grow(seen(*NET)) == [Try(places=(("b",), ("a",), ("c",)), steps=4, shared=True)]
    (grown,) = Trial(shared=True).grow(seen(*NET, trials=together(b=-0.1, a=0.2, c=0.1)))
    assert isinstance(grown, Germinate) and grown.layer == "a" and "best of 3 in a shared trial" in grown.reason
    (known,) = Trial(shared=True).grow(seen(*NET, trials=together(b=math.nan, a=math.inf, c=-0.3)))
    assert isinstance(known, Germinate) and known.layer == "c", "what was not measured, or broke down, can't win"


@pytest.mark.parametrize(
    ("values", "named"), [({"share": 0}, "share"), ({"candidates": 0}, "candidates"), ({"shared": "no"}, "shared")]
)
def test_bad_value_is_refused_by_name(values: Any, named: str) -> None:
    with pytest.raises(ValueError, match=f"`tamiyo.{named}`"):
        Trial(**values)


# ---- in a run
class Branches(L.LightningModule):
    """Two nets side by side; what the first reads is loud and explains the target linearly, the second is too narrow.

    Every cheap score points at the first: it is narrowest, earliest, with the largest gradients.
    """

    def __init__(self) -> None:
        super().__init__()
        self.easy = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 1))
        self.hard = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 1))

    def loss(self, batch: Any) -> torch.Tensor:
        x, y = batch
        return nn.functional.mse_loss((self.easy(x[:, :4]) + self.hard(x[:, 4:])).squeeze(1), y)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self.loss(batch)

    def validation_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.log("val_loss", loss := self.loss(batch))
        return loss

    def configure_optimizers(self) -> Any:
        return optim.Adam(self.parameters(), lr=0.01)


def branch_loaders() -> list[DataLoader[Any]]:
    teacher = torch.Generator().manual_seed(9)
    w1, w2 = torch.randn(4, 16, generator=teacher), torch.randn(16, generator=teacher) / 2
    made = []
    for count, number in ((640, 0), (320, 1)):
        g = torch.Generator().manual_seed(number)
        x = torch.randn(count, 8, generator=g)
        noise = 0.5 * torch.randn(count, generator=g)
        y = x[:, 0].relu() + torch.relu(x[:, 4:] @ w1) @ w2 + noise
        x[:, :4] *= 16
        made.append(DataLoader(TensorDataset(x, y), batch_size=32, shuffle=not number, generator=g))
    return made


def branches(policy: Any) -> MorphoCallback:
    return MorphoCallback(
        tamiyo=policy, warmup=WarmupConfig(steps=20, min_steps=20), telemetry=TelemetryConfig(table=False)
    )


@pytest.mark.parametrize(
    "policy",
    [
        *(Placed(by="narrowest"), Placed(by="earliest"), Placed(by="gradient")),
        *(Trial(share=0.05), Trial(share=0.05, shared=True)),
    ],
)
def test_trial_finds_the_place_that_pays_where_cheap_scores_do_not(policy: Any, tmp_path: Path) -> None:
    L.seed_everything(0)
    trainer = make_trainer(tmp_path, branches(policy), max_epochs=15)
    trainer.fit(Branches(), *branch_loaders())
    born = [e["layer"] for e in read_events(tmp_path / EVENTS_FILE) if e.get("from") == "DORMANT"]
    assert born == ["hard.2" if isinstance(policy, Trial) else "easy.2"]


def grower(policy: Any, **options: Any) -> MorphoCallback:
    return MorphoCallback(
        tamiyo=policy,
        warmup=WarmupConfig(steps=5, min_steps=5),
        lifecycle=LifecycleConfig(active_ticks=1),
        telemetry=TelemetryConfig(table=False),
        **options,
    )


class Twins(Trial):
    """Tries places, and then grows where it always does."""

    def grow(self, observation: Observation) -> Any:
        asked = super().grow(observation)
        if any(isinstance(d, Try) for d in asked):
            return asked
        return Placed(by="earliest").grow(observation)


class Messy(Host):
    """A training step that leaves traces wherever a user's might."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__(net, lr=0.02)
        self.calls = 0
        self.smooth = torch.zeros(())

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.calls += 1
        loss = super().training_step(batch, batch_idx) + 0 * torch.rand(())
        self.smooth = 0.9 * self.smooth + loss.detach()
        self.accuracy.update(self.net(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss


OPTIMIZERS = {
    "adam": lambda p: optim.Adam(p, lr=0.02),
    "adamw_amsgrad": lambda p: optim.AdamW(p, lr=0.02, amsgrad=True, foreach=False),
    "sgd": lambda p: optim.SGD(p, lr=0.1, momentum=0.9),
}


@pytest.mark.parametrize(
    ("net", "optimizer", "shared"),
    [*((net, name, False) for net in (linear_net, conv_net) for name in OPTIMIZERS), (conv_net, "adam", True)],
)
def test_run_with_trials_is_bit_equal_to_one_that_grew_there_anyway(
    net: Any, optimizer: str, shared: bool, tmp_path: Path
) -> None:
    """Weights, BatchNorm's statistics, moments, step counters, random state, data order, metrics, attributes."""
    runs, neurons = [], BlueprintConfig(kind="neurons")
    for name, policy in (("tried", Twins(share=0.1, shared=shared)), ("sure", Placed(by="earliest"))):
        L.seed_everything(0)
        module, record = Messy(net()), Record()
        module.configure_optimizers = lambda m=module: OPTIMIZERS[optimizer](m.parameters())  # type: ignore[method-assign]
        trainer = make_trainer(tmp_path / name, grower(policy, blueprint=neurons), record, max_epochs=6)
        trainer.fit(module, **loaders(shuffle=True))
        events = list(read_events(tmp_path / name / EVENTS_FILE))
        assert sum(e["event"] == "tried" for e in events) == (2 if name == "tried" else 0)
        moves = [{k: v for k, v in e.items() if k != "reason"} for e in events if e["event"] == "transition"]
        state = {k: v for k, v in module.state_dict().items() if isinstance(v, torch.Tensor)}
        metrics = {k: v for k, v in trainer.callback_metrics.items() if "morpho/run/t" not in k}
        own = module.calls, module.smooth, module.losses
        runs.append((state, optimizer_state(trainer, module), record.trace, own, moves, metrics))
    assert_equal(*runs)


def test_trial_leaves_gradients_and_settings_of_the_optimizer_alone() -> None:
    model = linear_net()
    morph_(model, MorphoConfig())
    layers = hybrid_layers(model)
    for found in layers.values():
        found.morpho.decide_pair(None)
    optimizer = optim.Adam(model.parameters(), lr=0.1)
    model(torch.randn(4, 8)).sum().backward()
    gradients = [p.grad for p in model.parameters()]
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    with rewound(model, layers, [optimizer]):
        layers["2"].morpho.germinate()
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.randn(4, 8)).square().sum().backward()
            optimizer.step()
        optimizer.param_groups[0].update(lr=7.0, extra=1)
        assert not torch.equal(model[0].weight, before[0]["0.weight"])
    assert_equal((model.state_dict(), optimizer.state_dict()), before)
    assert all(a is b.grad for a, b in zip(gradients, model.parameters(), strict=True))
    assert layers["2"].morpho.dormant and layers["2"].morpho.free_beds == 1


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("trial")
    L.seed_everything(0)
    callback = grower(Trial(share=0.1, at=0.0, candidates=2))
    make_trainer(root, callback, max_epochs=8).fit(Host(deep_net()), **loaders())
    return root


def deep_net() -> nn.Sequential:
    widths = (8, 12, 4, 12, 3)
    parts: list[nn.Module] = []
    for a, b in zip(widths, widths[1:], strict=False):
        parts += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*parts[:-1])


def test_cost_of_the_trials_is_in_event_log_field_report_and_figures(recorded: Path) -> None:
    tried = [e for e in read_events(recorded / EVENTS_FILE) if e["event"] == "tried"]
    assert [e["layer"] for e in tried] == ["net.4", "net.2"]  # the narrowest hidden layer first
    assert all(e["figures"]["steps"] == 8 and e["figures"]["seconds"] > 0 for e in tried)
    (report,) = read_field_reports(recorded)
    assert report.trial_steps == 16 and report.trial_flops == sum(e["figures"]["flops"] for e in tried)
    run = [e["run"] for e in read_events(recorded / METRICS_FILE) if e["kind"] == "tick"]
    assert [r["trial_steps"] for r in run] == [16.0] * 8
    assert run[-1]["trial_flops"] == report.trial_flops and run[-1]["trial_seconds"] > 0
    assert 0 < run[-1]["tick_share"] < 1


def test_a_shared_trial_is_charged_once_and_decided_alike_offline(tmp_path: Path, capsys: Any) -> None:
    L.seed_everything(0)
    callback = grower(Trial(share=0.1, at=0.0, shared=True))
    make_trainer(tmp_path, callback, max_epochs=8).fit(Host(deep_net()), **loaders())
    tried = [e for e in read_events(tmp_path / EVENTS_FILE) if e["event"] == "tried"]
    assert [e["layer"] for e in tried] == ["net.4", "net.2", "net.6"] and len(
        {e["figures"]["loss"] for e in tried}
    ) == 1
    assert "shared by 3 places" in tried[0]["text"]
    (born,) = (e for e in read_events(tmp_path / EVENTS_FILE) if e.get("from") == "DORMANT")
    assert born["layer"] == max(tried, key=lambda e: e["figures"]["rise"])["layer"]
    (report,) = read_field_reports(tmp_path)
    assert report.trial_steps == 8 and report.trial_flops == tried[0]["figures"]["flops"] > 0
    assert main(["replay", str(tmp_path)]) == 0
    assert "0 decided otherwise by Trial(at=0.0" in capsys.readouterr().out


def test_flops_are_those_of_the_steps(recorded: Path) -> None:
    """Forward, and backward for weights and inputs: six for each weight and sample, but for the first input."""
    tried = next(e for e in read_events(recorded / EVENTS_FILE) if e["event"] == "tried")
    widths, batch = (8, 12, 8, 12, 3), 32  # the place in the middle doubles, at least to 8 more
    host = sum(a * b for a, b in zip((8, 12, 4, 12, 3), (12, 4, 12, 3), strict=False))
    grown = 12 * 8 + 8 * 12  # `span`: as many units as there are, at least 8
    assert widths and tried["figures"]["flops"] == 8 * batch * (6 * (host + grown) - 2 * 8 * 12)


def test_recorded_trials_are_decided_alike_offline(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", str(recorded)]) == 0
    assert "8 ticks, 0 decided otherwise by Trial(at=0.0" in capsys.readouterr().out
    assert main(["replay", str(recorded), "--set", "candidates=1"]) == 1


def test_reports_of_runs_before_there_were_trials_can_still_be_read(recorded: Path, tmp_path: Path) -> None:
    lines = [json.loads(line) for line in (recorded / FIELD_REPORTS_FILE).read_text().splitlines()]
    old = [{k: v for k, v in line.items() if not k.startswith("trial")} for line in lines]
    (tmp_path / FIELD_REPORTS_FILE).write_text("\n".join(map(json.dumps, old)), encoding="utf-8")
    assert [r.trial_steps for r in read_field_reports(tmp_path)] == [0.0]


# ---- where nothing can be tried
class Manual(Host):
    automatic_optimization = False

    def __init__(self) -> None:
        super().__init__(deep_net())
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = self.loss(batch)
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        return loss


class OwnStep(Host):
    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)


class Stream(IterableDataset):  # type: ignore[type-arg]
    def __iter__(self) -> Any:
        return iter(make_data(320, 0))


@pytest.mark.parametrize(
    ("module", "train", "reason"),
    [
        (Manual, None, "optimization is manual"),
        (lambda: OwnStep(deep_net()), None, "has an `optimizer_step` of its own"),
        (lambda: Host(deep_net()), DataLoader(Stream(), batch_size=32), "can be read once only"),
        (lambda: Host(deep_net()), [loaders()["train_dataloaders"]] * 2, "come from a list"),
    ],
    ids=["manual", "own_step", "stream", "two_loaders"],
)
def test_run_whose_steps_can_t_be_repeated_grows_the_narrowest(
    module: Any, train: Any, reason: str, tmp_path: Path
) -> None:
    host = module()
    if isinstance(train, list):
        host.training_step = lambda batch, batch_idx: host.loss(batch[0])
    data = loaders() if train is None else loaders() | {"train_dataloaders": train}
    make_trainer(tmp_path, grower(Trial(at=0.0, patience=1, min_delta=9.0)), max_epochs=3).fit(host, **data)
    born = [e for e in read_events(tmp_path / EVENTS_FILE) if e.get("from") == "DORMANT"]
    assert [e["layer"] for e in born] == ["net.4"] and reason in born[0]["reason"]


class Uncopyable(Sampler):  # type: ignore[type-arg]
    def __iter__(self) -> Any:
        return iter(range(320))

    def __len__(self) -> int:
        return 320

    def __deepcopy__(self, memo: Any) -> Any:
        raise TypeError("a lock")


def test_sampler_that_can_t_be_copied_is_named_and_the_narrowest_grows(tmp_path: Path, caplog: Any) -> None:
    train = DataLoader(make_data(320, 0), batch_size=32, sampler=Uncopyable())
    make_trainer(tmp_path, grower(Trial(at=0.0)), max_epochs=2).fit(
        Host(deep_net()), train, loaders()["val_dataloaders"]
    )
    born = [e for e in read_events(tmp_path / EVENTS_FILE) if e.get("from") == "DORMANT"]
    assert [e["layer"] for e in born] == ["net.4"] and "no trial came to an end" in born[0]["reason"]
    assert "a lock" in caplog.text


# ---- several processes
@pytest.mark.slow
def test_two_ranks_try_and_grow_alike(tmp_path: Path) -> None:
    for how in (["alone"], []):
        run_script(Path(__file__).with_name("ddp_trial.py"), str(tmp_path), *how)
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    assert_equal(first["weights"], second["weights"])
    for kind in ("trials", "shared"):
        assert_equal(first[kind], second[kind])
        assert len(first[kind]) == 3
    assert first["germinated"] == second["germinated"]
    # Two ranks with half the batch each make the steps of one process.
    alone, shared = torch.load(tmp_path / "alone.pt")
    torch.testing.assert_close(first["trials"], alone, rtol=2e-4, atol=2e-5)
    torch.testing.assert_close(first["shared"], shared, rtol=5e-3, atol=5e-5)  # differences of losses


def test_answer_is_not_asked_for_twice() -> None:
    observation = seen(*NET, trials=())
    assert not any(isinstance(d, Try) for d in Trial().decide(replace(observation, trials=tried(a=1.0))))
