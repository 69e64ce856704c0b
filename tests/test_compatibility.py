"""The compatibility matrix in the docs must say what running it says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_documented_matrix_is_what_the_models_do(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "compatibility.py"), "--write", str(tmp_path / "now.md")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "now.md").read_text(encoding="utf-8") == (ROOT / "docs" / "compatibility.md").read_text(
        encoding="utf-8"
    ), "run `python benchmarks/compatibility.py --write docs/compatibility.md` and read the difference"
