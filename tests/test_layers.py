"""Hybrid layers: they stay the layers they were, seeds add what a loop says, and no request breaks the lifecycle."""

import copy
import io
import json
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from lightning_morpho import (
    BlueprintConfig,
    ChunkedKasminaLayer,
    HybridKasminaLayer,
    LayersConfig,
    LifecycleConfig,
    LifecycleError,
    MorphoConfig,
    Stage,
    WarmupConfig,
)
from lightning_morpho.layers import detach_

BASES = {
    "linear": (lambda: nn.Linear(4, 6), (5, 4)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, padding=1), (2, 4, 7)),
    "conv2d": (lambda: nn.Conv2d(4, 6, 3, stride=2), (2, 4, 7, 7)),
    "conv3d": (lambda: nn.Conv3d(4, 6, 2), (1, 4, 3, 3, 3)),
}


def x64(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def advance(layer, ticks=1):
    for _ in range(ticks):
        layer.morpho.advance()


def stages(layer):
    return [layer.seed(c).stage.name for c in range(layer.num_seeds)]


def alphas(layer):
    return [layer.seed(c).alpha for c in range(layer.num_seeds)]


# ---------------------------------------------------------------- class swap
@pytest.mark.parametrize("mixin", [HybridKasminaLayer, ChunkedKasminaLayer])
@pytest.mark.parametrize("base", BASES)
def test_swapped_layer_is_still_the_layer_it_was(base, mixin, morpho_config):
    make, shape = BASES[base]
    layer = make()
    kind, weight, bias, keys = type(layer), layer.weight, layer.bias, list(layer.state_dict())
    x = torch.randn(shape)
    expected = layer(x)
    swapped = mixin(layer, morpho_config())
    assert swapped is layer
    assert isinstance(layer, kind) and isinstance(layer, mixin)
    assert layer.weight is weight and layer.bias is bias
    assert [k for k in layer.state_dict() if not k.startswith("morpho.")] == keys
    assert torch.equal(layer(x), expected)
    assert "seeds=2, beds=1" in repr(layer)


def test_free_beds_are_zero_and_are_not_trained(make_layer):
    layer = make_layer(beds=2)
    beds = list(layer.morpho.parameters())
    assert len(beds) == 6
    assert all(not p.requires_grad and p.grad is None and not p.any() and p.dtype == torch.float64 for p in beds)


def test_detached_layer_is_the_plain_one_again(make_layer):
    layer = make_layer()
    x, weight = x64(3, 4), layer.weight
    layer.implementation = "base"
    detach_(layer)
    plain = nn.Linear(4, 6).double()
    plain.load_state_dict(layer.state_dict())
    assert type(layer) is nn.Linear and layer.weight is weight
    assert torch.equal(layer(x), plain(x))
    assert set(vars(layer)) == set(vars(plain))


def test_layer_with_live_seeds_is_not_detached(make_layer):
    layer = make_layer()
    layer.request_germination(0)
    with pytest.raises(LifecycleError, match="live seeds"):
        detach_(layer)
    assert isinstance(layer, HybridKasminaLayer)


def test_hooks_registered_before_the_swap_still_run(make_layer, fill_beds):
    base = nn.Linear(4, 6).double()
    seen = []
    base.register_forward_pre_hook(lambda m, args: seen.append("before"))
    base.register_forward_hook(lambda m, args, out: out + 1)
    base.register_full_backward_hook(lambda m, gi, go: seen.append("backward"))
    layer = make_layer(base)
    x = x64(3, 4)
    layer.request_germination()
    assert torch.equal(layer(x), F.linear(x, base.weight, base.bias) + 1)
    fill_beds(layer)
    layer(x.requires_grad_()).sum().backward()
    assert seen == ["before", "before", "backward"]


def test_pruning_after_the_swap_applies_to_the_base_weight(make_layer):
    layer = make_layer()
    mask = (torch.arange(24).reshape(6, 4) % 2).double()
    torch.nn.utils.prune.custom_from_mask(layer, "weight", mask)
    x = x64(3, 4)
    expected = F.linear(x, layer.weight_orig * mask, layer.bias)
    assert torch.equal(layer(x), expected)
    layer.request_germination()
    assert torch.equal(layer(x), expected)


def test_layer_that_was_parametrized_after_the_swap_can_be_detached(make_layer):
    layer = make_layer()
    x = x64(3, 4)
    expected = layer(x)
    weight_norm(layer)
    detach_(layer)
    assert not isinstance(layer, HybridKasminaLayer)
    # weight_norm recomputes the weight from its factors.
    torch.testing.assert_close(layer(x), expected)


def test_layer_that_was_parametrized_after_the_swap_can_be_copied(make_layer):
    layer = make_layer()
    weight_norm(layer)
    x = x64(3, 4)
    assert torch.equal(copy.deepcopy(layer)(x), layer(x))


@pytest.mark.parametrize("layer", [nn.LayerNorm(4), nn.Bilinear(2, 2, 2), type("Mine", (nn.Linear,), {})(4, 6)])
def test_layer_of_another_type_is_refused(layer):
    kind = type(layer)
    with pytest.raises(TypeError, match=f"exactly an nn.Linear.*got {kind.__name__}"):
        HybridKasminaLayer(layer)
    assert type(layer) is kind


def test_layer_is_not_swapped_twice(make_layer):
    layer = make_layer()
    with pytest.raises(TypeError, match="got HybridLinear"):
        HybridKasminaLayer(layer)


def test_more_seeds_than_features_leave_the_layer_alone(make_layer):
    layer = nn.Linear(4, 6)
    with pytest.raises(ValueError, match="6 features, got 7"):
        make_layer(layer, seeds=7)
    assert type(layer) is nn.Linear and not hasattr(layer, "morpho")


# ---------------------------------------------------------------- copies and checkpoints
@pytest.fixture
def grown(make_layer, fill_beds):
    """Four seeds, three beds: a fossil, its successor, a fading seed, a live one and a dormant one."""
    layer = make_layer(seeds=4, beds=3, hidden=5)
    layer.request_germination([0, 1])
    layer.request_germination([2])
    advance(layer)
    layer.morpho.keep([0], reason="kept")
    layer.morpho.cull([1], reason="culled", figures={"rise": -0.5})
    advance(layer)  # the chunk of the fossil gets a successor
    layer.request_germination([0])
    fill_beds(layer)
    return layer


# By hand, from the story of `grown`: 6 features in chunks of 2, 2, 1, 1.
GROWN_ALPHA = [[1, 1, 0.75, 0.75, 0, 0], [0, 0, 0, 0, 1, 0], [1, 1, 0, 0, 0, 0]]


def reference(parameters, x):
    """The grown layer as a sum over beds and hidden units."""
    out = x @ parameters["weight"].T + parameters["bias"]
    for bed, alpha in enumerate(GROWN_ALPHA):
        w_in, b_in, w_out = (parameters[f"morpho.beds.{bed}.{n}"] for n in ("w_in", "b_in", "w_out"))
        contribution = sum(
            torch.relu(x @ w_in[unit] + b_in[unit])[:, None] * w_out[:, unit] for unit in range(len(b_in))
        )
        out = out + torch.tensor(alpha, dtype=x.dtype) * contribution
    return out


def test_forward_and_all_gradients_equal_the_sum_over_beds(grown):
    x, target = x64(7, 4).requires_grad_(), x64(7, 6)
    twin = {name: p.detach().clone().requires_grad_() for name, p in grown.named_parameters()}
    y = x.detach().clone().requires_grad_()
    out, expected = grown(x), reference(twin, y)
    # The same double-precision sums of at most 40 terms, in another order.
    close = {"rtol": 1e-11, "atol": 1e-12}
    torch.testing.assert_close(out, expected, **close)
    F.mse_loss(out, target).backward()
    F.mse_loss(expected, target).backward()
    torch.testing.assert_close(x.grad, y.grad, **close)
    for name, parameter in grown.named_parameters():
        assert twin[name].grad.any(), name
        torch.testing.assert_close(parameter.grad, twin[name].grad, **close)


def test_functional_call_uses_the_parameters_it_is_given(grown):
    replaced = {name: torch.randn_like(p) for name, p in grown.named_parameters()}
    x = x64(5, 4)
    own = grown(x)
    out = torch.func.functional_call(grown, replaced, (x,))
    torch.testing.assert_close(out, reference(replaced, x), rtol=1e-11, atol=1e-12)
    assert torch.equal(grown(x), own)


@pytest.mark.parametrize(
    "make_copy", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"]
)
def test_copy_computes_the_same_and_is_independent(grown, make_copy):
    x = x64(5, 4)
    before, stages_before = grown(x), stages(grown)
    twin = make_copy(grown)
    assert type(twin) is type(grown)
    assert torch.equal(twin(x), before)
    assert stages(twin) == stages_before
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(1)
    twin.cancel_germination(2)
    advance(twin, 4)
    assert stages(twin)[2] == "CULLED"
    assert stages(grown) == stages_before
    assert torch.equal(grown(x), before)


def test_copy_of_a_dormant_layer_grows_without_the_original(make_layer, fill_beds):
    layer = make_layer()
    twin = copy.deepcopy(layer)
    twin.request_germination()
    fill_beds(twin)
    x = x64(3, 4)
    assert not torch.equal(twin(x), layer(x))
    assert stages(layer) == ["DORMANT"] * 2
    assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))


def test_copy_does_not_report_to_the_originals_run(make_layer):
    layer = make_layer()
    heard = []
    layer.morpho.on_transition = heard.append
    copy.deepcopy(layer).request_germination()
    assert heard == []


def test_shallow_copy_leaves_the_original_working(make_layer, fill_beds):
    layer = make_layer()
    copy.copy(layer)
    layer.request_germination()
    fill_beds(layer)
    x = x64(3, 4)
    assert not torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))


def test_checkpoint_loads_weights_only_and_restores_everything(grown, make_layer):
    buffer = io.BytesIO()
    torch.save(grown.state_dict(), buffer)
    buffer.seek(0)
    saved = torch.load(buffer, weights_only=True)
    restored = make_layer(seeds=4, beds=3, hidden=5)
    restored.load_state_dict(saved, strict=True)
    x = x64(5, 4)
    assert torch.equal(restored(x), grown(x))
    assert restored.morpho.state.to_dict() == grown.morpho.state.to_dict()
    assert [p.requires_grad for p in restored.parameters()] == [p.requires_grad for p in grown.parameters()]
    heard = []
    restored.morpho.on_transition = heard.append
    for layer in (grown, restored):
        advance(layer, 3)
    assert restored.morpho.get_extra_state() == grown.morpho.get_extra_state()
    (culled,) = [t for t in heard if t.target is Stage.CULLED]
    assert (culled.chunk, culled.reason, culled.figures) == (1, "culled", {"rise": -0.5})


def test_checkpoint_made_without_growth_loads_strictly(make_layer):
    plain, layer = nn.Linear(4, 6).double(), make_layer()
    saved = plain.state_dict()
    layer.load_state_dict(saved, strict=True)
    x = x64(3, 4)
    assert torch.equal(layer(x), plain(x))
    assert list(saved) == ["weight", "bias"], "the caller's dictionary must not change"


def test_checkpoint_that_lacks_a_key_of_the_base_layer_is_still_refused(make_layer):
    saved = nn.Linear(4, 6).double().state_dict()
    del saved["bias"]
    with pytest.raises(RuntimeError, match="bias"):
        make_layer().load_state_dict(saved)


@pytest.mark.parametrize(
    ("own", "theirs", "values"),
    [
        ({"seeds": 2}, {"seeds": 3}, ("'num_seeds': 2", "'num_seeds': 3")),
        ({"beds": 1}, {"beds": 2}, ("'beds': 1", "'beds': 2")),
        ({"kind": "neurons"}, {"kind": "mlp"}, ("'kind': 'neurons'", "'kind': 'mlp'")),
    ],
)
def test_checkpoint_of_another_configuration_is_refused_with_both_values(own, theirs, values, make_layer):
    layer, saved = make_layer(**own), make_layer(**theirs).state_dict()
    before = layer.morpho.get_extra_state()
    with pytest.raises(ValueError, match="checkpoint was made with") as refusal:
        layer.load_state_dict(saved)
    assert all(value in str(refusal.value) for value in values)
    assert layer.morpho.get_extra_state() == before


# ---------------------------------------------------------------- requests
@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("kind", ["neurons", "mlp"])
def test_germination_leaves_the_output_bit_equal_and_draws_no_global_random_number(base, kind, make_layer):
    make, shape = BASES[base]
    layer = make_layer(make(), kind=kind)
    x = torch.randn(shape)
    before, rng = layer(x), torch.get_rng_state()
    assert layer.request_germination() == [0, 1]
    assert torch.equal(layer(x), before)
    assert torch.equal(torch.get_rng_state(), rng)
    assert stages(layer) == ["LOADING"] * 2
    assert alphas(layer) == [1.0] * 2
    bed = layer.morpho.beds[0]
    assert bed.w_in.any() and all(p.requires_grad for p in bed.parameters())


def test_new_parameters_depend_on_the_random_seed_the_layer_and_the_event_alone(morpho_config):
    def born(name, seed=0):
        config = morpho_config(beds=2)
        config = MorphoConfig(layers=config.layers, blueprint=config.blueprint, seed=seed)
        torch.manual_seed(np.random.randint(1000))
        layer = HybridKasminaLayer(nn.Linear(4, 6), config, name)
        layer.request_germination(0)
        layer.request_germination(1)
        return [bed.w_in.detach() for bed in layer.morpho.beds]

    first = born("a")
    assert torch.equal(first[0], born("a")[0]) and torch.equal(first[1], born("a")[1])
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[0], born("b")[0])
    assert not torch.equal(first[0], born("a", seed=1)[0])


@pytest.mark.parametrize(
    ("chunks", "error", "message"),
    [
        (3, ValueError, r"\[0, 2\], got 3"),
        (-1, ValueError, r"\[0, 2\], got -1"),
        ([0, 3], ValueError, "got 3"),
        ([2, 2], ValueError, "each chunk once"),
        (1, LifecycleError, "only DORMANT.*ACTIVE"),
        ([0, 1], LifecycleError, "only DORMANT.*ACTIVE"),
        ([], LifecycleError, "no dormant seed"),
        (0, LifecycleError, "all 1 beds are taken"),
        (None, LifecycleError, "all 1 beds are taken"),
    ],
)
def test_refused_germination_changes_nothing(chunks, error, message, make_layer):
    layer = make_layer(seeds=3)
    layer.request_germination(1)
    advance(layer)
    before, weights = layer.morpho.get_extra_state(), copy.deepcopy(layer.state_dict())
    with pytest.raises(error, match=message):
        layer.request_germination(chunks)
    assert layer.morpho.get_extra_state() == before
    assert all(torch.equal(v, weights[k]) for k, v in layer.state_dict().items() if torch.is_tensor(v))


def test_chunk_may_be_a_numpy_integer(make_layer):
    assert make_layer().request_germination(np.int64(1)) == [1]


@pytest.mark.parametrize(
    ("chunk", "error", "message"),
    [
        (3, ValueError, "got 3"),
        (-1, ValueError, "got -1"),
        (0, LifecycleError, "it is DORMANT"),
        (1, LifecycleError, "it is fading out already"),
        (2, LifecycleError, "it is FOSSILIZED"),
    ],
)
def test_refused_cancellation_changes_nothing(chunk, error, message, make_layer):
    layer = make_layer(seeds=3)
    layer.request_germination([1, 2])
    advance(layer)
    layer.cancel_germination(1)
    layer.morpho.keep([2], reason="kept")
    before = layer.morpho.get_extra_state()
    with pytest.raises(error, match=message):
        layer.cancel_germination(chunk)
    assert layer.morpho.get_extra_state() == before


@pytest.mark.parametrize("chunk", [-1, 3])
def test_view_of_a_seed_out_of_range_is_refused(chunk, make_layer):
    with pytest.raises(ValueError, match=f"got {chunk}"):
        make_layer(seeds=3).seed(chunk)


@pytest.mark.parametrize("verb", ["keep", "cull"])
def test_several_seeds_are_judged_all_or_none(verb, make_layer):
    layer = make_layer(seeds=3)
    layer.request_germination([0, 1])
    advance(layer)
    before = layer.morpho.get_extra_state()
    with pytest.raises(LifecycleError, match="chunk 2"):
        getattr(layer.morpho, verb)([0, 1, 2], reason="test")
    assert layer.morpho.get_extra_state() == before


def test_refused_keep_of_a_chunk_named_twice_changes_nothing(make_layer):
    layer = make_layer()
    layer.request_germination()
    advance(layer)
    before = layer.morpho.get_extra_state()
    with pytest.raises((ValueError, LifecycleError)):
        layer.morpho.keep([0, 0], reason="test")
    assert layer.morpho.get_extra_state() == before


def test_newborn_is_not_kept_before_it_is_active(make_layer):
    layer = make_layer(warmup=10)
    layer.request_germination()
    with pytest.raises(LifecycleError, match="LOADING can't become FOSSILIZED"):
        layer.morpho.keep([0], reason="test")


# ---------------------------------------------------------------- time
def test_cancelled_seed_fades_out_waits_and_comes_back_as_the_next_generation(make_layer, fill_beds):
    layer = make_layer(alpha_step=0.25, embargo_ticks=2)
    plain = nn.Linear(4, 6).double()
    plain.load_state_dict({"weight": layer.weight, "bias": layer.bias})
    heard = []
    layer.morpho.on_transition = heard.append
    layer.request_germination()
    fill_beds(layer)
    layer(x64(3, 4)).sum().backward()
    x = x64(3, 4)
    full = layer(x).detach() - plain(x).detach()
    layer.cancel_germination(0)
    layer.morpho.cull([1], reason="no gain", figures={"rise": -1.0})
    for alpha in (0.75, 0.5, 0.25):
        advance(layer)
        assert alphas(layer) == [alpha] * 2
        assert stages(layer) == ["LOADING"] * 2, "CULLED is entered at alpha 0"
        # One product and one sum in double precision, of values of order 1.
        torch.testing.assert_close(layer(x) - plain(x), alpha * full, rtol=1e-11, atol=1e-12)
    advance(layer)
    assert alphas(layer) == [0.0] * 2
    assert stages(layer) == ["CULLED"] * 2
    assert torch.equal(layer(x), plain(x))
    bed = layer.morpho.beds[0]
    assert bed.free
    assert all(not p.any() and not p.requires_grad and p.grad is None for p in bed.parameters())
    for _ in range(2):
        with pytest.raises(LifecycleError, match="CULLED"):
            layer.request_germination(0)
        advance(layer)
    with pytest.raises(LifecycleError, match="CULLED"):
        layer.request_germination(0)
    advance(layer)
    assert [(layer.seed(c).stage, layer.seed(c).generation) for c in (0, 1)] == [(Stage.DORMANT, 1)] * 2
    assert layer.request_germination() == [0, 1]
    told = [(t.chunk, t.generation, t.source.name, t.target.name, t.reason) for t in heard if t.chunk == 1]
    assert told == [
        (1, 0, "DORMANT", "LOADING", "requested"),
        (1, 0, "LOADING", "CULLED", "no gain"),
        (1, 0, "CULLED", "DORMANT", "embargo over"),
        (1, 1, "DORMANT", "LOADING", "requested"),
    ]
    assert heard[3].figures == {"rise": -1.0}
    assert [t.reason for t in heard if t.target is Stage.CULLED] == ["cancelled", "no gain"]


@pytest.mark.parametrize(
    "ticks",
    [1, 2, 4, 5],
)
def test_fading_takes_as_many_ticks_as_alpha_steps_fit_into_one(ticks, make_layer):
    layer = make_layer(alpha_step=1 / ticks)
    layer.request_germination()
    layer.cancel_germination(0)
    advance(layer, ticks - 1)
    assert stages(layer)[0] != "CULLED"
    advance(layer)
    assert stages(layer)[0] == "CULLED"


def test_seed_culled_out_of_a_shared_bed_leaves_the_others_as_they_are(make_layer, fill_beds):
    layer = make_layer(alpha_step=1.0)
    layer.request_germination()
    fill_beds(layer)
    x = x64(3, 4)
    before = layer(x)
    layer.cancel_germination(0)
    advance(layer)
    assert torch.equal(layer(x)[:, 3:], before[:, 3:])
    assert torch.equal(layer(x)[:, :3], F.linear(x, layer.weight, layer.bias)[:, :3])
    bed = layer.morpho.beds[0]
    assert not bed.free and all(p.requires_grad and p.any() for p in bed.parameters())


@pytest.mark.parametrize("way_out", ["culled", "muted"])
def test_diverged_seed_that_was_taken_out_no_longer_reaches_the_output(way_out, make_layer):
    layer = make_layer(alpha_step=1.0)
    layer.request_germination()
    with torch.no_grad():
        layer.morpho.beds[0].w_out[:3] = torch.inf
    if way_out == "muted":
        layer.morpho.mute([0])
    else:
        layer.cancel_germination(0)
        advance(layer)
    assert layer(x64(3, 4)).isfinite().all()


def test_keeping_a_seed_leaves_the_output_bit_equal(grown):
    x = x64(5, 4)
    advance(grown)
    before = grown(x)
    grown.morpho.keep([0, 2], reason="kept")
    assert torch.equal(grown(x), before)
    assert stages(grown)[0] == stages(grown)[2] == "FOSSILIZED"
    assert alphas(grown)[0] == 1.0


def test_fossil_gets_a_successor_once_a_bed_is_free_and_stays_applied(make_layer, fill_beds):
    layer = make_layer(beds=2, alpha_step=1.0)
    layer.request_germination(0)
    layer.request_germination(1)
    advance(layer)
    fill_beds(layer)
    layer.morpho.keep([0], reason="kept")
    x = x64(3, 4)
    advance(layer, 3)
    assert stages(layer) == ["FOSSILIZED", "ACTIVE"], "no bed is free"
    before = layer(x)[:, :3]
    layer.cancel_germination(1)
    advance(layer)
    assert [(layer.seed(0).stage, layer.seed(0).generation, layer.seed(0).bed)] == [(Stage.DORMANT, 1, None)]
    assert torch.equal(layer(x)[:, :3], before)
    assert layer.request_germination(0) == [0]
    assert layer.seed(0).bed == 1
    assert torch.equal(layer(x)[:, :3], before)
    layer.morpho.mute([0])
    assert torch.equal(layer(x)[:, :3], before), "muting the successor leaves the fossil"


def test_muted_seeds_are_out_of_the_output_and_come_back(grown):
    x = x64(5, 4)
    before, state = grown(x), grown.morpho.get_extra_state()
    grown.morpho.mute([2])
    muted = grown(x)
    # Feature 4 is chunk 2; it alone has a seed in bed 1.
    assert torch.equal(muted[:, 4], F.linear(x, grown.weight, grown.bias)[:, 4])
    assert torch.equal(muted[:, [0, 1, 2, 3, 5]], before[:, [0, 1, 2, 3, 5]])
    grown.morpho.mute(())
    assert torch.equal(grown(x), before)
    assert grown.morpho.get_extra_state() == state


@pytest.mark.parametrize("train", [True, False])
def test_fossils_train_on_only_if_configured(train, make_layer):
    layer = make_layer(train_fossils=train)
    layer.request_germination()
    advance(layer)
    layer.morpho.keep([0], reason="kept")
    assert all(p.requires_grad for p in layer.morpho.beds[0].parameters()), "a live seed shares the bed"
    layer.morpho.keep([1], reason="kept")
    assert [p.requires_grad for p in layer.morpho.beds[0].parameters()] == [train] * 3


def test_fossil_is_frozen_when_the_last_live_seed_of_its_bed_is_culled(make_layer):
    layer = make_layer(train_fossils=False, alpha_step=1.0)
    layer.request_germination()
    advance(layer)
    layer.morpho.keep([0], reason="kept")
    layer.cancel_germination(1)
    advance(layer)
    assert not any(p.requires_grad for p in layer.morpho.beds[0].parameters())


def test_loading_lasts_as_long_as_the_warmup(make_layer):
    layer = make_layer(warmup=3)
    heard = []
    layer.morpho.on_transition = heard.append
    layer.request_germination()
    layer.morpho.beds[0].steps = 2
    advance(layer, 4)
    assert stages(layer) == ["LOADING"] * 2
    layer.morpho.beds[0].steps = 3
    advance(layer)
    assert stages(layer) == ["ACTIVE"] * 2
    assert heard[-1].reason == "warm-up over"
    assert layer.seed(0).age == 0


def test_loading_ends_at_its_timeout_though_no_step_is_made(make_layer):
    layer = make_layer(warmup=3, timeout_ticks=4)
    heard = []
    layer.morpho.on_transition = heard.append
    layer.request_germination()
    advance(layer, 3)
    assert stages(layer) == ["LOADING"] * 2
    advance(layer)
    assert stages(layer) == ["ACTIVE"] * 2
    assert heard[-1].reason == "timeout"


def test_forward_passes_and_modes_never_advance_time(grown):
    before = grown.morpho.get_extra_state()
    for mode in (True, False):
        grown.train(mode)
        grown(x64(3, 4)).sum().backward()
    assert grown.morpho.get_extra_state() == before


# ---------------------------------------------------------------- implementations
@pytest.mark.parametrize("base", BASES)
def test_both_implementations_are_bit_equal_while_dormant(base, make_layer):
    make, shape = BASES[base]
    layer = make_layer(make())
    x = torch.randn(shape)
    chunked = layer(x)
    assert layer.implementation == "chunked"
    layer.implementation = "base"
    assert torch.equal(layer(x), chunked)


def test_switching_the_implementation_keeps_all_state(grown):
    x = x64(5, 4)
    chunked, state = grown(x), grown.morpho.get_extra_state()
    grown.implementation = "base"
    assert torch.equal(grown(x), F.linear(x, grown.weight, grown.bias))
    assert copy.deepcopy(grown).implementation == "base"
    advance(grown, 0)
    grown.morpho.refresh()
    assert torch.equal(grown(x), F.linear(x, grown.weight, grown.bias)), "a change of the seeds must not switch back"
    grown.implementation = "chunked"
    assert torch.equal(grown(x), chunked)
    assert grown.morpho.get_extra_state() == state
    with pytest.raises(ValueError, match="'base' or 'chunked', got 'fast'"):
        grown.implementation = "fast"


def test_observer_sees_the_output_features_last_and_detached_until_it_is_taken_off(make_layer):
    layer = make_layer(nn.Conv1d(4, 6, 3).double())
    seen = []
    layer.morpho.observe(seen.append)
    out = layer(x64(2, 4, 7))
    assert torch.equal(seen[0], out.detach().permute(0, 2, 1)) and not seen[0].requires_grad
    layer.morpho.observe(None)
    layer(x64(2, 4, 7))
    assert len(seen) == 1


# ---------------------------------------------------------------- any order of requests
PHASE1_EDGES = {
    ("DORMANT", "LOADING"),
    ("LOADING", "ACTIVE"),
    ("LOADING", "CULLED"),
    ("ACTIVE", "CULLED"),
    ("ACTIVE", "FOSSILIZED"),
    ("CULLED", "DORMANT"),
}
SEEDS, BEDS, STEP = 3, 2, 0.4


class AnyOrderOfRequests(RuleBasedStateMachine):
    """Requests in any order: wrong ones raise and change nothing, right ones follow the table."""

    def __init__(self):
        super().__init__()
        config = MorphoConfig(
            layers=LayersConfig(num_seeds=SEEDS, beds=BEDS),
            blueprint=BlueprintConfig(kind="neurons", hidden=2),
            warmup=WarmupConfig(steps=0),
            lifecycle=LifecycleConfig(active_ticks=0, embargo_ticks=1, alpha_step=STEP),
        )
        self.layer = HybridKasminaLayer(nn.Linear(2, 6).double(), config)
        self.x = torch.randn(3, 2, generator=torch.Generator().manual_seed(0)).double()
        self.transitions = []
        self.layer.morpho.on_transition = self.transitions.append
        self.alpha = [0.0] * SEEDS

    def _asked(self, allowed, request):
        """Make a request that must succeed or be refused; neither changes the output at once."""
        output, state = self.layer(self.x), self.layer.morpho.get_extra_state()
        if allowed:
            request()
        else:
            with pytest.raises(LifecycleError):
                request()
            assert self.layer.morpho.get_extra_state() == state
        assert torch.equal(self.layer(self.x), output)

    def _live(self, chunk, *names):
        return self.layer.seed(chunk).stage.name in names and not self.layer.morpho.state.fading[chunk]

    @rule(chunks=st.sets(st.integers(0, SEEDS - 1), min_size=1))
    def germinate(self, chunks):
        allowed = all(stages(self.layer)[c] == "DORMANT" for c in chunks) and self._free_beds() > 0
        self._asked(allowed, lambda: self.layer.request_germination(chunks))
        if allowed:
            self.alpha = [1.0 if c in chunks else a for c, a in enumerate(self.alpha)]
            bed = self.layer.morpho.beds[self.layer.seed(min(chunks)).bed]
            with torch.no_grad():
                bed.w_out.fill_(0.5)

    @rule(chunk=st.integers(0, SEEDS - 1))
    def cancel(self, chunk):
        self._asked(self._live(chunk, "LOADING", "ACTIVE"), lambda: self.layer.cancel_germination(chunk))

    @rule(chunk=st.integers(0, SEEDS - 1))
    def cull(self, chunk):
        self._asked(self._live(chunk, "LOADING", "ACTIVE"), lambda: self.layer.morpho.cull([chunk], reason="test"))

    @rule(chunk=st.integers(0, SEEDS - 1))
    def keep(self, chunk):
        self._asked(self._live(chunk, "ACTIVE"), lambda: self.layer.morpho.keep([chunk], reason="test"))

    @rule(ticks=st.integers(1, 3))
    def advance(self, ticks):
        for _ in range(ticks):
            before = list(self.alpha)
            succeeded = {c for c in range(SEEDS) if self.layer.seed(c).stage is Stage.FOSSILIZED}
            self.layer.morpho.advance()
            self.alpha = alphas(self.layer)
            for chunk, (old, new) in enumerate(zip(before, self.alpha, strict=True)):
                # A fossil's successor starts over; else alpha, a float32, falls by one step at most.
                assert chunk in succeeded or 0 <= old - new <= STEP + 1e-6

    @precondition(lambda self: any(not bed.free for bed in self.layer.morpho.beds))
    @rule()
    def save_and_load(self):
        saved = copy.deepcopy(self.layer.state_dict())
        output, state = self.layer(self.x), self.layer.morpho.get_extra_state()
        self.layer.load_state_dict(saved)
        assert torch.equal(self.layer(self.x), output)
        assert self.layer.morpho.get_extra_state() == state

    def _free_beds(self):
        return sum(not any(p.any() for p in bed.parameters()) for bed in self.layer.morpho.beds)

    @invariant()
    def every_transition_is_in_the_table(self):
        assert {(t.source.name, t.target.name) for t in self.transitions} <= PHASE1_EDGES
        last: dict[tuple[int, int], str] = {}
        for t in self.transitions:
            assert last.get((t.chunk, t.generation), "DORMANT") == t.source.name
            last[t.chunk, t.generation] = t.target.name

    @invariant()
    def alpha_moves_only_with_time(self):
        assert alphas(self.layer) == self.alpha

    @invariant()
    def no_bed_is_leaked(self):
        state = self.layer.morpho.state
        for index, bed in enumerate(self.layer.morpho.beds):
            tenants = {c for c in range(SEEDS) if state.bed[c] == index}
            fossils = set(np.flatnonzero(bed.kept).tolist())
            assert set(np.flatnonzero(bed.occupied).tolist()) == tenants | fossils
            assert bed.free == (not tenants | fossils)
            for parameter in bed.parameters():
                assert parameter.requires_grad == (not bed.free)
                assert parameter.any() == (not bed.free)

    @invariant()
    def seeds_have_a_bed_exactly_while_they_are_applied(self):
        for chunk, stage in enumerate(stages(self.layer)):
            applied = stage in ("LOADING", "ACTIVE", "FOSSILIZED")
            assert (self.layer.seed(chunk).bed is not None) == applied
            assert applied or self.layer.seed(chunk).alpha == 0
            assert applied or not self.layer.morpho.state.fading[chunk]


TestAnyOrderOfRequests = AnyOrderOfRequests.TestCase
TestAnyOrderOfRequests.settings = settings(max_examples=60, stateful_step_count=40)


# ---------------------------------------------------------------- what a layer says of itself
@pytest.mark.parametrize("lifecycle", ["phase1", "full"])
def test_layer_stats_count_what_happened(lifecycle):
    config = MorphoConfig(
        layers=LayersConfig(num_seeds=3, beds=3),
        blueprint=BlueprintConfig(kind="neurons", hidden=2),
        lifecycle=LifecycleConfig(kind=lifecycle, max_errors=1, alpha_step=1.0),
    )
    layer = HybridKasminaLayer(nn.Linear(4, 6), config)
    asleep = layer.get_layer_stats()
    assert asleep.pop("mean_alpha") != asleep.get("mean_alpha")  # NaN: nothing lives
    assert asleep == {
        "blueprint": "neurons",
        "seeds": {"DORMANT": 3},
        "kept_seeds": 0,
        "germinations": 0,
        "beds": 3,
        "free_beds": 3,
        "live_parameters": 0,
        "kept_parameters": 0,
        "errors": 0,
    }
    layer.request_germination(0)
    while layer.seed(0).stage is not layer.morpho.lifecycle_table.judged:
        layer.advance()
        layer.morpho.bed_at(0).steps += 100  # no warm-up to wait for
    layer.morpho.keep([0], reason="test")
    while layer.morpho.state.where(*layer.morpho.lifecycle_table.live).size:
        layer.advance()
    layer.request_germination(1)
    layer.request_germination(2)
    while not layer.seed(1).alpha:
        layer.advance()
    layer.morpho.record_errors([2], reason="test")
    stats, bed = layer.get_layer_stats(), 2 * (4 + 1 + 6)
    assert (stats["kept_parameters"], stats["live_parameters"]) == (bed, bed)
    assert stats["live_parameters"] + stats["kept_parameters"] == layer.morpho.live_parameters
    assert (stats["kept_seeds"], stats["germinations"], stats["free_beds"], stats["errors"]) == (1, 3, 1, 1)
    assert stats["seeds"].get("ERROR_RECOVERY", 0) + stats["seeds"].get("CANCELLED", 0) == 1
    assert sum(stats["seeds"].values()) == 3
    assert stats["mean_alpha"] == layer.seed(1).alpha
    json.dumps(stats)


def test_health_report_has_an_entry_for_each_seed_and_nan_for_what_nobody_measured():
    config = MorphoConfig(layers=LayersConfig(num_seeds=2), lifecycle=LifecycleConfig(max_errors=1))
    layer = HybridKasminaLayer(nn.Linear(4, 6), config)
    layer.seed(1).request_germination()
    layer.morpho.health = {"mean": torch.tensor([0.5, 0.25]), "correlation": torch.tensor([0.1, 0.2])}
    first, second = layer.get_health_report()
    assert (first["chunk"], first["stage"], second["chunk"], second["stage"]) == (0, "DORMANT", 1, "LOADING")
    assert first["statistics"]["mean"] == 0.5
    assert second["statistics"]["correlation"] == pytest.approx(0.2)
    assert all(np.isnan(second["statistics"][name]) for name in ("variance", "seed_gradient", "host_gradient"))
    layer.morpho.record_errors([1], reason="test")
    entry = layer.get_health_report()[1]
    assert (entry["stage"], entry["errors"], entry["recovering"], entry["alpha"]) == ("ERROR_RECOVERY", 1, True, 0)
    with pytest.raises(LifecycleError):
        layer.seed(1).request_germination()


def test_health_report_names_what_sampling_measures():
    from lightning_morpho.layers.overview import STATISTICS
    from lightning_morpho.telemetry.sampling import LayerSampler

    layer = HybridKasminaLayer(nn.Linear(4, 6), MorphoConfig(layers=LayersConfig(num_seeds=2)))
    sampler = LayerSampler(layer, torch.device("cpu"), activations=True, gradients=True, detailed=False)
    sampler.open()
    layer(torch.randn(8, 4)).sum().backward()
    sampler.take_gradients({id(p) for p in layer.parameters()})
    assert tuple(sampler.collect(True, True)) == STATISTICS
