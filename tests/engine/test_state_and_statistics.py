"""State of many seeds, and statistics of activations."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_morpho import ChunkManager, ChunkStatistics, Stage, StateTensor


@pytest.mark.parametrize(
    "values", [{"alpha": 1.5}, {"alpha": np.nan}, {"stage": 300}, {"age": 0.5}, {"unknown": 1}, {"alpha": [1.0, -1.0]}]
)
def test_a_refused_update_changes_nothing(values):
    state = StateTensor(4)
    before = state.to_dict()
    with pytest.raises(ValueError):
        state.update([0, 1], generation=7, **values)
    with pytest.raises(ValueError):
        state.update([0, 4], generation=7)
    assert state.to_dict() == before
    assert state.version == 0


def test_a_million_seeds_are_found_by_stage():
    state = StateTensor(1_000_000)
    state.update([5, 999_999], stage=[Stage.ACTIVE, Stage.LOADING])
    assert state.where(Stage.ACTIVE, Stage.LOADING).tolist() == [5, 999_999]
    assert state.nbytes / 100 <= 320 * 1024


def test_one_pass_statistics_survive_a_large_mean():
    values = torch.randn(20_000, 6) * 0.01 + 1000
    statistics = ChunkStatistics(ChunkManager(6, 2))
    for part in values.split(7000):
        statistics.update(part.view(-1, 1, 6))
    want = values.double().var(0, correction=0).view(2, 3).mean(1)
    # The inputs themselves are rounded to 6e-5 at 1000, which is 0.6 % of their spread.
    torch.testing.assert_close(statistics.compute()["variance"].double(), want, rtol=1e-4, atol=0)


@given(st.lists(st.integers(0, 40), min_size=1, max_size=5), st.integers(0, 1000))
def test_samples_whose_mean_drifts_give_what_all_of_them_together_give(sizes, random):
    """The mean so far is the origin of what is summed: it must not matter how far the next sample lies from it."""
    rng = np.random.default_rng(random)
    samples = [rng.normal(20 * i, 1 + i, (size, 5)).astype(np.float32) for i, size in enumerate(sizes)]
    statistics = ChunkStatistics(ChunkManager(5, 2))
    for sample in samples:
        statistics.update(torch.from_numpy(sample))
    seen = np.concatenate(samples).astype(np.float64)
    count, mean, m2, largest = statistics.moments()
    assert count.item() == len(seen)
    if len(seen):
        np.testing.assert_array_equal(largest, seen.max(0))
        np.testing.assert_allclose(mean, seen.mean(0), rtol=1e-5, atol=1e-4)
        # float32 sums of at most 200 squares of up to 100
        np.testing.assert_allclose(m2, seen.var(0) * len(seen), rtol=1e-4, atol=1e-3)


def test_statistics_refuse_other_features():
    with pytest.raises(ValueError, match="6 features"):
        ChunkStatistics(ChunkManager(6, 2)).update(torch.zeros(3, 5))
