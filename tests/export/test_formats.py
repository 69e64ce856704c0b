"""A grown model leaves as files that load where this package is not installed, and give what it gave."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch

from benchmarks.architectures import ARCHITECTURES

sys.path.insert(0, str(Path(__file__).parent))
from grown import grown, host_alone  # noqa: E402
from lightning_morpho.blueprints.base import _REGISTRY  # noqa: E402
from lightning_morpho.export import FORMATS, save_export  # noqa: E402

ROOT = Path(__file__).parents[2]
LIMIT = 1e-5  # float32; the outputs are of the size of 1
# Every format, every built-in kind and the main families once; all combinations run as `exhaustive`.
SOME = [("mlp", "glu"), ("vgg", "mlp"), ("resnet", "auto"), ("unet", "block"), ("adapter", "lowrank")]
KINDS = [kind for kind, made in _REGISTRY.items() if made.__module__.startswith("lightning_morpho.") and kind != "span"]
KINDS += ["auto", "own_module"]  # auto: span where there is a pair; a module of the user's own
ALL = [(name, kind) for name in (*ARCHITECTURES, "adapter") for kind in KINDS]


def export_all(folder: Path, cases: Iterable[tuple[str, str]]) -> dict[str, float]:
    """Export each case in all formats, load everything in another process, and give the differences by file."""
    for name, kind in cases:
        model, x = grown(name, kind)
        report = save_export(model, folder / f"{name}_{kind}", x, formats=list(FORMATS))
        assert max(report.differences.values()) <= LIMIT
        assert (host_alone(model, x) - model(x)).abs().max() > 1e-4, "the seeds add nothing to compare"
        other = torch.cat([x, -x, x[:1]])  # another batch of another size
        saved = {"x": other, "y": model(other).detach(), "architecture": name}
        torch.save(saved, folder / f"{name}_{kind}.reference")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(Path(__file__).parent / "load_plain.py"), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def check(found: dict[str, float], cases: list[tuple[str, str]]) -> None:
    assert found.keys() == {f"{name}_{kind}.{suffix}" for name, kind in cases for suffix in FORMATS}
    assert max(found.values()) <= LIMIT, {name: d for name, d in found.items() if d > LIMIT}


@pytest.mark.slow
def test_every_format_loads_without_this_package(tmp_path):
    check(export_all(tmp_path, SOME), SOME)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", (*ARCHITECTURES, "adapter"))
def test_every_architecture_with_every_blueprint_loads_without_this_package(name, tmp_path):
    cases = [case for case in ALL if case[0] == name]
    found = export_all(tmp_path, cases)
    check(found, cases)
    print(name, f"{len(found)} files, largest difference {max(found.values()):.1e}")
