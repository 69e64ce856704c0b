"""The benchmark that asks what a surer cull would do."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch


@pytest.fixture
def sure(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(Path(__file__).parents[2] / "benchmarks"), *sys.path])
    return pytest.importorskip("growth_sure")


@pytest.fixture
def gains(sure):
    """Of 3 nets: points and loss that each batch gains."""
    return {"own": torch.randn(2, 3, sure.BATCHES, generator=torch.Generator().manual_seed(0)).double()}


@pytest.mark.parametrize("errors", [0, 1, 2])
def test_costs_are_means_with_standard_errors_beside_them(sure, gains, errors):
    points, loss = sure.surely("own", errors, errors)(gains)
    rises = gains["own"].numpy() * np.array([-1, 1])[:, None, None]
    expected = rises.mean(2) + errors * rises.std(2, ddof=1) / np.sqrt(sure.BATCHES)
    np.testing.assert_allclose(torch.stack([points, loss]), expected)


@pytest.mark.parametrize(("errors", "batches_below"), [(0, 4), (1, 5), (2, 6)])
def test_the_sure_median_lies_above_so_many_batches(sure, gains, errors, batches_below):
    _, loss = sure.median("own", errors)(gains)
    assert ((gains["own"][1] < loss[:, None]).sum(1) == batches_below).all()


def test_a_fold_is_judged_by_each_batch_once(sure):
    for kind in ("half", "others"):
        assert sorted(sum(sure.FOLDS[kind], [])) == list(range(sure.BATCHES))


def test_the_table_of_the_page_is_that_of_the_results(sure):
    page = (Path(__file__).parents[2] / "docs" / "evidence" / "sizing.md").read_text(encoding="utf-8")
    assert sure.section(json.loads(sure.RESULTS.read_text(encoding="utf-8"))) in page
