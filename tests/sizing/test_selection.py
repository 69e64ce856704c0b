"""The linear algebra of the cull against numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_morpho.sizing import selection
from lightning_morpho.sizing.selection import Moments, candidate_widths, fold, greedy_order, stand_in


def covariance(units: int, seed: int, rank: int | None = None) -> np.ndarray:
    factors = np.random.default_rng(seed).normal(size=(rank or 3 * units, units))
    return factors.T @ factors / len(factors)


def explained(second: np.ndarray, weights: np.ndarray, keep: list[int]) -> float:
    """Variance of the output that a least-squares fit on the kept units gives, by the textbook formula."""
    kept = second[np.ix_(keep, keep)]
    cross = second[keep] @ weights
    return float(np.trace(cross.T @ np.linalg.pinv(kept) @ cross))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), units=st.integers(2, 7), fixed=st.integers(0, 2), rank=st.integers(1, 9))
def test_each_step_of_the_selection_takes_the_unit_that_explains_most(seed, units, fixed, rank):
    second = covariance(units, seed, rank)
    weights = np.random.default_rng(seed + 1).normal(size=(units, 3))
    order = greedy_order(torch.from_numpy(second), torch.from_numpy(weights), fixed)
    assert sorted(order) == list(range(units))
    assert order[:fixed] == list(range(fixed))
    for taken in range(fixed, units):
        gains = [explained(second, weights, [*order[:taken], u]) for u in order[taken:]]
        assert gains[0] == pytest.approx(max(gains), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("rank", [None, 5])
def test_the_order_does_not_depend_on_how_many_units_are_taken_at_once(rank, monkeypatch):
    """Layers wider than a block would else lose the wrong units."""
    second = torch.from_numpy(covariance(23, 4, rank))
    weights = torch.from_numpy(np.random.default_rng(5).normal(size=(23, 3)))
    at_once = greedy_order(second, weights, fixed=2)
    monkeypatch.setattr(selection, "_BLOCK", 4)
    in_blocks = greedy_order(second, weights, fixed=2)
    assert in_blocks[: rank or 23] == at_once[: rank or 23]
    assert sorted(in_blocks) == list(range(23))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), units=st.integers(2, 8), kept=st.integers(0, 7))
def test_what_kept_units_say_for_dropped_ones_is_ridge_regression(seed, units, kept):
    draw = np.random.default_rng(seed)
    h = draw.normal(size=(50, units)) @ draw.normal(size=(units, units)) + draw.normal(size=units)
    moments = Moments.zero(units)
    for part in np.array_split(h, 3):
        moments.add(torch.from_numpy(part))
    keep, drop = list(range(min(kept, units))), list(range(min(kept, units), units))
    table, shift = stand_in(*moments.second(centred=True), keep, drop, ridge=0.1)
    x = h[:, keep] - h[:, keep].mean(0)
    gram = x.T @ x / 50
    expected = np.linalg.solve(
        gram + 0.1 * np.diag(np.diag(gram)), x.T @ (h[:, drop] - h[:, drop].mean(0)) / 50
    ).reshape(len(keep), len(drop))
    np.testing.assert_allclose(table.numpy(), expected, rtol=2e-3, atol=2e-3)  # moments are summed in float32
    np.testing.assert_allclose(shift, h[:, drop].mean(0) - expected.T @ h[:, keep].mean(0), rtol=2e-3, atol=2e-2)


def test_units_that_are_combinations_of_others_fold_away_without_loss():
    draw = torch.Generator().manual_seed(0)
    h = torch.randn(200, 3, generator=draw)
    h = torch.cat([h, h @ torch.randn(3, 4, generator=draw) + 2], 1)
    moments = Moments.zero(7)
    moments.add(h)
    weight = torch.randn(5, 7, 2, generator=draw).double()
    order = greedy_order(moments.second(True)[1], weight.movedim(1, 0).flatten(1))
    keep, drop = order[:3], order[3:]
    table, shift = stand_in(*moments.second(True), keep, drop, ridge=1e-9)
    folded = fold(weight, table, keep, drop)
    assert (folded[:, drop] == 0).all()
    for tap in range(2):
        before, after = h.double() @ weight[:, :, tap].T, h.double() @ folded[:, :, tap].T
        torch.testing.assert_close(after + weight[:, drop, tap] @ shift, before, rtol=1e-3, atol=1e-3)


def test_moments_add_up_over_ranks():
    rows = torch.randn(30, 4)
    whole, left, right = Moments.zero(4), Moments.zero(4), Moments.zero(4)
    whole.add(rows)
    left.add(rows[:10])
    right.add(rows[10:])
    both = Moments.from_flat(left.flat() + right.flat())
    for a, b in zip(whole.second(True), both.second(True), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@given(st.integers(0, 5000))
def test_few_widths_are_tried_and_all_units_is_one_of_them(most):
    widths = candidate_widths(most)
    assert widths[-1] == most
    assert widths == sorted(set(widths))
    assert len(widths) <= 2 * max(1, most).bit_length() + 2
