"""State of many seeds, and statistics of activations."""

import numpy as np
import pytest
import torch

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


def test_statistics_refuse_other_features():
    with pytest.raises(ValueError, match="6 features"):
        ChunkStatistics(ChunkManager(6, 2)).update(torch.zeros(3, 5))
