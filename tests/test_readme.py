"""What README and documentation show must run as it stands, and the site be built without a warning."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import lightning_morpho

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.slow
@pytest.mark.parametrize("code", BLOCKS, ids=range(len(BLOCKS)))
def test_code_blocks_run(
    code: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    printed = capsys.readouterr().out + caplog.text
    if "trainer.fit" in code:
        shown = re.findall(r"```text\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)[0].splitlines()
        said = [line for line in shown if line.startswith(("MorphoCallback", "  + ", "morpho:"))]
        assert [line for line in said if line not in printed] == []
        assert "FOSSILIZED" in printed and "test_acc" in printed


def test_the_first_example_stays_short() -> None:
    assert len(BLOCKS[0].strip().splitlines()) <= 12


# Its own test compares what the page on exporting prints, too.
PAGES = [page for page in sorted((ROOT / "docs").rglob("*.md")) if page.name != "export.md"]
PAGES = [page for page in PAGES if "```python" in page.read_text(encoding="utf-8")]


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=[page.stem for page in PAGES])
def test_code_of_a_page_runs_block_after_block(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    space: dict[str, object] = {}
    for block in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        exec(compile(block, page.name, "exec"), space)
    assert "False" not in capsys.readouterr().out


def test_every_public_name_has_its_place_in_the_reference() -> None:
    """A name that can be imported and stands nowhere would have to be guessed."""
    pages = "\n".join(page.read_text(encoding="utf-8") for page in (ROOT / "docs" / "api").glob("*.md"))
    shown = set(re.findall(r"^::: lightning_morpho\.(\w+)$", pages, re.MULTILINE))
    assert set(lightning_morpho.__all__) - shown == set()


@pytest.mark.slow
def test_site_is_built_without_a_warning(tmp_path: Path) -> None:
    """A broken link, an anchor that is gone, or a name of the reference that no longer exists."""
    pytest.importorskip("mkdocs", reason="pip install 'lightning-morpho[docs]'")
    pytest.importorskip("mkdocstrings", reason="pip install 'lightning-morpho[docs]'")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    reference = (tmp_path / "api" / "core.html").read_text(encoding="utf-8")
    assert "Let a model grow while it trains." in reference
    assert not re.findall(r'(?:src|href)="https?://[^"]*\.(?:js|css)', reference), "the site asks another host"
