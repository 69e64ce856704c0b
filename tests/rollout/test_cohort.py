"""A baseline of runs without growth: a guard that compares with the wrong runs would stop good ones, or none."""

from __future__ import annotations

import json
import math
from pathlib import Path

import lightning as L
import pytest
import torch

from hosts import Host, linear_net, loaders, make_trainer, quick
from lightning_morpho import GuardConfig, RampConfig, RolloutConfig, hybrid_layers
from lightning_morpho.rollout import Baseline, CohortLog, Guard, RunHealth
from lightning_morpho.telemetry import EVENTS_FILE, read_events


def run(folder: Path, name: str, losses: list[float | None], *, grown: bool = False, every: int = 10) -> CohortLog:
    log = CohortLog(str(folder), name)
    for number, loss in enumerate(losses, start=1):
        log.write(number * every, RunHealth(val_loss=loss, step_time=0.1), grown=grown)
    return log


def test_baseline_is_the_median_at_the_same_step_of_the_runs_without_growth(tmp_path: Path) -> None:
    for name, shift in (("a", 0.0), ("b", 0.2), ("c", 7.0)):
        run(tmp_path, name, [3.0 + shift, 2.0 + shift, 1.0 + shift])
    run(tmp_path, "grown", [0.1, 0.1, 0.1], grown=True)
    own = run(tmp_path, "own", [9.0, 9.0])
    assert own.baseline(20) == Baseline({"val_loss": 2.2, "step_time": 0.1}, 3)


def test_run_counts_until_its_first_layer_is_switched_on(tmp_path: Path) -> None:
    other = run(tmp_path, "other", [3.0, 2.0])
    other.write(30, RunHealth(val_loss=0.5), grown=True)
    own = run(tmp_path, "own", [9.0, 9.0, 9.0])
    assert own.baseline(20).values["val_loss"] == 2.0
    assert own.baseline(30).values["val_loss"] == 2.0, "one tick old"
    own.write(40, RunHealth(), grown=False)
    assert own.baseline(40).runs == 0


@pytest.mark.parametrize(("ticks", "runs"), [(1, 0), (2, 1), (3, 1), (9, 1)])
def test_run_that_stopped_early_is_left_out_and_one_that_lags_a_tick_is_not(
    ticks: int, runs: int, tmp_path: Path
) -> None:
    run(tmp_path, "other", [1.0] * ticks)
    assert run(tmp_path, "own", [1.0] * 3).baseline(30).runs == runs


def test_what_was_not_measured_or_is_not_finite_is_no_baseline(tmp_path: Path) -> None:
    run(tmp_path, "a", [None])
    run(tmp_path, "b", [math.nan])
    assert run(tmp_path, "own", [1.0]).baseline(10) == Baseline({"step_time": 0.1}, 2)


def test_half_written_and_foreign_lines_are_passed_over_and_read_later(tmp_path: Path) -> None:
    own = run(tmp_path, "own", [1.0])
    path = tmp_path / "other.jsonl"
    row = json.dumps({"step": 10, "grown": False, "errors": 0, "val_loss": 2.0, "step_time": None})
    path.write_text("not ours\n[1]\n" + row[:20])
    assert own.baseline(10).runs == 0
    path.write_text("not ours\n[1]\n" + row + "\n")
    assert own.baseline(10) == Baseline({"val_loss": 2.0}, 1)


def test_guard_prefers_the_cohort_to_recorded_values_and_says_so() -> None:
    guard = Guard(GuardConfig(baseline={"val_loss": 0.1}))
    cohort = Baseline({"val_loss": 1.0}, 3)
    assert guard.check(RunHealth(val_loss=1.04, baseline=cohort)).holds
    verdict = guard.check(RunHealth(val_loss=1.2, baseline=cohort))
    assert verdict.reason == "val_loss 1.2 is above 1.05 (baseline 1 of 3 runs without growth, at most +5%)"
    assert not guard.check(RunHealth(val_loss=1.04)).holds, "without a cohort the recorded value counts"


# ------------------------------------------------------------------------------------------ runs
def fit(root: Path, *callbacks: L.Callback, epochs: int = 4) -> None:
    L.seed_everything(0, verbose=False)
    torch.manual_seed(1)
    make_trainer(root, *callbacks, max_epochs=epochs).fit(Host(linear_net()), **loaders())


class Harm(L.Callback):
    """Makes the seeds harmful in every validation from the second epoch on."""

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.current_epoch >= 2:
            with torch.no_grad():
                for layer in hybrid_layers(pl_module).values():
                    layer.morpho.beds[0].w_out.normal_(std=5)


@pytest.mark.parametrize(
    "off",
    [{"enabled": False}, {"percentage": 0}, {"ramp": RampConfig(schedule={99: 100})}],
    ids=lambda o: next(iter(o)),
)
def test_on_cohort_run_rolls_back_when_it_is_worse_than_a_run_of_the_off_cohort(off: dict, tmp_path: Path) -> None:
    folder = str(tmp_path / "fleet")
    fit(tmp_path / "off", quick(model_id="off", rollout=RolloutConfig(cohort_dir=folder, **off)))
    (path,) = Path(folder).glob("off-*.jsonl")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(row["step"], row["grown"]) for row in rows] == [(10, False), (20, False), (30, False), (40, False)]
    assert all(row["val_loss"] > 0 and row["step_time"] > 0 for row in rows)

    ramp = RampConfig(schedule={0: 100}, guard=GuardConfig(val_loss=0.2))
    fit(tmp_path / "on", Harm(), quick(model_id="on", rollout=RolloutConfig(cohort_dir=folder, ramp=ramp)))
    events = [e for e in read_events(tmp_path / "on" / EVENTS_FILE) if e["event"] == "rollout"]
    assert [(e["step"], e["layers_on"]) for e in events] == [(0, 2), (30, 0)]
    assert "of 1 run without growth" in events[-1]["reason"]
    (own,) = Path(folder).glob("on-*.jsonl")
    assert all(json.loads(line)["grown"] for line in own.read_text().splitlines())


def test_ticks_by_steps_leave_a_line_each(tmp_path: Path) -> None:
    rollout = RolloutConfig(enabled=False, cohort_dir=str(tmp_path / "fleet"))
    fit(tmp_path, quick(every_n_steps=4, rollout=rollout), epochs=1)
    (path,) = (tmp_path / "fleet").glob("*.jsonl")
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [4, 8]


def test_wrong_folder_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="`rollout.cohort_dir` must be null or the path of a folder, got ''"):
        RolloutConfig(cohort_dir="")
