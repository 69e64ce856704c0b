"""Two ranks that see different halves of the validation data must agree on every unit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hosts import assert_equal, run_script


@pytest.mark.slow
def test_ranks_keep_the_same_units_with_the_same_weights(tmp_path):
    run_script(Path(__file__).with_name("ddp_size.py"), str(tmp_path))
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    assert_equal(first, second)
    assert 3 < first["shapes"][0][0] < 36  # it grew, and was narrowed
