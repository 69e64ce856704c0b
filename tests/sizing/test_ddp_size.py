"""Two ranks that see different halves of the validation data must agree on every unit."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hosts import assert_equal

TESTS = Path(__file__).parent.parent


@pytest.mark.slow
def test_ranks_keep_the_same_units_with_the_same_weights(tmp_path):
    places = os.pathsep.join([str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, str(TESTS / "sizing" / "ddp_size.py"), str(tmp_path)]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": places}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    assert_equal(first, second)
    assert 3 < first["shapes"][0][0] < 36  # it grew, and was narrowed
