"""The built wheel, installed and used outside the checkout: what a user of the package index gets."""

import ast
import re
import subprocess
import sys
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

USE = """
import pathlib, sys
import lightning_morpho
from hydra import compose, initialize_config_module

installed = pathlib.Path(lightning_morpho.__file__).resolve()
assert installed.is_relative_to(pathlib.Path(sys.argv[1]).resolve()), installed
with initialize_config_module("lightning_morpho.configs", version_base="1.3"):
    print(compose("train", ["experiment=mnist1d"]).morpho._target_)
print(lightning_morpho.MorphoCallback().__class__.__name__)
"""


def _run(*command: str, cwd: Path, **env: str) -> str:
    done = subprocess.run([sys.executable, *command], cwd=cwd, env=env or None, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_what_is_imported_at_once_is_a_declared_dependency():
    """What merely happens to come with another package today would one day fail at ``import lightning_morpho``."""
    listed = re.search(r"^dependencies = \[(.*?)^\]", (ROOT / "pyproject.toml").read_text(), re.DOTALL | re.MULTILINE)
    declared = {re.split(r"[^\w-]", entry)[0].replace("_", "-").lower() for entry in re.findall(r'"(.+?)"', listed[1])}
    imported = set()
    for file in (ROOT / "lightning_morpho").rglob("*.py"):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ImportFrom):
                imported.add(node.module.split(".")[0])
            elif isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
    homes = packages_distributions()
    foreign = {name for name in imported if name in homes} - set(sys.stdlib_module_names) - {"lightning_morpho"}
    assert len(foreign) > 5
    missing = {name for name in foreign if not {h.replace("_", "-").lower() for h in homes[name]} & declared}
    assert missing <= {"triton"}, missing  # imported by files that are loaded where it is there


@pytest.mark.slow
def test_wheel_holds_configs_and_type_marker_and_no_tests(wheel):
    shipped = set(zipfile.ZipFile(wheel).namelist())
    presets = {f"lightning_morpho/{path.relative_to(ROOT)}" for path in ROOT.glob("configs/**/*.yaml")}
    assert presets
    assets = {str(path.relative_to(ROOT)) for path in ROOT.glob("lightning_morpho/telemetry/report/assets/*")}
    assert {Path(asset).suffix for asset in assets} == {".j2", ".css", ".js", ".LICENSE"}
    assert {"lightning_morpho/py.typed", *presets, *assets} <= shipped
    foreign = {
        name for name in shipped if not name.startswith(("lightning_morpho/", "lightning_morpho-", "hydra_plugins/"))
    }
    assert not foreign


@pytest.mark.slow
def test_installed_wheel_works_outside_the_checkout(installed_wheel, tmp_path):
    site, work = installed_wheel, tmp_path
    printed = _run("-c", USE, str(site), cwd=work, PYTHONPATH=str(site))
    assert printed.split() == ["lightning_morpho.MorphoCallback", "MorphoCallback"]
    composed = _run(
        "-m", "lightning_morpho.train", "experiment=mnist1d", "--cfg", "job", cwd=work, PYTHONPATH=str(site)
    )
    assert "_target_: lightning_morpho.RolloutConfig" in composed
