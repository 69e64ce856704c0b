"""From the wheel alone, in somebody else's Hydra application: every preset, and the mistakes people make."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Environment:
    """A Python and, unless it has the package itself, the folder where the package lies."""

    python: str
    site: Path | None = None


@pytest.fixture(scope="session")
def shared(installed_wheel: Path) -> Environment:
    """Only the wheel, over the dependencies of this environment."""
    return Environment(sys.executable, installed_wheel)


@pytest.fixture(scope="session")
def fresh(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """A new virtual environment with the wheel and what it asks for: minutes, and needs the package index."""
    python = tmp_path_factory.mktemp("fresh") / "venv" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", str(python.parents[1])], check=True)
    install = [str(python), "-m", "pip", "install", "--quiet", "-c", str(ROOT / "constraints.txt"), str(wheel)]
    subprocess.run(install, check=True)
    return Environment(str(python))


ENVIRONMENTS = [
    pytest.param("shared", marks=pytest.mark.slow),
    pytest.param("fresh", marks=[pytest.mark.exhaustive, pytest.mark.timeout(2000)]),
]


@pytest.fixture(params=ENVIRONMENTS)
def site(request: pytest.FixtureRequest) -> Environment:
    return request.getfixturevalue(request.param)


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


def run(site: Environment, app: Path, *arguments: str, script: str = "app.py") -> tuple[int, str]:
    done = subprocess.run(
        [site.python, "-W", "ignore", script, *arguments],
        cwd=app,
        env={"PYTHONPATH": str(site.site or ""), "PATH": "/usr/bin:/bin", "HOME": str(app)},
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout + done.stderr


def test_every_shipped_preset_composes_and_instantiates(site: Environment, app: Path) -> None:
    wanted = [f"+morpho={name}" for name in ALONE] + [f"+morpho=default,morpho/{choice}" for choice in GROUPS]
    code, printed = run(site, app, str(app / "conf"), *wanted, script="every.py")
    assert code == 0, printed
    assert printed.split("\n")[:-1] == [f"{overrides} MorphoCallback" for overrides in wanted]


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
def test_documented_commands(arguments: list[str], printed: str, site: Environment, app: Path) -> None:
    code, output = run(site, app, *arguments)
    assert code == 0 and printed in output, output
    assert "composed without torch" in output, "an application that does not grow would start slower"


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
    arguments: list[str], told: list[str], site: Environment, app: Path
) -> None:
    code, output = run(site, app, *arguments)
    assert code != 0
    assert all(text in output for text in told), output
    assert "made" not in output


def test_other_groups_of_the_package_stay_hidden(site: Environment, app: Path) -> None:
    code, output = run(site, app, "--help")
    assert code == 0
    groups = [line.split(":")[0] for line in output.splitlines() if ": " in line]
    assert "morpho/rollout" in groups and "trainer" in groups
    assert not {"model", "data", "experiment", "logger"} & set(groups)


def test_multirun_sweeps_over_the_percentage(site: Environment, app: Path) -> None:
    code, output = run(site, app, "-m", "+morpho=full", "morpho.rollout.percentage=0,50", "hydra.sweep.dir=sweep")
    assert code == 0, output
    assert [line for line in output.splitlines() if line.startswith("made")] == [
        "made MorphoCallback True 0 theirs",
        "made MorphoCallback True 50 theirs",
    ]


@pytest.mark.slow
def test_command_is_installed(installed_wheel: Path) -> None:
    (entry,) = installed_wheel.glob("lightning_morpho-*.dist-info/entry_points.txt")
    assert "morpho = lightning_morpho.cli:main" in entry.read_text()


@pytest.mark.exhaustive
@pytest.mark.timeout(2000)
def test_command_of_a_fresh_environment_inspects_a_preset(fresh: Environment, tmp_path: Path) -> None:
    command = [str(Path(fresh.python).with_name("morpho")), "inspect", "train", "morpho=full"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and "+ net.0" in done.stdout, done.stdout + done.stderr
