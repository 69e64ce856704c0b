"""The examples run as they stand, with a small budget: what a person copies must work."""

from __future__ import annotations

import gzip
import importlib.util
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from hosts import run_script

FOLDER = Path(__file__).parents[1] / "examples"
Budget = Callable[[Path], list[str]]


def _letters(folder: Path) -> list[str]:
    """A table of the real one's form: 26 clusters."""
    draw = random.Random(0)
    rows = [(chr(65 + n % 26), *((n % 26 * (k + 1)) % 16 + draw.randint(0, 1) for k in range(16))) for n in range(3000)]
    (folder / "letter.data").write_text("".join(",".join(map(str, row)) + "\n" for row in rows))
    return ["--data", str(folder / "letter.data"), "--epochs", "4"]


def _sources(folder: Path) -> list[str]:
    text = (FOLDER / "byte_gpt.py").read_text(encoding="utf-8")
    (folder / "text.py").write_text(text * 4, encoding="utf-8")
    return ["--data", str(folder), "--steps", "20"]


def _images(folder: Path) -> list[str]:
    """Files of the real ones' form: noise."""
    draw = random.Random(0)
    for part, count in (("train", 800), ("t10k", 100)):
        for kind, header, size in (("images-idx3", 16, 784), ("labels-idx1", 8, 1)):
            content = draw.randbytes(count * size) if size > 1 else bytes(n % 10 for n in range(count))
            (folder / f"{part}-{kind}-ubyte.gz").write_bytes(gzip.compress(bytes(header) + content, 1))
    return ["--data", str(folder), "--epochs", "2"]


def _epochs(count: int) -> Budget:
    return lambda folder: ["--epochs", str(count)]


IN_PROCESS: dict[str, tuple[Budget, list[str]]] = {
    "tabular_letter": (_letters, ["test accuracy", "Linear(in_features=16"]),
    "fashion_resnet": (_images, ["blocks.0.conv2", "DORMANT -> LOADING", "test accuracy"]),
    "byte_gpt": (_sources, ["blocks.0.mlp.2", "nats a byte"]),
    "custom_blueprint": (_epochs(2), ["wide_bran", "test accuracy"]),
    "custom_policy": (_epochs(16), ["net.2", "test accuracy"]),
    "plain_loop": (lambda folder: ["--steps", "1000"], ["FOSSILIZED", "exported: accuracy", "out_features=14"]),
    "growing_on": (_epochs(24), ["one round at 15% of training", "the data have changed", "on all digits"]),
    "train_mnist1d": (_epochs(3), ["DORMANT -> LOADING", "test_acc"]),
}
TESTED_APART = {"demo", "adapt_sentence_encoder", "ddp", "hydra_sweep"}
"""By `make demo`, by tests/adapt, and at the end of this file in processes of their own."""
LEAVING = """
from pathlib import Path
from hosts import leave_processes
exec(compile(Path({path!r}).read_text(), {path!r}, "exec"))
leave_processes()
"""


def test_every_example_is_tested() -> None:
    assert {path.stem for path in FOLDER.glob("*.py")} == {*IN_PROCESS, *TESTED_APART}


@pytest.mark.slow
@pytest.mark.parametrize("name", IN_PROCESS)
def test_runs(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    budget, expected = IN_PROCESS[name]
    monkeypatch.chdir(tmp_path)
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None and spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    example.main(budget(tmp_path))
    printed = capsys.readouterr().out + caplog.text
    assert [text for text in expected if text not in printed] == [], printed[-3000:]


@pytest.mark.slow
def test_two_processes_grow_alike(tmp_path: Path) -> None:
    """Each of them runs the example as `__main__`, and leaves before torch's threads can abort its exit."""
    script = tmp_path / "run.py"
    script.write_text(LEAVING.format(path=str(FOLDER / "ddp.py")))
    printed = run_script(script, "--epochs", "2", folder=tmp_path)
    assert "2 ranks, 3 germinations, weights equal on all of them: True" in printed, printed[-3000:]


@pytest.mark.slow
def test_a_sweep_tries_each_value(tmp_path: Path) -> None:
    printed = run_script(FOLDER / "hydra_sweep.py", "-m", "morpho/tamiyo=never,uniform", "epochs=2", folder=tmp_path)
    for policy in ("never", "uniform"):
        assert f"morpho/tamiyo={policy} epochs=2: validation" in printed, printed[-3000:]
