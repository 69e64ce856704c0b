"""Configuration: a wrong value is refused where it is stored, and the message says field, range and value."""

import dataclasses
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_morpho import (
    BlueprintConfig,
    BudgetConfig,
    CreditConfig,
    LayersConfig,
    LifecycleConfig,
    MorphoConfig,
    RolloutConfig,
    TelemetryConfig,
    WarmupConfig,
)

NAN = math.nan
BAD = [
    *[(LayersConfig, "layers", "num_seeds", v, "at least 1 seed") for v in (0, -1, 2.5, True, "many", None)],
    *[(LayersConfig, "layers", "beds", v, "at least 1 bed") for v in (0, -3, 1.0, "auto")],
    (LayersConfig, "layers", "include", [3], "globs"),
    (LayersConfig, "layers", "exclude", [""], "globs"),
    *[(BlueprintConfig, "blueprint", "hidden", v, "at least 1 hidden unit") for v in (0, -1, 0.5, "wide")],
    (BlueprintConfig, "blueprint", "kind", "", "name of a blueprint"),
    *[(WarmupConfig, "warmup", "steps", v, "at least 0") for v in (-1, 1.5, True)],
    *[(WarmupConfig, "warmup", "share", v, "[0, 1]") for v in (-0.1, 1.1, NAN, "half", True)],
    (WarmupConfig, "warmup", "min_steps", -1, "at least 0"),
    (LifecycleConfig, "lifecycle", "active_ticks", -1, "at least 0 ticks"),
    (LifecycleConfig, "lifecycle", "timeout_ticks", 0, "at least 1 tick"),
    (LifecycleConfig, "lifecycle", "timeout_ticks", 2, "not below `lifecycle.active_ticks` (3)"),
    (LifecycleConfig, "lifecycle", "embargo_ticks", -1, "at least 0 ticks"),
    *[(LifecycleConfig, "lifecycle", "alpha_step", v, "(0, 1]") for v in (0, -0.5, 1.01, NAN)],
    *[(BudgetConfig, "budget", "parameters", v, "at least 1 parameter") for v in (0, -5, 1e6, "all")],
    *[(BudgetConfig, "budget", "memory", v, "positive number of MiB") for v in (0, -1.0, NAN, "all", True)],
    *[(CreditConfig, "credit", "batches", v, "at least 2 validation batches") for v in (0, 1, 2.0)],
    *[(CreditConfig, "credit", "confidence", v, "(0.5, 1)") for v in (0.5, 1.0, 95.0, NAN)],
    (CreditConfig, "credit", "max_groups", 0, "at least 1 seed"),
    *[(CreditConfig, "credit", "measurements", v, "at least 6 measurements") for v in (5, 0, 128.0)],
    *[(CreditConfig, "credit", "replicas", v, "at least 1 measurement a pass") for v in (0, -1, True)],
    (CreditConfig, "credit", "monitor", "", "name of a logged metric"),
    *[(RolloutConfig, "rollout", "percentage", v, "[0, 100]") for v in (-1, 100.5, NAN, "50", True)],
    *[(RolloutConfig, "rollout", "enabled", v, "true or false") for v in ("false", 0, None)],
    (RolloutConfig, "rollout", "unit", "user", "'model' or 'layer'"),
    (RolloutConfig, "rollout", "allowlist", [1], "globs"),
    (RolloutConfig, "rollout", "blocklist", [""], "globs"),
    (TelemetryConfig, "telemetry", "every_n_steps", -1, "at least 0 steps"),
]


@pytest.mark.parametrize(("config", "section", "field", "value", "expected"), BAD)
def test_bad_value_is_refused_with_field_expectation_and_value(config, section, field, value, expected):
    with pytest.raises(ValueError) as refusal:
        config(**{field: value})
    message = str(refusal.value)
    assert f"`{section}.{field}`" in message
    assert expected in message
    assert f"got {value!r}" in message


@pytest.mark.parametrize(("field", "value"), [("model_id", ""), ("model_id", 3), ("seed", -1), ("seed", 0.5)])
def test_bad_top_level_value_is_refused_by_name(field, value):
    with pytest.raises(ValueError, match=re.escape(f"`{field}` must be") + f".*got {value!r}"):
        MorphoConfig(**{field: value})


@pytest.mark.parametrize(
    ("config", "field"),
    [(LifecycleConfig, "train_fossils"), (TelemetryConfig, "log"), (TelemetryConfig, "events")],
)
def test_flag_that_is_no_bool_is_refused(config, field):
    with pytest.raises(ValueError, match=field):
        config(**{field: "false"})


def test_missing_patterns_are_refused_by_name():
    with pytest.raises(ValueError, match="layers.include"):
        LayersConfig(include=None)


@pytest.mark.parametrize(("config", "field"), [(BlueprintConfig, "kind"), (CreditConfig, "monitor")])
def test_name_that_is_no_string_is_refused(config, field):
    with pytest.raises(ValueError, match=field):
        config(**{field: 3})


@pytest.mark.parametrize(
    ("config", "values"),
    [
        (LayersConfig, {"num_seeds": 1, "beds": 1}),
        (WarmupConfig, {"steps": 0, "share": 0, "min_steps": 0}),
        (WarmupConfig, {"share": 1}),
        (LifecycleConfig, {"active_ticks": 0, "timeout_ticks": 1, "embargo_ticks": 0, "alpha_step": 1}),
        (LifecycleConfig, {"active_ticks": 7, "timeout_ticks": 7}),
        (BudgetConfig, {"parameters": 1}),
        (CreditConfig, {"batches": 2, "confidence": 0.51, "max_groups": 1}),
        (RolloutConfig, {"percentage": 0}),
        (RolloutConfig, {"percentage": 100}),
        (TelemetryConfig, {"every_n_steps": 0}),
    ],
)
def test_values_at_the_edge_of_their_range_are_taken(config, values):
    made = config(**values)
    assert {name: getattr(made, name) for name in values} == values


@pytest.mark.parametrize(
    ("config", "field"),
    [(LayersConfig, "include"), (LayersConfig, "exclude"), (RolloutConfig, "allowlist"), (RolloutConfig, "blocklist")],
)
def test_patterns_may_be_one_glob_or_a_list_and_are_stored_as_a_tuple(config, field):
    assert getattr(config(**{field: "a.*"}), field) == ("a.*",)
    assert getattr(config(**{field: ["a", "b*"]}), field) == ("a", "b*")


def test_a_configuration_cannot_be_changed_past_its_checks():
    with pytest.raises(dataclasses.FrozenInstanceError):
        LayersConfig().beds = 0
    with pytest.raises(TypeError):
        LayersConfig("encoder.*")


@given(st.integers(0, 500), st.floats(0, 1), st.integers(0, 200), st.integers(0, 10_000))
def test_warmup_is_a_share_of_the_steps_so_far_within_its_bounds(steps, share, least, done):
    length = WarmupConfig(steps=steps, share=share, min_steps=least).length(done)
    if done * share > steps or least > steps:
        assert length == steps
    elif done * share <= least:
        assert length == least
    else:
        assert 0 <= length - done * share <= 1  # 1 only where a tiny share is lost in rounding


def test_no_warmup_when_turned_off():
    assert WarmupConfig(steps=0).length(5000) == 0


@pytest.mark.parametrize(("held", "limit"), [(10, 100_000), (250_000, 250_000), (10**9, 10_000_000)])
def test_automatic_budget_is_the_layers_size_within_its_bounds(held, limit):
    assert BudgetConfig().limit(held) == limit
    assert BudgetConfig(parameters=77).limit(held) == 77


def test_bare_string_section_is_refused_as_a_missing_hydra_group():
    with pytest.raises(TypeError, match=r"`blueprint`.*BlueprintConfig.*bare string 'neurons'.*morpho/blueprint"):
        MorphoConfig(blueprint="neurons")


def test_an_argument_without_its_name_is_refused_with_the_names_there_are():
    with pytest.raises(
        TypeError, match=r"LayersConfig takes its arguments by name, got \['net'\].*Known: include, exclude"
    ):
        LayersConfig(["net"])


def test_section_of_another_type_is_refused_with_the_target_to_use():
    with pytest.raises(TypeError, match=r"`budget`.*got dict.*_target_: lightning_morpho.BudgetConfig"):
        MorphoConfig(budget={"parameters": 3})
