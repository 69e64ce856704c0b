"""Every command that README and documentation show: run, with a small budget, or, where it can't be, checked."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize, initialize_config_module
from omegaconf import DictConfig, OmegaConf

from lightning_morpho import RampConfig, RolloutConfig
from lightning_morpho.cli import main
from lightning_morpho.telemetry.figures import LAYER_FIGURES, RUN_FIGURES, SEED_FIGURES
from lightning_morpho.train import train

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "benchmarks" / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
TEXT = {page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8") for page in PAGES}
FAST = ["trainer.max_epochs=2", "data.num_train=500", "logger=csv", "test=false", "trainer.enable_progress_bar=false"]
FAST += ["morpho.telemetry.table=false", "morpho.warmup.steps=4", "morpho.warmup.min_steps=2"]


def blocks(language: str) -> list[tuple[str, str]]:
    """Fenced blocks of a language, with their pages."""
    found = re.compile(rf"^ *```{language}\n(.*?)^ *```", re.DOTALL | re.MULTILINE)
    return [(page, block) for page, text in TEXT.items() for block in found.findall(text)]


def commands() -> Iterator[tuple[str, str]]:
    """Every command line of a block of shell."""
    for page, block in blocks("bash"):
        for line in block.replace("\\\n", " ").splitlines():
            if shlex.split(line, comments=True):
                yield page, line


def inline() -> Iterator[tuple[str, str]]:
    """Every command in running text and tables."""
    for page, text in TEXT.items():
        prose = re.sub(r"^ *```.*?^ *```", "", text, flags=re.DOTALL | re.MULTILINE)
        for code in re.findall(r"`((?:python|morpho|make|pytest) [^`]+)`", prose):
            yield page, code


COMMANDS = sorted(set(commands()))


def composed(overrides: list[str]) -> DictConfig:
    with initialize_config_module("lightning_morpho.configs", version_base="1.3"):
        return compose("train", overrides)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the application, with all that commands on runs ask for."""
    folder = tmp_path_factory.mktemp("run")
    cfg = composed(["experiment=mnist1d", f"output_dir={folder}", *FAST])
    train(cfg)
    (folder / ".hydra").mkdir()
    OmegaConf.save(cfg, folder / ".hydra" / "config.yaml")
    return folder


def _real(word: str, run: Path) -> str:
    """An argument of a command with what its placeholders stand for."""
    if word.endswith("config.yaml") and "<" in word:
        return str(run / ".hydra" / "config.yaml")
    if word == "last.ckpt":
        return str(next(run.rglob("*.ckpt")))
    return str(run) if word in ("lightning_logs/version_0", "RUN") else word


@pytest.mark.slow
@pytest.mark.parametrize(("page", "line"), COMMANDS, ids=[f"{page}: {line[:50]}" for page, line in COMMANDS])
def test_a_shown_command_works(page: str, line: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PWD", str(tmp_path))
    words = shlex.split(line.replace("$PWD", str(tmp_path)), comments=True)
    if words[0] == "morpho":
        if line.startswith("morpho flags enable"):
            main(["flags", "disable", "flags.yaml", "--create"])
        arguments = [_real(word, run) for word in words[1:]]
        if words[1] == "ab":
            arguments[arguments.index("--seeds") + 1] = "2"
            arguments[3:3] = FAST[:2]
        assert main(arguments) in (0, 1), "2 is wrong use"
    elif words[:3] == ["python", "-m", "lightning_morpho.train"]:
        overrides = [word for word in words[3:] if "cohort_dir" not in word]
        train(composed([*overrides, *FAST, f"output_dir={tmp_path}"]))
    elif words[:2] == ["python", "app.py"]:
        with initialize(version_base="1.3", config_path=None):
            cfg = compose(overrides=[word.split(",")[0] for word in words[2:] if word != "-m"])
        assert cfg.morpho._target_ == "lightning_morpho.MorphoCallback"
    elif words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    else:
        assert words[:2] == ["pip", "install"], f"nobody checks this command of {page}"
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        assert all(name in extras for name in re.findall(r"\[(\w+)\]", line)) and (ROOT / "constraints.txt").is_file()


@pytest.mark.parametrize(("page", "code"), sorted(set(inline())))
def test_a_command_in_the_text_names_what_exists(page: str, code: str):
    words = code.split()
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
        return
    if words[0] == "morpho":
        with pytest.raises(SystemExit) as ended:
            main([words[1], "--help"])
        assert ended.value.code == 0
        return
    path = words[1] if words[1].endswith(".py") else next((w for w in words if w.endswith(".py")), None)
    if words[:2] == ["python", "-m"] and not words[2].endswith("…"):
        path = "conftest.py" if words[2] == "pytest" else words[2].replace(".", "/") + ".py"
    if path is None or path == "app.py":
        return
    source = (ROOT / path.split("::")[0]).read_text(encoding="utf-8")
    harness = (ROOT / "benchmarks" / "harness.py").read_text(encoding="utf-8")
    for option in re.findall(r"--[a-z][a-z-]*", code) if words[0] == "python" and path != "conftest.py" else []:
        assert option in source + (harness if "benchmarks.harness" in source else ""), f"{path} has no {option}"


@pytest.mark.parametrize(("page", "block"), blocks("yaml"))
def test_a_shown_yaml_is_a_configuration(page: str, block: str):
    shown = yaml.safe_load(block)
    rollout = shown["morpho"]["rollout"]
    cfg = OmegaConf.merge(composed(["experiment=mnist1d"]), shown)
    assert cfg.morpho.rollout.unit == rollout["unit"]
    RolloutConfig(**{**rollout, "ramp": RampConfig(**rollout["ramp"])})


@pytest.mark.parametrize(("page", "block"), blocks("json"))
def test_a_shown_line_of_a_log_is_json(page: str, block: str):
    assert [json.loads(line)["event"] for line in block.splitlines()]


@pytest.mark.parametrize("command", ["report", "watch", "inspect", "export", "flags", "ab", "replay", "reference"])
def test_every_command_says_in_its_help_what_it_does(command: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    usage, description, *_ = capsys.readouterr().out.split("\n\n")
    assert end.value.code == 0 and usage.startswith(f"usage: morpho {command}")
    assert description[0].isupper() and description.endswith(".")


def test_every_series_that_the_dashboard_page_explains_is_logged():
    text = TEXT["docs/dashboard.md"]
    of_run = set(re.findall(r"`morpho/run/(\w+)`", text))
    of_layer = set(re.findall(r"`morpho/<layer>/(\w+)`", text))
    assert of_run and of_run <= set(RUN_FIGURES)
    assert of_layer and of_layer <= set(LAYER_FIGURES)
    assert "credit_upper" in text and "credit_upper" in SEED_FIGURES
