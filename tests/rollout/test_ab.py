"""Paired comparisons: a verdict that noise can bring about is worse than none."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from lightning_morpho.ab import compare_pairs, metric_values, run_pairs
from lightning_morpho.cli import main


@pytest.mark.parametrize("pairs", [2, 3, 5, 8, 30])
def test_interval_is_the_paired_t_interval(pairs):
    rng = np.random.default_rng(pairs)
    a = rng.normal(size=pairs)
    b = a + rng.normal(0.3, 0.5, size=pairs)
    own = compare_pairs(a.tolist(), b.tolist())
    interval = stats.ttest_rel(b, a).confidence_interval(0.95)
    width = interval.high - interval.low
    # `student_t_quantile` is a series, within 0.5 %; 3 % of the half-width leaves room at 0.975.
    assert own.low == pytest.approx(interval.low, abs=0.03 * width)
    assert own.high == pytest.approx(interval.high, abs=0.03 * width)


@pytest.mark.parametrize(
    ("difference", "higher_is_better", "verdict"),
    [(0.1, True, "better"), (-0.1, True, "worse"), (0.1, False, "worse"), (-0.1, False, "better")],
)
def test_clear_difference_has_its_verdict_in_both_directions(difference, higher_is_better, verdict):
    a = [0.5, 0.6, 0.7, 0.8]
    b = [x + difference + 0.001 * i for i, x in enumerate(a)]
    comparison = compare_pairs(a, b, higher_is_better=higher_is_better)
    assert comparison.verdict == verdict and f"B is {verdict}" in str(comparison)


def test_equal_arms_are_told_apart_in_one_series_of_twenty_at_most():
    rng = np.random.default_rng(0)
    told = sum(
        compare_pairs(rng.normal(size=8).tolist(), rng.normal(size=8).tolist()).verdict != "no difference shown"
        for _ in range(2000)
    )
    low, high = stats.binom.interval(0.999, 2000, 0.05)
    assert low <= told <= high


def test_no_difference_at_all_is_no_difference_shown():
    assert compare_pairs([0.5, 0.6], [0.5, 0.6]).verdict == "no difference shown"


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [([1.0], [1.0], "at least 2 pairs"), ([1.0, 2.0], [1.0], "equal length"), ([1.0, float("nan")], [1, 2], "finite")],
)
def test_what_can_not_be_compared_is_refused(a, b, message):
    with pytest.raises(ValueError, match=message):
        compare_pairs(a, b)


def test_interrupted_series_goes_on_where_it_stopped():
    seen = []

    def run(variant, seed):
        seen.append((variant, seed))
        return {"x": float(seed)}

    results = run_pairs(run, ["a", "b"], range(2), done={("a", 0): {"x": 7.0}})
    assert seen == [("b", 0), ("a", 1), ("b", 1)]
    assert metric_values(results["a"], "x") == [7.0, 1.0]


def test_missing_metric_lists_what_was_logged():
    with pytest.raises(ValueError, match="No run logs `test_f1`; what was logged: test_acc"):
        metric_values([{"test_acc": 1.0}], "test_f1")


# ------------------------------------------------------------------------------------------ command
FAST = ["experiment=mnist1d", "trainer.max_epochs=1", "trainer.limit_train_batches=3", "data.num_train=500"]


def ab(out: Path, *arguments: str) -> int:
    return main(["ab", "train", *FAST, "--seeds", "2", "--out", str(out), *arguments])


def test_command_runs_pairs_and_prints_the_verdict(tmp_path, capsys):
    arguments = ["--a", "~morpho", "--b", "morpho/tamiyo=never"]
    assert ab(tmp_path, *arguments, "--require", "not-worse") == 0
    assert "test_acc: no difference shown" in capsys.readouterr().out
    assert ab(tmp_path, *arguments, "--require", "better") == 1
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [(line["variant"], line["seed"]) for line in lines] == [("a", 0), ("b", 0), ("a", 1), ("b", 1)]
    assert json.loads((tmp_path / "verdict.json").read_text())["pairs"] == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--a", "", "--b", "morpho.rollout.percentge=5"], "percentge"),
        (["--a", "", "--b", "", "--train", "nowhere:train"], "`--train` must be module:function, got 'nowhere:train'"),
    ],
)
def test_command_names_the_mistake(arguments, message, tmp_path, capsys):
    assert ab(tmp_path, *arguments) == 2
    assert message in capsys.readouterr().err
