"""Flags beside the present one, units, the environment: a user would lose control over who grows."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from lightning_morpho import FlagConfig, MorphoConfig, RolloutConfig, hybrid_layers, morph_, register_flag
from lightning_morpho.rollout import (
    decide,
    decide_layer,
    feature_environment,
    flag_enabled,
    flag_of,
    with_environment,
)
from lightning_morpho.rollout_config import FLAGS

KEY = "MORPHO_FEATURE_CHUNKED_LAYERS"


def test_disabled_flag_is_off_for_everybody_whatever_else_says():
    config = RolloutConfig(enabled=False, percentage=100, allowlist=("*",))
    assert not any(decide(f"unit-{i}", config)[0] for i in range(1000))


@given(st.text(min_size=1), st.text(min_size=1, alphabet=st.characters(exclude_characters="/")), st.floats(0, 100))
def test_both_means_the_model_and_the_layer(model, layer, percentage):
    both = decide(f"{model}/{layer}", RolloutConfig(unit="both", percentage=percentage))[0]
    alone = decide(model, RolloutConfig(percentage=percentage))[0]
    layered = decide(f"{model}/{layer}", RolloutConfig(unit="layer", percentage=percentage))[0]
    assert both is (alone and layered)


@pytest.mark.parametrize("pattern", ["org/model", "net.0", "org/model/net.0", "org/*"])
def test_lists_of_both_match_model_layer_and_full_name(pattern):
    flag = FlagConfig(enabled=True, unit="both", percentage=0, allowlist=pattern)
    assert decide_layer("org/model", "net.0", flag) == (True, f"on the allowlist (`{pattern}`)")


def test_the_two_flags_select_independent_cohorts_by_default():
    rollout = RolloutConfig(percentage=30, flags={"fused_kernels": {"enabled": True, "percentage": 30}})
    first, second = (
        [decide(f"model-{i}", flag_of(rollout, name))[0] for i in range(10_000)]
        for name in ("chunked_layers", "fused_kernels")
    )
    table = [[sum((a, b) == (x, y) for a, b in zip(first, second, strict=True)) for y in (0, 1)] for x in (0, 1)]
    # Independent cohorts give a p-value below 0.001 once in a thousand salts; equal ones give 0.
    assert stats.chi2_contingency(table).pvalue > 0.001


@pytest.mark.parametrize("percentage", [0, 1, 10, 25, 50, 99, 100])
def test_fused_kernels_have_the_share_that_was_asked_for(percentage):
    flag = RolloutConfig(flags={"fused_kernels": {"enabled": True, "percentage": percentage}}).flags["fused_kernels"]
    on = sum(decide(f"model-{i}", flag)[0] for i in range(10_000))
    low, high = stats.binom.interval(0.99, 10_000, percentage / 100)
    assert (on == percentage * 100) if percentage in (0, 100) else (low <= on <= high)


# SHA-256 is the same everywhere: these came from another implementation, `printf 'salt:unit' | sha256sum`.
@pytest.mark.parametrize(
    ("unit", "digits"), [("model/net.0", 0x2B13D1C92B52), ("m", 0x88C165A25E9F)], ids=["layer", "model"]
)
def test_golden_buckets_of_fused_kernels(unit, digits):
    on, why = decide(unit, FlagConfig(enabled=True, percentage=100, salt="fused_kernels"))
    assert on and why == f"cohort bucket {digits / 2**48 * 100:.2f} is below 100 %"


# ------------------------------------------------------------------------------------------ environment
@pytest.mark.parametrize(
    ("value", "enabled", "percentage"),
    [("on", True, 100.0), ("ON", True, 100.0), ("25%", True, 25.0), ("0%", True, 0.0), (" 2.5 % ", True, 2.5)],
)
def test_environment_replaces_switch_and_percentage(value, enabled, percentage):
    flag, note = with_environment("chunked_layers", RolloutConfig(enabled=False, percentage=7), {KEY: value})
    assert (flag.enabled, flag.percentage) == (enabled, percentage)
    assert note == f" ({KEY}={value})"


def test_environment_off_beats_the_allowlist_and_the_lists_hold_otherwise():
    config = RolloutConfig(allowlist="model", blocklist="bad", percentage=0)
    assert not flag_enabled("chunked_layers", "model", "a", config, {KEY: "off"})[0]
    assert flag_enabled("chunked_layers", "model", "a", config, {KEY: "0%"})[0]
    assert flag_enabled("chunked_layers", "bad", "a", config, {KEY: "on"}) == (
        False,
        f"on the blocklist (`bad`) ({KEY}=on)",
    )


@pytest.mark.parametrize("value", ["", "yes", "25", "101%", "-1%", "nan%"])
def test_environment_value_that_is_none_of_the_three_is_refused(value):
    with pytest.raises(ValueError, match=f"`{KEY}` must be on, off or a percentage such as 25%"):
        feature_environment({KEY: value})


def test_misspelt_environment_variable_is_refused_with_the_one_that_was_meant():
    with pytest.raises(ValueError, match="MORPHO_FEATURE_CHUNKED_LAYER` names no flag: did you mean `.*LAYERS`"):
        feature_environment({"MORPHO_FEATURE_CHUNKED_LAYER": "off"})


def test_environment_holds_in_morph(monkeypatch, make_net):
    monkeypatch.setenv(KEY, "off")
    report = morph_(make_net(), MorphoConfig(rollout=RolloutConfig(allowlist="*")))
    assert not report.taken
    assert f"rollout is disabled ({KEY}=off)" in str(report)


# ------------------------------------------------------------------------------------------ registry
def test_registered_flag_becomes_a_key_and_reaches_the_layers(make_net):
    register_flag("quantized_beds", FlagConfig(enabled=True, percentage=100))
    try:
        model = make_net()
        morph_(model, MorphoConfig())
        layers = hybrid_layers(model).values()
        assert [layer.morpho.features for layer in layers] == [{"fused_kernels": True, "quantized_beds": True}] * 2
        with pytest.raises(ValueError, match="registered already"):
            register_flag("quantized_beds")
        with pytest.raises(ValueError, match="did you mean `quantized_beds`"):
            RolloutConfig(flags={"quantized_bed": {}})
    finally:
        del FLAGS["quantized_beds"]


def test_report_says_of_each_layer_why_it_is_on(make_net):
    report = morph_(make_net(), MorphoConfig(rollout=RolloutConfig(unit="layer", allowlist="0")))
    cohorts = {m.name: m.cohort for m in report.taken}
    assert cohorts["0"] == "on: on the allowlist (`0`)"
    assert cohorts["2"].startswith("on: cohort bucket")


# ------------------------------------------------------------------------------------------ messages
@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"percentge": 5}, "RolloutConfig has no key `percentge`: did you mean `percentage`"),
        ({"percentage": 120}, r"`rollout.percentage` must be a percentage in \[0, 100\], got 120"),
        ({"unit": "layers"}, "`rollout.unit` must be 'model' or 'layer' or 'both', got 'layers'"),
        ({"flags": {"fused_kernel": {}}}, "no flag `fused_kernel`: did you mean `fused_kernels`"),
        ({"flags": {"fused_kernels": {"percentage": -1}}}, r"`rollout.flags.fused_kernels.percentage` must be .*-1"),
        ({"flags": {"fused_kernels": {"enable": True}}}, "`rollout.flags.fused_kernels`: .*did you mean `enabled`"),
        ({"flag_file": ""}, "`rollout.flag_file` must be null or the path"),
        ({"flag_every_n_steps": 0}, "`rollout.flag_every_n_steps` must be at least 1 optimizer step, got 0"),
        ({"ramp": {"schedule": {}}}, "`rollout.ramp.schedule` must be a mapping from epochs or steps"),
        ({"ramp": {"schedule": {0: 50, 5: 25}}}, "both rising.*got {0: 50, 5: 25}"),
        ({"ramp": {"schedule": {0: 5, "5": 101}}}, "percentages in"),
        ({"ramp": {"guard": {"val_los": 1}}}, "did you mean `val_loss`"),
        ({"ramp": {"guard": {"val_loss": -1}}}, "guard.val_loss` must be null or at least 0, got -1"),
        ({"ramp": {"guard": {"baseline": {"loss": 1}}}}, "guard.baseline` must be a mapping with keys of"),
        ({"ramp": {"on_failure": False}}, "ramp.on_failure` must be 'off', 'previous' or 'hold', got False"),
        ({"ramp": "fast"}, "`rollout.ramp` must be a mapping of RampConfig's keys, got 'fast'"),
    ],
)
def test_wrong_value_is_refused_with_key_value_and_way_out(keys, message):
    with pytest.raises((TypeError, ValueError), match=message):
        RolloutConfig(**keys)
