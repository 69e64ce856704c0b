"""From the wheel alone, in somebody else's Hydra application: every preset, and the mistakes people make."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GROUPS = sorted(f"{path.parent.name}={path.stem}" for path in (ROOT / "configs/morpho").glob("*/*.yaml"))
ALONE = sorted(path.stem for path in (ROOT / "configs/morpho").glob("*.yaml"))

APP = """
import sys
import hydra
from hydra.utils import instantiate

@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg):
    print("imported" if "torch" in sys.modules else "composed without torch")
    callback = instantiate(cfg.trainer.callback if "callback" in cfg.trainer else cfg.morpho)
    rollout = callback.config.rollout
    print("made", type(callback).__name__, rollout.enabled, rollout.percentage, cfg.trainer.name)

if __name__ == "__main__":
    main()
"""

EVERY = """
import sys
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

with initialize_config_dir(sys.argv[1], version_base="1.3"):
    for overrides in sys.argv[2:]:
        node = compose("config", overrides.split(",")).morpho
        print(overrides, type(instantiate(node)).__name__)
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with only the wheel in it."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True, timeout=200)
    (wheel,) = folder.glob("*.whl")
    install = ["pip", "install", "--no-deps", "--no-index", "--target", str(folder / "site"), str(wheel)]
    subprocess.run([sys.executable, "-m", *install], check=True, capture_output=True, timeout=200)
    return folder / "site"


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An application that has groups of the same names as ours: its own must win, ours must not show."""
    folder = tmp_path_factory.mktemp("app")
    (folder / "conf" / "trainer").mkdir(parents=True)
    (folder / "conf" / "config.yaml").write_text("defaults:\n  - trainer: default\n  - _self_\n")
    (folder / "conf" / "trainer" / "default.yaml").write_text("name: theirs\n")
    (folder / "conf" / "morpho" / "rollout").mkdir(parents=True)
    (folder / "conf" / "morpho" / "rollout" / "mine.yaml").write_text(
        "_target_: lightning_morpho.RolloutConfig\npercentage: 33\n"
    )
    (folder / "app.py").write_text(APP)
    (folder / "every.py").write_text(EVERY)
    return folder


def run(site: Path, app: Path, *arguments: str, script: str = "app.py") -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", script, *arguments],
        cwd=app,
        env={"PYTHONPATH": str(site), "PATH": "/usr/bin:/bin", "HOME": str(app)},
        capture_output=True,
        text=True,
        timeout=200,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
def test_every_shipped_preset_composes_and_instantiates(site: Path, app: Path) -> None:
    wanted = [f"+morpho={name}" for name in ALONE] + [f"+morpho=default,morpho/{choice}" for choice in GROUPS]
    code, printed = run(site, app, str(app / "conf"), *wanted, script="every.py")
    assert code == 0, printed
    assert printed.split("\n")[:-1] == [f"{overrides} MorphoCallback" for overrides in wanted]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "printed"),
    [
        (
            ["+morpho=default", "morpho/rollout=canary", "morpho.rollout.percentage=25"],
            "made MorphoCallback True 25 theirs",
        ),
        (["+morpho=default", "morpho/rollout=mine"], "made MorphoCallback True 33 theirs"),
        (["+morpho@trainer.callback=default"], "made MorphoCallback False 100.0 theirs"),
    ],
)
def test_documented_commands(arguments: list[str], printed: str, site: Path, app: Path) -> None:
    code, output = run(site, app, *arguments)
    assert code == 0 and printed in output, output
    assert "composed without torch" in output, "an application that does not grow would start slower"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["+morpho=default", "morpho/rollout=canry"], ["morpho/rollout/canry", "canary"]),
        (["+morpho=default", "morpho.rollout.percentge=5"], ["percentge", "not in struct"]),
        (["+morpho=default", "+morpho.rollout.percentge=5"], ["`percentge`: did you mean `percentage`"]),
        (["+morpho=default", "morpho.rollout.percentage=120"], ["`rollout.percentage`", "[0, 100]", "got 120"]),
        (["+morpho=default", "morpho.rollout=canary"], ["`rollout`", "bare string 'canary'", "morpho/rollout=canary"]),
        (["+morpho=default", "+morpho.rolout.enabled=true"], ["`rolout`: did you mean `rollout`"]),
        (["+morpho=default", "morpho.rollout.enabled=yess"], ["`rollout.enabled` must be true or false, got 'yess'"]),
        (["+model=conv1d"], ["model"]),
    ],
)
def test_typical_mistakes_are_named_with_the_way_out(
    arguments: list[str], told: list[str], site: Path, app: Path
) -> None:
    code, output = run(site, app, *arguments)
    assert code != 0
    assert all(text in output for text in told), output
    assert "made" not in output


@pytest.mark.slow
def test_other_groups_of_the_package_stay_hidden(site: Path, app: Path) -> None:
    code, output = run(site, app, "--help")
    assert code == 0
    groups = [line.split(":")[0] for line in output.splitlines() if ": " in line]
    assert "morpho/rollout" in groups and "trainer" in groups
    assert not {"model", "data", "experiment", "logger"} & set(groups)


@pytest.mark.slow
def test_multirun_sweeps_over_the_percentage(site: Path, app: Path) -> None:
    code, output = run(site, app, "-m", "+morpho=full", "morpho.rollout.percentage=0,50", "hydra.sweep.dir=sweep")
    assert code == 0, output
    assert [line for line in output.splitlines() if line.startswith("made")] == [
        "made MorphoCallback True 0 theirs",
        "made MorphoCallback True 50 theirs",
    ]


@pytest.mark.slow
def test_command_is_installed(site: Path, app: Path) -> None:
    (entry,) = site.glob("lightning_morpho-*.dist-info/entry_points.txt")
    assert "morpho = lightning_morpho.cli:main" in entry.read_text()
