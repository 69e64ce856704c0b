"""The benchmark that says when the default policy grows."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from lightning_morpho.tamiyo import Assessment

ANSWERS = {
    "at once": ([(20, 0.2, 0.2), (100, 0.1, 0.1)], 20),
    "never": ([(20, 0.01, 0.9), (100, -0.01, 0.1)], None),
    "too late": ([(20, 0.01, 0.9), (100, -0.01, 0.1), (200, 0.0, 0.1), (220, 0.5, 0.1)], None),
}


@pytest.fixture
def whether(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(Path(__file__).parents[2] / "benchmarks"), *sys.path])
    return pytest.importorskip("growth_whether")


def answers_of(name: str) -> list[Assessment]:
    return [
        Assessment(layer="net.2", share=share, own=own, error=1e-3, residual=1 / step, step=step)
        for step, share, own in ANSWERS[name][0]
    ]


@pytest.mark.parametrize("name", ANSWERS)
def test_the_moment_is_that_of_the_policy_itself(whether, name):
    assert whether.grown_at(answers_of(name)) == ANSWERS[name][1]


def test_the_table_says_what_was_asked_and_what_came_of_it(whether):
    runs = [{"rate": 0.01, "seed": 0, "answers": [asdict(a) for a in answers_of(n)]} for n in ("at once", "never")]
    row = whether.section({"linear": runs}).splitlines()[-1]
    assert row == "| linear | 0.01 | 10, 55 % | 4.5, 10 % | 2 %, never (1 of 2) |"
