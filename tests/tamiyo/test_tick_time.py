"""What a tick costs: what need not be done twice is done once, and decides the same."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from hosts import (
    Host,
    assert_equal,
    events,
    linear_net,
    loaders,
    make_data,
    make_trainer,
    quick,
    run_script,
)
from lightning_morpho import AutoSize, BlueprintConfig, BudgetConfig, CreditConfig, Tamiyo, Trial, Uniform
from lightning_morpho.integrations import run as run_module
from lightning_morpho.integrations import tick_clock, validation
from lightning_morpho.integrations.tick_clock import TickClock
from lightning_morpho.tamiyo.replay import read_ticks, redecide
from lightning_morpho.telemetry import EVENTS_FILE, read_events


class Counted(TensorDataset):
    """Counts how often a sample is read."""

    reads = 0

    def __getitem__(self, index: int) -> Any:
        self.reads += 1
        return super().__getitem__(index)


class ReadsInTicks(L.Callback):
    """Counts the samples read between validation and the next epoch: in the tick."""

    def __init__(self, data: Counted) -> None:
        self.data, self.reads = data, list[int]()

    def on_validation_end(self, *_: Any) -> None:
        self.data.reads = 0

    def on_train_epoch_start(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.current_epoch:
            self.reads.append(self.data.reads)


def run(root: Path) -> list[int]:
    torch.manual_seed(0)
    data = Counted(*make_data(128, 1).tensors)
    reads = ReadsInTicks(data)
    loaded = loaders() | {"val_dataloaders": DataLoader(data, batch_size=16, shuffle=True)}
    make_trainer(root, reads, quick(seed=1), max_epochs=6).fit(Host(linear_net()), **loaded)
    return reads.reads


@pytest.fixture(scope="module")
def small_and_large(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, list[int]]]:
    """The same run, its batches small enough to be kept, and too large."""
    runs = []
    for name, most in (("small", validation.MOST_KEPT), ("large", 100)):
        root = tmp_path_factory.mktemp(name)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(validation, "MOST_KEPT", most)
            runs.append((root, run(root)))
    return runs


def test_a_tick_reads_its_held_out_batches_once(small_and_large) -> None:
    (_, small), (_, large) = small_and_large
    assert max(small) == 128, "each reading starts the loader's workers anew, and decodes every image again"
    assert max(large) > 2 * 128, "the run measures more than once a tick, or this test shows nothing"


def test_what_is_kept_decides_like_what_is_read_anew(small_and_large) -> None:
    small, large = ([tick.decisions for tick in read_ticks(root)] for root, _ in small_and_large)
    assert small == large and any(small)


# ---- the limit
class Simulated:
    """Time that passes by training steps, and by validation steps in ticks; nothing else takes any."""

    def __init__(self, step: float = 1.0, look: float = 0.5) -> None:
        self.time, self.step, self.look = 0.0, step, look

    def __call__(self) -> float:
        return self.time


class SlowHost(Host):
    """A host whose steps take simulated time."""

    def __init__(self, clock: Simulated, net: nn.Module | None = None) -> None:
        super().__init__(net or linear_net())
        self.clock = clock

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.clock.time += self.clock.step
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        if not self.trainer.validating:
            self.clock.time += self.clock.look
        return super().validation_step(batch, batch_idx)


@pytest.fixture
def limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs with a limit, in simulated time; gives the folder and the clock of the run."""
    clocks: list[TickClock] = []

    def fit(limit: float | None, name: str, epochs: int = 12, **options: Any) -> tuple[Path, TickClock]:
        time = Simulated()

        def made(share: float | None, **_: Any) -> TickClock:
            clocks.append(TickClock(share, time))
            return clocks[-1]

        monkeypatch.setattr(run_module, "TickClock", made)
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
        budget = BudgetConfig(tick_share=limit, parameters=options.pop("parameters", 100_000))
        callback = quick(seed=1, budget=budget, credit=CreditConfig(replicas=1), **options)
        make_trainer(tmp_path / name, callback, max_epochs=epochs).fit(SlowHost(time, net), **loaders())
        return tmp_path / name, clocks[-1]

    return fit


def cuts(root: Path) -> list[int]:
    return [e["tick"] for e in read_events(root / EVENTS_FILE) if e["event"] == "cut"]


@pytest.mark.parametrize("limit", [0.05, 0.2])
def test_ticks_take_no_more_than_their_share(limited, limit: float) -> None:
    free, unlimited = limited(None, "free")
    root, clock = limited(limit, "limited", epochs=40)
    assert unlimited.share > limit, "without a limit this run's ticks take more, or the test shows nothing"
    assert clock.share <= limit and cuts(root) and not cuts(free)
    judged = [e for e in events(root) if "rise" in e["figures"]]
    assert judged, "time that is saved up pays for the judgement later"


def test_a_limit_that_is_never_reached_changes_nothing(limited) -> None:
    free, limit = (limited(share, str(share))[0] for share in (None, 0.99))
    assert [t.decisions for t in read_ticks(free)] == [t.decisions for t in read_ticks(limit)] and not cuts(limit)


@pytest.mark.parametrize(
    "policy",
    [Uniform(at=0.0), Trial(at=0.0, share=0.1), Trial(at=0.0, share=0.1, shared=True), AutoSize(at=0.0)],
)
def test_without_time_seeds_are_kept_unjudged_and_the_log_can_be_replayed(limited, policy: Tamiyo) -> None:
    kind = BlueprintConfig(kind="auto", hidden="budget" if policy.fills_budget else "auto")
    root, clock = limited(1e-6, "broke", tamiyo=policy, blueprint=kind)
    assert clock.share < 1e-6 and cuts(root)
    ends = {e["reason"] for e in events(root) if e["to"] in ("FOSSILIZED", "CULLED")}
    assert all("unjudged" in reason for reason in ends), "a seed must not go for want of time to look at it"
    assert not [e for e in read_events(root / EVENTS_FILE) if e["event"] in ("tried", "assessed", "resized")]
    assert all(again.same for again in redecide(read_ticks(root), policy)), "what was cut is part of what was seen"


def test_every_rank_goes_by_the_first_ones_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tick_clock, "gather_objects", lambda own: [3.0, own])
    assert TickClock(0.5).room("measurement", 1) == 3.0
    assert TickClock(None).room("measurement", 1) == float("inf")


@pytest.mark.slow
def test_two_processes_whose_clocks_differ_decide_alike_under_a_limit_that_bites(tmp_path: Path) -> None:
    """Else one would wait for ever for the other's part of a measurement."""
    here = Path(__file__).parent
    run_script(here / "ddp_limit.py", str(tmp_path), PYTHONPATH=os.pathsep.join([str(here), *sys.path]))
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    assert first.keys() == second.keys() and len(first) == 8
    for name, mine in first.items():
        assert mine["decisions"] == second[name]["decisions"], name
        assert_equal(mine["weights"], second[name]["weights"], name)
        if "1e-09" in name:
            assert cuts(tmp_path / name), "the limit cuts nothing, or nobody says so"
            assert '"Keep"' not in mine["decisions"] and '"Cull"' not in mine["decisions"], name
        else:
            assert json.loads(mine["decisions"]), name


@pytest.mark.parametrize("share", [0, 1, -0.1, float("nan"), True, "5 %"])
def test_a_share_that_is_none_is_refused(share: Any) -> None:
    with pytest.raises(ValueError, match="budget.tick_share.*share of the time"):
        BudgetConfig(tick_share=share)
