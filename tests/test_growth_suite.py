"""The growth experiments: the plan says what can be run, a suite resumes, the figures are what their names say."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import growth  # noqa: E402
from growth_arms import Arm  # noqa: E402
from growth_costs import area  # noqa: E402
from growth_recorder import Recorder  # noqa: E402
from growth_report import with_findings, write_report  # noqa: E402
from growth_results import SWEPT, Results  # noqa: E402
from growth_run import run  # noqa: E402
from growth_tasks import CLASSES, TASKS, Task  # noqa: E402

PLAN = {"steps": 20, "batch": 16}


@pytest.fixture
def task() -> Task:
    """Two classes of eight numbers, a net with one hidden layer."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(300, 8, generator=draw)
    y = (x[:, 0] * x[:, 1] > 0).long()
    parts = [(x[a:b], y[a:b]) for a, b in ((0, 200), (200, 250), (250, 300))]
    return Task(
        (parts[0], parts[1], parts[2]),
        lambda width: nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, 2)),
        measure=CLASSES,
    )


def job(arm: str, **more: object) -> dict[str, object]:
    """One run of an arm."""
    return {"task": "two", "arm": arm, "rate": 0.01, "seed": 0, "host": 2, "widest": 8, **more}


def made(arm: str, rate: float, seed: int, val: float, test: float = 0.0) -> dict[str, object]:
    """A result."""
    return {"task": "two", "arm": arm, "rate": rate, "seed": seed, "val": val, "test": test}


@pytest.mark.parametrize("suite", growth.PLAN["suites"])
def test_the_plan_names_what_exists_and_no_run_twice(suite: str) -> None:
    """A misspelt task or arm would cost its run at the end of hours."""
    jobs = growth.jobs(suite)
    keys = [growth.key(one) for one in jobs]
    assert len(set(keys)) == len(keys)
    for one in jobs:
        assert one["task"] in TASKS
        arm = Arm.parse(one["arm"])
        assert arm.width(one) >= 1
        if arm.kind not in ("static", "shrink"):
            assert arm.policy(one, 1) is not None
        if arm.kind == "onward":
            assert one["host_task"] in TASKS and one["host_steps"] > 0 and one["host_rate"] > 0


def test_arms_of_a_comparison_get_the_same_rates_and_seeds() -> None:
    """Static arms are tuned as the grown ones are; anything else would flatter growth."""
    for entry in growth.PLAN["suites"]["full"]:
        swept = entry.get("rates") or growth.PLAN["rates"][entry["tasks"][0]]
        assert len(swept) >= 2 and entry.get("sweep", entry["seeds"]) >= SWEPT
        onward = {arm.removeprefix("onward") for arm in entry["arms"] if arm.startswith("onward")}
        fresh = {arm for arm in entry["arms"] if "@" in arm and arm[0].isdigit()}
        assert {arm for arm in onward if not arm.startswith(f"{entry['host']}@")} == fresh - {"25@664"}


def test_the_static_net_at_equal_flops_has_equal_flops() -> None:
    """The plan's 664 steps of 25 channels cost what one round at 35 % from 4 to 25 channels costs."""
    from lightning_morpho.tasks import ConvClassifier

    def flops(width: int) -> float:
        net, x = ConvClassifier(channels=width).net, torch.zeros(1, 1, 40)
        data = (x, torch.zeros(1, dtype=torch.long))
        recorder = Recorder(net, Task((data, data, data), ConvClassifier, 3), 1)
        with recorder.step():
            net(x)
        return recorder.flops

    grown = 0.35 * flops(4) + 0.65 * flops(25)
    assert 0.664 * flops(25) == pytest.approx(grown, rel=0.01)


def test_an_arm_without_meaning_is_refused() -> None:
    with pytest.raises(ValueError, match="`arm` must be a word, a number"):
        Arm.parse("onward 12")


def test_flops_memory_and_curve_of_a_static_run_are_exact(task: Task, tmp_path: Path) -> None:
    """The cost table stands on these."""
    found = run(job("4"), task, PLAN, tmp_path)
    parameters = 8 * 4 + 4 + 4 * 2 + 2
    assert found["parameters"] == found["trained"] == parameters
    assert found["gflops"] * 1e9 == pytest.approx(20 * 3 * 2 * 16 * (8 * 4 + 4 * 2), rel=1e-5)
    assert found["memory"] >= 16 * parameters  # weights, gradients, two moments
    assert len(found["curve"]) == 10 and found["curve"][-1][0] == pytest.approx(found["gflops"], rel=1e-3)
    assert found["best"][0] >= round(found["val"], 2)


def test_growth_changes_no_loss_and_is_paid_for(task: Task, tmp_path: Path) -> None:
    """A newborn starts at zero; FLOPs count it from then on."""
    found = run(job("round6"), task, PLAN, tmp_path)
    assert found["germinations"] == 1 and found["jumps"]["growth"] == [pytest.approx(0, abs=1e-6)]
    assert found["widths"] == [6]
    small, large = (run(job(arm), task, PLAN, tmp_path)["gflops"] for arm in ("2", "6"))
    assert found["gflops"] == pytest.approx(0.35 * small + 0.65 * large, rel=1e-3)


def test_a_trained_host_goes_on_from_where_it_was(task: Task, tmp_path: Path) -> None:
    """With steps too small to matter it is as good as it was, and larger."""
    past = {"host_task": "two", "host_steps": 60, "host_rate": 0.03}
    host = run(job("2@60", keep=True, **past), task, PLAN, tmp_path)
    unchanged = run(job("onward6@4", **past) | {"rate": 1e-9}, task, PLAN, tmp_path)
    assert unchanged["test"] == host["test"] and unchanged["widths"] == [6]


def test_an_area_weighs_points_by_what_was_spent_and_holds_the_last_ones() -> None:
    found = {"curve": [[1.0, 0, 10.0], [2.0, 0, 30.0]]}
    assert area(found, 0, 2.0) == pytest.approx((10 + 20) / 2)
    assert area(found, 0, 4.0) == pytest.approx((10 + 20 + 2 * 30) / 4)


def test_the_rate_is_chosen_on_validation_among_rates_that_are_done() -> None:
    """Neither the test points nor a rate with one lucky seed may choose."""
    runs = [made("a", 0.1, seed, val=50, test=10) for seed in range(3)]
    runs += [made("a", 0.2, seed, val=40, test=90) for seed in range(3)]
    runs += [made("a", 0.3, 0, val=99, test=99)]
    assert {found["rate"] for found in Results(runs, 2).arm("two", "a")} == {0.1}
    assert Results(runs, 4).arm("two", "a") == []


def test_seeds_beyond_the_sweep_wait_for_it_and_take_its_rate() -> None:
    """They would be wasted at another rate; and a rate with more seeds must not win by these."""
    swept = [(rate, seed) for rate in (0.1, 0.2) for seed in range(4)]
    runs = [made("a", rate, seed, val=-rate) for rate, seed in swept]
    later = {"task": "two", "arm": "a", "seed": 5, "rates": [0.1, 0.2], "sweep": 4}
    waiting = [later, {"task": "two", "arm": "a", "seed": 3, "rate": 0.2}]
    queue = growth.Queue(waiting, runs[:-1])
    assert queue.next() == waiting[1] and queue.next() is None
    queue.add(runs[-1])
    assert queue.next() == {"task": "two", "arm": "a", "seed": 5, "rate": 0.1} and queue.next() is None
    more = [made("a", 0.2, seed, val=0) for seed in range(4, 9)]
    assert {found["rate"] for found in Results(runs + more).arm("two", "a")} == {0.1}
    assert growth.Queue([later], [*runs, made("a", 0.1, 5, val=0)]).next() is None


def test_a_shard_has_whole_sweeps_and_all_shards_have_everything() -> None:
    """A sweep that is cut into shards would never come to its end."""
    options = argparse.Namespace(suite="full", tasks=None, arms=None)
    shards = [growth.chosen(argparse.Namespace(**vars(options), shard=f"{i}/3")) for i in range(3)]
    arms = [{(job["task"], job["arm"]) for job in shard} for shard in shards]
    assert not (arms[0] & arms[1] or arms[0] & arms[2] or arms[1] & arms[2])
    assert sum(map(len, shards)) == len(growth.jobs("full"))


def test_runs_by_a_rule_that_is_no_longer_do_not_count(tmp_path: Path) -> None:
    """Two rules in one mean would be neither."""
    rule = growth.PLAN["rule"]
    runs = [
        made("auto", 0.1, 0, 0) | {"rule": rule},
        made("auto", 0.1, 1, 0) | {"rule": rule - 1},
        made("8", 0.1, 1, 0),
    ]
    (tmp_path / "runs").write_text("".join(map(growth.line, runs)))
    assert growth.read(tmp_path / "runs") == [runs[0], runs[2]]


def test_pairs_are_runs_of_one_seed() -> None:
    base = [made("a", 0.1, seed, val=0, test=value) for seed, value in enumerate((1.0, 2.0, 3.0))]
    other = [made("b", 0.1, seed, val=0, test=value) for seed, value in ((2, 4.0), (1, 3.0))]
    compared = Results([]).compare(base, other)
    assert compared.pairs == 2 and compared.difference == pytest.approx(1.0)


@pytest.mark.parametrize("extra", [(), ("uniform", "random"), ("shrink", "lot4", "trial4", "uniform4@22")])
def test_a_page_is_written_from_whatever_has_run(task: Task, tmp_path: Path, extra: tuple[str, ...]) -> None:
    """A stopped suite can be looked at: arms that have not run yet are left out, or said."""
    runs = []
    for seed in range(2):
        for arm in ("4", "8", "16", "auto", *extra):
            runs.append(run(job(arm, seed=seed, widest=16), task, PLAN, tmp_path))
    write_report(Results(runs, 2), None, tmp_path)
    page = (tmp_path / "README.md").read_text()
    assert "## Without choosing" in page and "## What a run costs" in page
    assert ("## One early round" in page) == ("uniform" in extra)
    assert ("## Where: one layer" in page) == ("lot4" in extra)
    assert (tmp_path / "growth.png").stat().st_size > 0 and (tmp_path / "curves.png").stat().st_size > 0


def test_findings_open_the_sections_that_they_are_of() -> None:
    """A finding whose section is gone or renamed would vanish from the page."""
    page = "## Whether\n\nA linear map.\n\n## How much\n\nTeachers.\n"
    assert "## How much\n\nAs much as needed.\n\nTeachers." in with_findings(page, {"How much": "As much as needed."})
    with pytest.raises(ValueError, match="'How'"):
        with_findings(page, {"How": "As much as needed."})


@pytest.mark.slow
def test_the_quick_suite_resumes_and_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a reader runs first: some of its tasks, stopped and gone on with, then the page."""
    path = tmp_path / "runs.jsonl"
    monkeypatch.setattr(growth, "HOSTS", tmp_path / "hosts")
    monkeypatch.setitem(growth.PLAN, "steps", 100)
    command = [
        "growth",
        "--suite",
        "quick",
        "--tasks",
        "teacher",
        "rank2",
        "rank4",
        "--json",
        str(path),
        "--workers",
        "1",
    ]
    monkeypatch.setattr(sys, "argv", command)
    growth.main()
    runs = growth.read(path)
    wanted = [one for one in growth.jobs("quick") if one["task"] in command]
    assert {growth.key(one) for one in wanted} <= {growth.key(one) for one in runs}
    path.write_text("".join(json.dumps(one) + "\n" for one in runs[:-1]))
    growth.main()
    assert [growth.key(one) for one in growth.read(path)] == [growth.key(one) for one in runs]
    page = (tmp_path / "runs" / "README.md").read_text()
    assert "**teacher**, 3 pairs" in page and "| 4 | " in page
