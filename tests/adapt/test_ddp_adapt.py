"""Adaptation on two ranks: with a frozen host DDP's own reducer has nothing to do, and must not mind."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hosts import assert_equal, run_script
from lightning_morpho.telemetry import EVENTS_FILE, read_events


@pytest.mark.slow
def test_ranks_adapt_alike_and_the_host_stands_still(tmp_path: Path) -> None:
    run_script(Path(__file__).with_name("ddp_adapt.py"), str(tmp_path))
    (before, first), (_, second) = (torch.load(tmp_path / f"rank-{rank}.pt") for rank in (0, 1))
    assert_equal(first, second)
    assert_equal(before, {name: first[name] for name in before})
    assert any(value.any() for name, value in first.items() if name.endswith("w_out"))
    reasons = {e.get("reason") for e in read_events(tmp_path / EVENTS_FILE)}
    assert {"from the start", "probation passed", "least useful in probation"} <= reasons
