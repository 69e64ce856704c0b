"""The Hydra application: presets that say the defaults, runs that repeat, mistakes that are named."""

import dataclasses
import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from hydra.errors import ConfigCompositionException, InstantiationException, MissingConfigException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

import lightning_morpho
from lightning_morpho import MorphoCallback, RampConfig
from lightning_morpho.lifecycle_config import PRESETS as GRAFTING_PRESETS
from lightning_morpho.tasks import ConvClassifier
from lightning_morpho.telemetry.plots import plot_growth
from lightning_morpho.train import SECTIONS, train

CONFIGS = Path(lightning_morpho.__file__).parent / "configs"
PRESETS = sorted(
    f"{path.parent.name}/{path.stem}" for path in CONFIGS.glob("morpho/*/*.yaml") if path.parent.name != "preset"
)
# What a preset changes on purpose; everything else equals the defaults in code.
CHANGES = {
    "blueprint/mlp": {"kind": "mlp"},
    "blueprint/neurons": {"kind": "neurons"},
    "blueprint/span": {"kind": "span"},
    "blueprint/block": {"kind": "block"},
    "blueprint/glu": {"kind": "glu"},
    "blueprint/lowrank": {"kind": "lowrank"},
    "blueprint/affine": {"kind": "affine"},
    "layers/adapt": {"num_seeds": 1, "beds": 2},
    "lifecycle/adapt": {"active_ticks": 0, "alpha_step": 1.0},
    "credit/adapt": {"max_groups": 256, "measurements": 1024},
    "lifecycle/full": {"kind": "full"},
    **{f"grafting/{n}": {"ramp": True, "curve": c, "gate": g} for n, (c, g) in GRAFTING_PRESETS.items()},
    "governor/off": {"enabled": False},
    "starvation/off": {"enabled": False},
    "rollout/off": {"enabled": False},
    "rollout/canary": {"percentage": 5.0},
    "rollout/half": {"percentage": 50.0},
    "rollout/ramp": {"unit": "layer", "ramp": json.loads(json.dumps(dataclasses.asdict(RampConfig())))},
    "tamiyo/conservative": {"start": 10, "every": 5},
    "tamiyo/eager": {"every": 1, "events": 4},
    "tamiyo/earliest": {"by": "earliest"},
    "tamiyo/gradient": {"by": "gradient"},
}
FAST = ["trainer.max_epochs=1", "trainer.limit_train_batches=5", "data.num_train=500"]


@pytest.fixture(autouse=True)
def _hydra():
    with initialize_config_module("lightning_morpho.configs", version_base="1.3"):
        yield


def _mnist1d(folder: Path | str, *overrides: str) -> DictConfig:
    return compose("train", ["experiment=mnist1d", f"output_dir={folder}", *overrides])


def _plain(section: object) -> dict[str, object]:
    """Values as YAML has them: lists, no tuples."""
    return json.loads(json.dumps(dataclasses.asdict(section)))


def test_every_section_of_the_callback_has_a_preset():
    assert {preset.split("/")[0] for preset in PRESETS} == set(SECTIONS)


@pytest.mark.parametrize("preset", PRESETS)
def test_preset_builds_with_the_defaults_of_the_code(preset):
    group, name = preset.split("/")
    node = compose("train", [f"morpho/{group}={name}"]).morpho[group]
    built = instantiate(node, _convert_="all")
    assert _plain(built) == _plain(type(built)()) | CHANGES.get(preset, {})


@pytest.mark.parametrize("preset", PRESETS)
def test_preset_shows_every_key_with_a_comment(preset):
    lines = (CONFIGS / "morpho" / f"{preset}.yaml").read_text().splitlines()
    keys = [line for line in lines if not line.startswith(("#", "_target_"))]
    assert all("  # " in line for line in keys), keys
    target = instantiate(OmegaConf.load(CONFIGS / "morpho" / f"{preset}.yaml"), _convert_="all")
    own = [line.split(":")[0] for line in keys if not line.startswith(" ")]
    assert own == [field.name for field in dataclasses.fields(target)]


def test_every_key_of_every_file_ends_in_a_comment():
    for path in CONFIGS.glob("morpho/**/*.yaml"):
        content, defaults = path.read_text().splitlines(), False
        for line in content:
            defaults = line.startswith("defaults:") or (defaults and line.startswith((" ", "#")))
            opens = line.endswith(":")  # a mapping whose keys follow
            bare = not line or line.startswith(("#", "_target_"))
            assert defaults or bare or opens or "  # " in line, f"{path.name}: {line}"


def test_default_preset_shows_every_argument_of_the_callback():
    node = OmegaConf.to_container(compose("train").morpho)
    parameters = inspect.signature(MorphoCallback).parameters
    # `preset` is a group in YAML: it chooses the other sections.
    assert set(node) == {"_target_", *parameters} - {"preset"}
    plain = {name: value for name, value in node.items() if name not in SECTIONS and name != "_target_"}
    assert plain == {name: parameters[name].default for name in plain}
    assert isinstance(instantiate(compose("train").morpho, _convert_="all"), MorphoCallback)


def test_rollout_starts_off_and_the_experiment_turns_it_on():
    assert compose("train").morpho.rollout.enabled is False
    rollout = compose("train", ["experiment=mnist1d"]).morpho.rollout
    assert (rollout.enabled, rollout.percentage) == (True, 100.0)


def test_choices_on_the_command_line_win_over_the_experiment():
    cfg = _mnist1d("unused", "morpho/rollout=canary", "trainer.max_epochs=3", "threads=2")
    assert (cfg.morpho.rollout.percentage, cfg.trainer.max_epochs, cfg.threads) == (5.0, 3, 2)


def test_a_misspelt_experiment_is_refused_instead_of_training_something_else():
    with pytest.raises(MissingConfigException, match=r"experiment/mnst1d.*(?s:.)*mnist1d"):
        compose("train", ["experiment=mnst1d"])


def test_misspelt_override_is_named():
    with pytest.raises(ConfigCompositionException) as caught:
        compose("train", ["morpho.rollout.percentge=5"])
    assert "percentge" in str(caught.value)


def test_misspelt_choice_lists_the_known_ones():
    with pytest.raises(MissingConfigException, match=r"perodic(.|\n)*never(.|\n)*uniform"):
        compose("train", ["morpho/tamiyo=perodic"])


def test_misspelt_key_in_a_users_file_is_named(tmp_path):
    preset = tmp_path / "presets" / "morpho" / "rollout" / "mine.yaml"
    preset.parent.mkdir(parents=True)
    preset.write_text("_target_: lightning_morpho.RolloutConfig\npercentge: 5\n")
    search = f"hydra.searchpath=[file://{tmp_path / 'presets'}]"
    with pytest.raises(InstantiationException, match=r"percentge(.|\n)*morpho\.rollout"):
        train(_mnist1d(tmp_path, search, "morpho/rollout=mine"))


def test_value_out_of_range_is_refused_with_the_message_of_the_config_class(tmp_path):
    with pytest.raises(InstantiationException, match=r"`rollout\.percentage`.*120"):
        train(_mnist1d(tmp_path, "morpho.rollout.percentage=120"))


@pytest.mark.parametrize("section", sorted(SECTIONS))
def test_section_that_is_a_bare_string_is_refused_before_anything_is_built(section, tmp_path):
    cfg = _mnist1d(tmp_path / "run", f"morpho.{section}=mine")
    cfg.data = cfg.model = cfg.trainer = None  # would fail first if it were built first
    with pytest.raises(TypeError, match=f"`{section}` must be .*'mine'(.|\n)*morpho/{section}=mine"):
        train(cfg)
    assert not (tmp_path / "run").exists()


def test_morpho_that_is_a_bare_string_is_refused_before_anything_is_built(tmp_path):
    cfg = _mnist1d(tmp_path / "run")
    cfg.morpho = "mine"  # as `morpho: mine` in a primary file of the user's own
    cfg.data = cfg.model = cfg.trainer = None  # would fail first if it were built first
    with pytest.raises(TypeError, match="`morpho` must be .*'mine'"):
        train(cfg)
    assert not (tmp_path / "run").exists()


def test_scripted_germination_is_recorded_and_drawn(tmp_path):
    events = "morpho.tamiyo.events=[{tick: 1, layer: net.2, chunks: null}]"
    metrics = train(_mnist1d(tmp_path, *FAST, "trainer.max_epochs=3", "morpho/tamiyo=scripted", events))
    logged = (tmp_path / "csv" / "morpho_events.jsonl").read_text().splitlines()
    germinated = [event for event in map(json.loads, logged) if event.get("to") == "LOADING"]
    assert {event["layer"] for event in germinated} == {"net.2"}
    host = sum(parameter.numel() for parameter in ConvClassifier(channels=4).parameters())
    assert metrics["trainable_parameters"] > host
    picture = plot_growth({"grown": tmp_path / "csv"}, tmp_path / "growth.png")
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_runs_of_equal_seed_are_equal_and_dormant_growth_changes_nothing(tmp_path):
    first = train(_mnist1d(tmp_path / "a", *FAST, "~morpho"))
    again = train(_mnist1d(tmp_path / "b", *FAST, "~morpho"))
    dormant = train(_mnist1d(tmp_path / "c", *FAST, "morpho/tamiyo=never"))
    off = train(_mnist1d(tmp_path / "d", *FAST, "morpho/rollout=off"))
    assert first == again == off
    assert {name: dormant[name] for name in first} == first


def test_picture_of_a_metric_that_was_not_logged_names_it(tmp_path):
    train(_mnist1d(tmp_path, *FAST, "~morpho"))
    with pytest.raises(ValueError, match="`metric`.*'val_f1'"):
        plot_growth({"static": tmp_path / "csv"}, tmp_path / "growth.png", metric="val_f1")


@pytest.mark.slow
def test_documented_command_runs_and_lists_the_layers_that_are_on(tmp_path):
    overrides = [
        "experiment=mnist1d",
        "trainer.max_epochs=3",
        "morpho/tamiyo=periodic",
        "morpho.rollout.enabled=true",
        "morpho.rollout.unit=layer",
        "morpho.rollout.percentage=50",
    ]
    command = [sys.executable, "-m", "lightning_morpho.train", *overrides]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    assert "+ net.0" in output  # on; and below, off with the reason
    assert "- net.2  Conv1d  cohort bucket 76.70 is not below 50 %" in output
    assert "test_acc" in output
    assert list(tmp_path.glob("runs/mnist1d/*/csv/metrics.csv"))
