"""Surgery: every module is reported with the reason, and a refusal leaves the model untouched."""

import hashlib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from lightning_morpho import (
    BlueprintConfig,
    BudgetConfig,
    HybridKasminaLayer,
    LayersConfig,
    LifecycleConfig,
    LifecycleError,
    MorphoConfig,
    RolloutConfig,
    WarmupConfig,
    hybrid_layers,
    morph_,
    unmorph_,
)


class Mine(nn.Linear):
    """A user's subclass may compute something else: it is left alone."""


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))


def config(*, hidden=4, seeds=1, beds=1, budget="auto", kind="neurons", rollout=None, **patterns) -> MorphoConfig:
    return MorphoConfig(
        layers=LayersConfig(num_seeds=seeds, beds=beds, **patterns),
        blueprint=BlueprintConfig(kind=kind, hidden=hidden),
        budget=BudgetConfig(parameters=budget),
        warmup=WarmupConfig(steps=0),
        lifecycle=LifecycleConfig(alpha_step=1.0, embargo_ticks=0),
        rollout=rollout or RolloutConfig(),
    )


def fingerprint(model: nn.Module):
    """Classes, attributes and state of all modules."""
    return (
        [(name, type(m), sorted(vars(m)), list(m._modules)) for name, m in model.named_modules()],
        {key: id(p) for key, p in model.named_parameters()},
        [p.requires_grad for p in model.parameters()],
    )


def reasons(report) -> dict[str, tuple[bool, str]]:
    return {m.name: (m.taken, m.reason) for m in report.modules}


# ---------------------------------------------------------------- report
def test_report_names_every_module_with_its_reason():
    model = nn.ModuleDict(
        {
            "taken": nn.Linear(3, 5),
            "conv": nn.Conv2d(3, 5, 3),
            "norm": nn.LayerNorm(3),
            "mine": Mine(3, 5),
            "lazy": nn.LazyLinear(5),
            "parametrized": weight_norm(nn.Linear(3, 5)),
            "attention": nn.MultiheadAttention(4, 2),
            "encoder": nn.TransformerEncoderLayer(4, 2, 8),
            "excluded": nn.Linear(3, 5),
        }
    )
    inner = nn.ModuleDict({"net": model, "head": nn.Linear(3, 5)})
    names = [name for name, _ in inner.named_modules()]
    report = morph_(inner, config(seeds=2, beds=3, include="net.*", exclude=["*.excluded"]))
    said = reasons(report)
    wrong_type = (False, "no seeds grow in this type (exactly nn.Linear, nn.Conv1d/2d/3d)")
    assert [m.name for m in report.modules] == names
    # neurons with 4 units: 4 * (3 + 1 + 5), and 4 * (27 + 1 + 5).
    assert said["net.taken"] == (True, "2 seeds, 3 beds of 36 parameters")
    assert said["net.conv"] == (True, "2 seeds, 3 beds of 132 parameters")
    for name in ("net.norm", "net.mine", "net.lazy", "net.parametrized", "net.attention", "net", ""):
        assert said[name] == wrong_type
    for name in ("net.encoder.linear1", "net.encoder.linear2"):
        assert said[name] == (False, "TransformerEncoderLayer reads its weight without calling it")
    assert said["net.excluded"] == (False, "`layers.exclude` has `*.excluded`")
    assert said["head"] == (False, "not in `layers.include` ['net.*']")
    assert set(hybrid_layers(inner)) == {"net.taken", "net.conv"} == {m.name for m in report.taken}
    assert (report.seeds, report.allocated) == (4, 3 * (36 + 132))
    printed = str(report).splitlines()
    assert len(printed) == 1 + len(names)
    assert printed[0].startswith(f"2 of {len(names)} modules grow: 4 seeds; their beds hold 504 parameters (budget 1")
    assert sum(line.startswith("  + ") for line in printed) == 2


@pytest.mark.parametrize("kind", [nn.MultiheadAttention, type("MyAttention", (nn.MultiheadAttention,), {})])
def test_linear_layers_inside_attention_are_shielded(kind):
    attention = kind(4, 2)
    attention.out_proj = nn.Linear(4, 4)
    model = nn.ModuleDict({"attention": attention, "head": nn.Linear(4, 4)})
    said = reasons(morph_(model, config()))
    assert said["attention.out_proj"] == (False, f"{kind.__name__} reads its weight without calling it")
    assert said["head"][0]


@pytest.mark.parametrize("kind", [nn.TransformerEncoderLayer, type("MyEncoder", (nn.TransformerEncoderLayer,), {})])
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_transformer_encoder_computes_the_same_after_surgery(kind, mode):
    model = nn.ModuleDict({"encoder": kind(8, 2, 16, dropout=0.0, batch_first=True), "head": nn.Linear(8, 3)})
    getattr(model, mode)()
    x = torch.randn(2, 5, 8)
    with torch.no_grad():
        before = model["encoder"](x)
        morph_(model, config())
        assert torch.equal(model["encoder"](x), before)
    assert set(hybrid_layers(model)) == {"head"}


def test_transformer_decoder_layers_grow_outside_their_attention():
    model = nn.ModuleDict({"decoder": nn.TransformerDecoderLayer(4, 2, 8)})
    morph_(model, config())
    assert set(hybrid_layers(model)) == {"decoder.linear1", "decoder.linear2"}


def test_layer_used_twice_is_swapped_once():
    shared = nn.Linear(4, 4)
    model = nn.Sequential(shared, nn.ReLU(), shared)
    x = torch.randn(3, 4)
    before = model(x)
    report = morph_(model, config())
    assert [m.name for m in report.taken] == ["0"]
    assert model[0] is model[2]
    assert torch.equal(model(x), before)


def test_surgery_keeps_the_function_the_weights_and_the_global_random_state():
    model = net()
    x = torch.randn(5, 4)
    before, parameters = model(x), dict(model.named_parameters())
    rng = torch.get_rng_state()
    morph_(model, config(beds=2))
    assert torch.equal(torch.get_rng_state(), rng)
    assert torch.equal(model(x), before)
    assert all(dict(model.named_parameters())[name] is p for name, p in parameters.items())


# ---------------------------------------------------------------- refusals
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"include": ["0", "encoder.*"]}, r"`layers.include` has the pattern 'encoder.\*'.*2 eligible layers: 0, 2"),
        ({"include": "1"}, "pattern '1'.*2 eligible layers"),
        ({"exclude": "head"}, "`layers.exclude` has the pattern 'head'"),
        ({"seeds": 3}, "Layer `2`: .*2 features, got 3"),
        ({"kind": "forest"}, "`blueprint.kind` can't be 'forest': Known: affine"),
        # The cheapest bed, in layer 2, holds 4 * (8 + 1 + 2) parameters.
        ({"budget": 43}, r"`budget` \(43 parameters\) is too small.*`2`, needs 44"),
    ],
)
def test_refused_surgery_leaves_the_model_untouched(wrong, message):
    model = net()
    before = fingerprint(model)
    with pytest.raises(ValueError, match=message):
        morph_(model, config(**wrong))
    assert fingerprint(model) == before


@pytest.mark.parametrize("title", ["allowlist", "blocklist"])
def test_a_rollout_list_with_a_layer_that_the_model_lacks_is_refused(title):
    """A typing error would leave the layer growing that was to stand still."""
    model = net()
    before = fingerprint(model)
    listed = RolloutConfig(unit="layer", **{title: ["other/head", "2", "hed"]})
    with pytest.raises(ValueError, match=rf"`rollout.{title}` has the pattern 'hed'.*2 eligible layers.*: 0, 2"):
        morph_(model, config(rollout=listed))
    assert fingerprint(model) == before
    for unit in ("model", "both"):  # these lists name models, and this one need not be among them
        morph_(net(), config(rollout=RolloutConfig(unit=unit, percentage=100, **{title: ["other"]})))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("net",), "`model` must be an nn.Module, got str"),
        ((nn.Linear(2, 2), {"layers": {}}), "`config` must be an instance of MorphoConfig, got dict"),
        ((nn.Linear(2, 2), LayersConfig()), "`config` must be an instance of MorphoConfig, got LayersConfig"),
    ],
)
def test_what_is_no_model_or_no_configuration_is_named(arguments, message):
    with pytest.raises(TypeError, match=message):
        morph_(*arguments)


@pytest.mark.parametrize("chunk", ["0", 0.0, 7, -1])
def test_what_is_no_chunk_is_refused_before_anything_grows(chunk):
    model = net()
    morph_(model, config())
    with pytest.raises(ValueError, match=r"`chunk` must be an integer in \[0, 0\]"):
        model[2].request_germination([chunk])
    assert model[2].morpho.dormant


def test_model_without_eligible_layers_is_refused():
    with pytest.raises(ValueError, match=r"No eligible layer.*\(3 modules seen\)"):
        morph_(nn.Sequential(nn.LayerNorm(4), Mine(4, 4)), config())


def test_model_in_which_spans_find_no_pair_is_refused_with_the_reasons():
    """It trained to the end without growth, and what was told was that the rollout selects no layer."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Softmax(-1), nn.Linear(4, 2))
    before = fingerprint(model)
    with pytest.raises(ValueError, match=r"No layer can grow: `0`: no pair.*`2`: no pair.*Softmax.*kind='auto'"):
        morph_(model, MorphoConfig(blueprint=BlueprintConfig(kind="span")))
    assert fingerprint(model) == before
    half = MorphoConfig(
        blueprint=BlueprintConfig(kind="span"), rollout=RolloutConfig(unit="layer", blocklist=("2",), percentage=100)
    )
    assert morph_(model, half).taken == ()  # the one pair there might be is parted by the rollout


def test_model_is_not_swapped_twice():
    model = net()
    morph_(model, config())
    before = fingerprint(model)
    with pytest.raises(LifecycleError, match="hybrid layers already"):
        morph_(model, config())
    assert fingerprint(model) == before


def test_a_single_layer_is_swapped_in_place():
    layer = nn.Linear(4, 6)
    report = morph_(layer, config())
    assert isinstance(layer, HybridKasminaLayer) and [m.name for m in report.taken] == [""]


@pytest.mark.parametrize("patterns", [{"include": ()}, {"exclude": "*"}, {"include": "0", "exclude": "0"}], ids=str)
def test_patterns_that_leave_no_layer_over_are_refused(patterns):
    with pytest.raises(ValueError, match="layers"):
        morph_(net(), config(**patterns))


def test_pattern_that_selects_only_shielded_layers_is_refused():
    model = nn.ModuleDict({"encoder": nn.TransformerEncoderLayer(4, 2, 8), "head": nn.Linear(4, 4)})
    with pytest.raises(ValueError, match="linear1"):
        morph_(model, config(include="*.linear1"))


# ---------------------------------------------------------------- budget
# A bed costs 4 * (4 + 1 + 8) = 52 in layer 0 and 4 * (8 + 1 + 2) = 44 in layer 2.
@pytest.mark.parametrize(
    ("budget", "beds"),
    [
        (44, {"2": 1}),
        (95, {"2": 2}),
        (96, {"0": 1, "2": 1}),
        (139, {"0": 1, "2": 1}),
        (140, {"0": 1, "2": 2}),
        (191, {"0": 1, "2": 2}),
        (192, {"0": 2, "2": 2}),
        (10_000, {"0": 2, "2": 2}),
    ],
)
def test_tight_budget_gives_one_bed_each_before_a_second_narrowest_layer_first(budget, beds):
    model = net()
    report = morph_(model, config(beds=2, budget=budget))
    assert {m.name: m.beds for m in report.taken} == beds
    assert {name: len(layer.morpho.beds) for name, layer in hybrid_layers(model).items()} == beds
    if "0" not in beds:
        assert reasons(report)["0"] == (False, "`budget` is spent: a bed here needs 52")
        assert type(model[0]) is nn.Linear


@given(st.integers(44, 300), st.integers(1, 4))
def test_budget_is_never_exceeded(budget, beds):
    model = net()
    held = sum(p.numel() for p in model.parameters())
    report = morph_(model, config(beds=beds, budget=budget))
    added = sum(p.numel() for p in model.parameters()) - held
    assert added == report.allocated <= budget == report.budget


def test_automatic_budget_counts_the_parameters_of_the_layers_that_grow():
    model = nn.ModuleDict({"a": nn.Linear(300, 500), "b": nn.Linear(300, 500)})
    assert morph_(model, config(include="a")).budget == 300 * 500 + 500


# ---------------------------------------------------------------- rollout
def test_layer_rollout_takes_the_layers_of_the_cohort():
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(20)))
    report = morph_(model, config(rollout=RolloutConfig(unit="layer", percentage=50, salt="s")))

    def bucket(name):
        return int(hashlib.sha256(f"s:model/{name}".encode()).hexdigest()[:12], 16) / 16**12 * 100

    expected = {str(i) for i in range(20) if bucket(i) < 50}
    assert 0 < len(expected) < 20
    assert {m.name for m in report.taken} == expected == set(hybrid_layers(model))
    for name, (taken, reason) in reasons(report).items():
        assert taken or not name or f"cohort bucket {bucket(name):.2f} is not below 50 %" in reason


def test_layer_lists_overrule_the_cohort():
    rollout = RolloutConfig(unit="layer", percentage=0, allowlist=["0", "2"], blocklist="model/2")
    said = reasons(morph_(net(), config(rollout=rollout)))
    assert said["0"][0]
    assert said["2"] == (False, "on the blocklist (`model/2`)")


@pytest.mark.parametrize(
    ("rollout", "reason"),
    [({"enabled": False}, "disabled"), ({"percentage": 0}, "cohort bucket"), ({"blocklist": "model"}, "blocklist")],
)
def test_rollout_that_selects_nobody_is_a_valid_run_and_says_why(rollout, reason):
    model = net()
    before = fingerprint(model)
    report = morph_(model, config(rollout=RolloutConfig(**rollout)))
    assert report.taken == () and report.allocated == 0
    assert fingerprint(model) == before
    assert reason in reasons(report)["0"][1]


def test_model_rollout_goes_by_the_models_id():
    on = RolloutConfig(percentage=0, allowlist="mine")
    chosen = MorphoConfig(rollout=on, model_id="mine")
    assert len(morph_(net(), chosen).taken) == 2
    assert len(morph_(net(), MorphoConfig(rollout=on, model_id="yours")).taken) == 0


# ---------------------------------------------------------------- and back
def test_unmorph_restores_the_model():
    model = net()
    before, keys, x = fingerprint(model), list(model.state_dict()), torch.randn(3, 4)
    output = model(x)
    morph_(model, config())
    assert unmorph_(model) == ["0", "2"]
    assert fingerprint(model) == before
    assert list(model.state_dict()) == keys
    assert torch.equal(model(x), output)
    assert len(morph_(model, config()).taken) == 2, "and it can grow again"


def test_unmorph_refuses_live_seeds_and_changes_nothing():
    model = net()
    morph_(model, config())
    model[2].request_germination()
    before = fingerprint(model)
    with pytest.raises(LifecycleError, match=r"live seeds.*: 2\."):
        unmorph_(model)
    assert fingerprint(model) == before
    assert isinstance(model[0], HybridKasminaLayer)


def test_unmorph_works_once_the_seeds_are_culled():
    model = net()
    morph_(model, config())
    model[2].request_germination()
    model[2].cancel_germination(0)
    model[2].morpho.advance()
    assert unmorph_(model) == ["0", "2"]
    assert type(model[2]) is nn.Linear


def test_unmorph_of_a_plain_model_does_nothing():
    model = net()
    before = fingerprint(model)
    assert unmorph_(model) == []
    assert fingerprint(model) == before
