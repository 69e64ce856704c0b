"""The page on exporting runs as it stands, block after block."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "export.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.slow
def test_code_of_the_page_runs_and_prints_what_it_says(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    space: dict[str, object] = {}
    for block in BLOCKS:
        exec(compile(block, "docs/export.md", "exec"), space)
    monkeypatch.delitem(sys.modules, "net")
    printed = capsys.readouterr().out
    assert re.search(r"```text\n(.*?)```", PAGE, re.DOTALL)[1] in printed
    assert "onnx: largest difference" in printed and "tensor(True)" in printed
