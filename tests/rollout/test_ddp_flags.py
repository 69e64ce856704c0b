"""A flag that switches on one rank alone would make the replicas drift apart without a word."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hosts import assert_equal, run_script


@pytest.mark.slow
def test_all_ranks_switch_before_the_same_step_and_stay_bit_equal(tmp_path: Path) -> None:
    run_script(Path(__file__).with_name("ddp_flags.py"), str(tmp_path))
    first, second = (torch.load(tmp_path / f"steps-{rank}.pt") for rank in (0, 1))
    implementations = [name for name, _ in first]
    assert implementations == [name for name, _ in second]
    off = [step for step, name in enumerate(implementations) if name == "base"]
    assert off == list(range(off[0], off[-1] + 1)) and off[0] == 15 and implementations[-1] == "chunked"
    assert_equal(first, second)
    beds = {n: p for n, p in first[off[0]][1].items() if ".morpho." in n}
    assert any(p.any() for p in beds.values())
    # Switched off, no bed moves on any rank: under DDP a zero gradient would let momentum and decay in.
    assert_equal(beds, {n: first[off[-1]][1][n] for n in beds})
    ends = [(tmp_path / f"end-{rank}.txt").read_text() for rank in (0, 1)]
    assert ends == ["base", "base"], "the guard of a ramp must see an error of rank 1 alone, and turn all off"
