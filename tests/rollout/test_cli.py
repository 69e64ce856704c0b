"""The command ``morpho``: what a person on call types, and what scripts read from its exit code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lightning_morpho.cli import main
from lightning_morpho.cli.reference import reference_page
from lightning_morpho.rollout import parse_flags

ROOT = Path(__file__).parents[2]
MODEL = ["train", "model.channels=6"]


@pytest.fixture
def flags(tmp_path: Path) -> Path:
    path = tmp_path / "flags.yaml"
    path.write_text("enabled: true  # kill switch\npercentage: 5.0  # of models\nunit: layer\nblocklist: [net.7]\n")
    return path


def keys(path: Path) -> dict[str, object]:
    return dict(parse_flags(path.read_text())["chunked_layers"])


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["disable"], {"enabled": False}),
        (["enable"], {"enabled": True}),
        (["rollout", "25"], {"percentage": 25.0}),
        (["allow", "net.0", "net.2"], {"allowlist": ["net.0", "net.2"]}),
        (["block", "net.2", "net.7"], {"blocklist": ["net.7", "net.2"]}),
        (["unblock", "net.7"], {"blocklist": []}),
    ],
)
def test_action_changes_its_key_and_keeps_the_comments(arguments, expected, flags):
    before = keys(flags)
    assert main(["flags", arguments[0], str(flags), *arguments[1:]]) == 0
    assert keys(flags) == before | expected
    assert "# kill switch" in flags.read_text() and "# of models" in flags.read_text()


def test_other_flags_are_reached_by_name(flags):
    assert main(["flags", "enable", str(flags), "--flag", "fused_kernels"]) == 0
    assert parse_flags(flags.read_text())["fused_kernels"] == {"enabled": True}
    assert keys(flags)["enabled"] is True


@pytest.mark.parametrize("prefix", ["rollout", "morpho.rollout"])
def test_rollout_is_found_inside_a_whole_configuration(prefix, tmp_path):
    path = tmp_path / "config.yaml"
    lines = [f"{'  ' * depth}{key}:" for depth, key in enumerate(prefix.split("."))]
    path.write_text("\n".join([*lines, "  " * len(lines) + "enabled: true  # on"]) + "\nlr: 1\n")
    assert main(["flags", "disable", str(path)]) == 0
    assert "enabled: false  # on" in path.read_text()


def test_dry_run_writes_nothing_and_shows_what_it_would(flags, capsys):
    before = flags.read_text()
    assert main(["flags", "rollout", str(flags), "60", "--dry-run", "--model", *MODEL]) == 0
    printed = capsys.readouterr().out
    assert flags.read_text() == before
    assert "percentage: 60.0  # of models" in printed
    assert "of 4 layers of `model` would be on" in printed
    assert "- net.7  on the blocklist (`net.7`)" in printed


def test_show_lists_flags_and_answers_scripts(flags, capsys, monkeypatch):
    monkeypatch.setenv("MORPHO_FEATURE_CHUNKED_LAYERS", "100%")
    assert main(["flags", "show", str(flags), "--is-on", "model/net.0"]) == 0
    assert main(["flags", "show", str(flags), "--is-on", "model/net.7"]) == 1
    printed = capsys.readouterr().out
    assert "chunked_layers: enabled True, percentage 100.0, unit layer" in printed
    assert "fused_kernels: enabled True" in printed
    assert "model/net.7: off, on the blocklist (`net.7`) (MORPHO_FEATURE_CHUNKED_LAYERS=100%)" in printed


def test_missing_file_is_not_made_by_accident(tmp_path, capsys):
    path = tmp_path / "flgas.yaml"
    assert main(["flags", "disable", str(path)]) == 2
    assert not path.exists() and "Is it the one that runs read" in capsys.readouterr().err
    assert main(["flags", "disable", str(path), "--create"]) == 0
    assert keys(path) == {"enabled": False}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rollout", "FILE", "120"], "`percentage` must be in [0, 100], got 120"),
        (["unblock", "FILE", "net.9"], "['net.9'] not on the blocklist, which is ['net.7']"),
        (["enable", "FILE", "--flag", "fused_kernel"], "did you mean `fused_kernels`"),
        (["baseline", "FILE", "METRICS"], "has no `ramp`"),
    ],
)
def test_mistake_gives_code_2_and_leaves_the_file(arguments, message, flags, tmp_path, capsys):
    metrics = tmp_path / "metrics.csv"
    metrics.write_text("step,val_loss\n1,0.5\n")
    before = flags.read_text()
    names = {"FILE": str(flags), "METRICS": str(metrics)}
    assert main(["flags", *(names.get(a, a) for a in arguments)]) == 2
    assert message in capsys.readouterr().err and flags.read_text() == before


@pytest.mark.parametrize(
    ("text", "code", "message"),
    [
        ("enabled: true", 0, "all keys and values are valid"),
        ("percentge: 5", 1, "did you mean `percentage`"),
        ("percentage: 500", 1, "`rollout.percentage` must be a percentage in [0, 100], got 500"),
        ("ramp: {schedule: {0: 50, 5: 10}}", 1, "both rising"),
        ("enabled: [", 1, "is no YAML"),
        ("- enabled", 1, "must be a mapping"),
        ("enabled: 'off'", 1, "`rollout.enabled` must be true or false, got 'off'"),
    ],
)
def test_verify_says_what_is_wrong(text, code, message, tmp_path, capsys):
    path = tmp_path / "flags.yaml"
    path.write_text(text)
    assert main(["flags", "verify", str(path)]) == code
    assert message in capsys.readouterr().out


def test_verify_sees_the_environment(flags, capsys, monkeypatch):
    monkeypatch.setenv("MORPHO_FEATURE_FUSED", "on")
    assert main(["flags", "verify", str(flags)]) == 1
    assert "did you mean `MORPHO_FEATURE_FUSED_KERNELS`" in capsys.readouterr().out


@pytest.mark.parametrize("preset", sorted((ROOT / "configs/morpho/rollout").glob("*.yaml")), ids=lambda p: p.stem)
def test_shipped_presets_are_valid_flag_files(preset):
    assert main(["flags", "verify", str(preset)]) == 0


def test_baseline_of_a_run_without_growth_goes_into_the_guard(tmp_path):
    path, metrics = tmp_path / "ramp.yaml", tmp_path / "metrics.csv"
    path.write_text((ROOT / "configs/morpho/rollout/ramp.yaml").read_text())
    metrics.write_text("step,val_loss\n1,0.9\n2,\n3,0.5\n4,0.7\n")
    assert main(["flags", "baseline", str(path), str(metrics), "--step-time", "0.01"]) == 0
    assert "baseline: {val_loss: 0.5, step_time: 0.01}  # recorded" in path.read_text()
    assert main(["flags", "verify", str(path)]) == 0


# ------------------------------------------------------------------------------------------ inspect, reference
def test_inspect_lists_every_module_with_cohort_chunks_and_budget(capsys):
    overrides = ["morpho=full", "morpho.rollout.unit=layer", "morpho.rollout.blocklist=[net.2]"]
    assert main(["inspect", *MODEL, *overrides, "morpho.layers.num_seeds=4"]) == 0
    lines = capsys.readouterr().out
    assert "budget 100,000" in lines
    assert "+ net.0" in lines and "6 features: 2 chunks of 2, 2 of 1; on: cohort bucket" in lines
    assert "- net.2" in lines and "on the blocklist (`net.2`)" in lines
    assert "- net.1" in lines and "no seeds grow in this type" in lines


def test_inspect_reads_the_configuration_that_a_run_leaves_behind(tmp_path, capsys):
    path = tmp_path / "config.yaml"
    path.write_text(
        "model: {_target_: lightning_morpho.tasks.ConvClassifier, channels: 4}\n"
        "morpho: {_target_: lightning_morpho.MorphoCallback}\n"
    )
    assert main(["inspect", str(path), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    taken = {m["name"]: m for m in report["modules"] if m["taken"]}
    assert list(taken) == ["net.0", "net.2", "net.4", "net.7"]
    assert taken["net.0"]["chunks"] == "4 features: 1 chunk of 4"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "~morpho"], "has no `morpho`"),
        (["train", "morpho/rollout=canry"], "canary"),
        (["train", "morpho.rollout.percentage=120"], "[0, 100], got 120"),
        (["nowhere.yaml"], "nowhere.yaml"),
    ],
)
def test_inspect_of_a_wrong_configuration_says_why(arguments, message, capsys):
    assert main(["inspect", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_reference_page_is_up_to_date():
    """`morpho reference > docs/configuration.md` after a change of a configuration class."""
    assert (ROOT / "docs/configuration.md").read_text() == reference_page()


def test_reference_page_explains_every_key():
    assert "|  |" not in reference_page() and "` | `" in reference_page()
