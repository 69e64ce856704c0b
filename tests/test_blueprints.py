"""Every blueprint in every kind of layer against loops over its units and chunks, in double precision."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_morpho import (
    Blueprint,
    BlueprintConfig,
    ChunkManager,
    GrowthEngine,
    LayersConfig,
    LifecycleConfig,
    MorphoConfig,
    OptimizerLink,
    Scripted,
    Site,
    WarmupConfig,
    blueprint_type,
    hybrid_layers,
    morph_,
    register_blueprint,
)
from lightning_morpho.blueprints import base
from lightning_morpho.tamiyo import Measurement

# Reference and layer do the same double-precision sums of at most 100 terms in another order.
CLOSE = {"rtol": 1e-11, "atol": 1e-12}

LAYERS = {
    "linear": (lambda: nn.Linear(5, 7), (3, 5)),
    "linear, sequence": (lambda: nn.Linear(5, 7), (2, 4, 5)),
    "linear, one vector": (lambda: nn.Linear(5, 7), (5,)),
    "linear, no bias": (lambda: nn.Linear(5, 7, bias=False), (3, 5)),
    "conv1d": (lambda: nn.Conv1d(3, 5, 3), (2, 3, 9)),
    "conv1d, stride and padding": (lambda: nn.Conv1d(3, 5, 3, stride=2, padding=1), (2, 3, 9)),
    "conv1d, same and dilation": (lambda: nn.Conv1d(3, 5, 3, padding="same", dilation=2), (2, 3, 9)),
    "conv1d, same and even kernel": (lambda: nn.Conv1d(3, 5, 4, padding="same"), (2, 3, 9)),
    "conv1d, circular": (lambda: nn.Conv1d(3, 5, 3, padding=2, padding_mode="circular"), (2, 3, 9)),
    "conv1d, unbatched": (lambda: nn.Conv1d(3, 5, 3, padding=1), (3, 9)),
    "conv2d, stride and padding": (lambda: nn.Conv2d(2, 5, (3, 2), stride=(2, 1), padding=(1, 0)), (2, 2, 6, 5)),
    "conv2d, same and dilation": (lambda: nn.Conv2d(2, 5, 3, padding="same", dilation=2), (2, 2, 6, 5)),
    "conv2d, valid": (lambda: nn.Conv2d(2, 5, 3, padding="valid"), (2, 2, 6, 5)),
    "conv2d, circular": (lambda: nn.Conv2d(2, 5, 3, padding=(1, 2), padding_mode="circular"), (2, 2, 6, 5)),
    "conv1d, circular and dilation": (
        lambda: nn.Conv1d(3, 5, 3, padding=2, dilation=2, padding_mode="circular"),
        (2, 3, 9),
    ),
    "conv2d, circular and same": (
        lambda: nn.Conv2d(2, 5, (2, 3), padding="same", padding_mode="circular"),
        (2, 2, 6, 5),
    ),
    "conv2d, reflect and stride": (
        lambda: nn.Conv2d(2, 5, 3, padding=1, padding_mode="reflect", stride=2),
        (2, 2, 6, 5),
    ),
    "conv2d, groups": (lambda: nn.Conv2d(4, 6, 3, groups=2), (2, 4, 6, 5)),
    "conv2d, depthwise": (lambda: nn.Conv2d(3, 6, 3, groups=3, padding=1), (2, 3, 6, 5)),
    "conv2d, one output channel": (lambda: nn.Conv2d(2, 1, 3), (2, 2, 6, 5)),
    "conv2d, unbatched": (lambda: nn.Conv2d(2, 5, 3, padding=1), (2, 6, 5)),
    "conv3d": (lambda: nn.Conv3d(2, 3, 2, padding=1), (1, 2, 3, 3, 3)),
}


def plain_copy(layer: nn.Module) -> nn.Module:
    """The same layer, never swapped."""
    twin = type(layer)(*_arguments(layer), **_options(layer)).double()
    twin.load_state_dict(layer.state_dict())
    return twin


def _arguments(layer: nn.Module) -> tuple:
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    return layer.in_channels, layer.out_channels, layer.kernel_size


def _options(layer: nn.Module) -> dict:
    options = {"bias": layer.bias is not None}
    if not isinstance(layer, nn.Linear):
        options |= {n: getattr(layer, n) for n in ("stride", "padding", "dilation", "groups", "padding_mode")}
    return options


def axis_of(layer: nn.Module) -> int:
    """Feature axis of the output, from its end."""
    return -1 if isinstance(layer, nn.Linear) else -1 - len(layer.kernel_size)


def single_unit(layer: nn.Module, weight: torch.Tensor, bias: torch.Tensor) -> nn.Module:
    """A layer of the same geometry, ungrouped, with one output feature."""
    if isinstance(layer, nn.Linear):
        unit = nn.Linear(layer.in_features, 1)
    else:
        unit = type(layer)(
            layer.in_channels,
            1,
            layer.kernel_size,
            **{n: getattr(layer, n) for n in ("stride", "padding", "dilation", "padding_mode")},
        )
    unit = unit.double()
    with torch.no_grad():
        unit.weight.copy_(weight.unsqueeze(0))
        unit.bias.copy_(bias.reshape(1))
    return unit


def neurons_reference(layer, bed, x, y, parts):
    axis = axis_of(layer)
    total = torch.zeros_like(y).movedim(axis, 0)
    for unit in range(len(bed["b_in"])):
        h = F.relu(single_unit(layer, bed["w_in"][unit], bed["b_in"][unit])(x)).movedim(axis, 0)[0]
        for feature in range(len(total)):
            total[feature] += bed["w_out"][feature, unit] * h
    return total.movedim(0, axis)


def mlp_reference(layer, bed, x, y, parts):
    axis = axis_of(layer)
    columns = y.movedim(axis, -1)
    out = torch.zeros_like(columns)
    for chunk, part in enumerate(parts):
        width = len(part)
        net = nn.Sequential(nn.Linear(width, len(bed["b_in"][chunk])), nn.ReLU(), nn.Linear(1, width, bias=False))
        with torch.no_grad():
            net[0].weight = nn.Parameter(bed["w_in"][chunk][:, :width])
            net[0].bias = nn.Parameter(bed["b_in"][chunk])
            net[2].weight = nn.Parameter(bed["w_out"][chunk][:width])
        out[..., part] = net(columns[..., part])
    return out.movedim(-1, axis)


def lowrank_reference(layer, bed, x, y, parts):
    axis = axis_of(layer)
    total = torch.zeros_like(y).movedim(axis, 0)
    for rank in range(len(bed["w_in"])):
        h = single_unit(layer, bed["w_in"][rank], torch.zeros(()))(x).movedim(axis, 0)[0]
        for feature in range(len(total)):
            total[feature] += bed["w_out"][feature, rank] * h
    return total.movedim(0, axis)


def glu_reference(layer, bed, x, y, parts):
    axis = axis_of(layer)
    total = torch.zeros_like(y).movedim(axis, 0)
    for unit in range(len(bed["b_in"])):
        gate = single_unit(layer, bed["w_gate"][unit], bed["b_gate"][unit])(x).movedim(axis, 0)[0]
        value = single_unit(layer, bed["w_in"][unit], bed["b_in"][unit])(x).movedim(axis, 0)[0]
        for feature in range(len(total)):
            total[feature] += bed["w_out"][feature, unit] * gate.clamp(min=0) * value
    return total.movedim(0, axis)


def affine_reference(layer, bed, x, y, parts):
    axis = axis_of(layer)
    rows = [s * row + t for s, t, row in zip(bed["scale"], bed["shift"], y.movedim(axis, 0), strict=True)]
    return torch.stack(rows).movedim(0, axis)


REFERENCES = {
    "neurons": neurons_reference,
    "mlp": mlp_reference,
    "lowrank": lowrank_reference,
    "glu": glu_reference,
    "affine": affine_reference,
}
# The factor that is zero at birth.
FINAL = {"affine": "scale"}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
@pytest.mark.parametrize("kind", REFERENCES)
@pytest.mark.parametrize("case", LAYERS)
def test_contribution_equals_a_loop_over_units_and_is_zero_at_birth(case, kind, make_layer, fill_beds):
    make, shape = LAYERS[case]
    base_layer = make().double()
    plain = plain_copy(base_layer)
    features = plain.weight.shape[0]
    seeds = min(3, features)
    layer = make_layer(base_layer, kind=kind, seeds=seeds, hidden=8)
    x = torch.randn(shape, dtype=torch.float64)
    layer.request_germination()
    assert torch.equal(layer(x), plain(x)), "a newborn must give exactly zero"

    fill_beds(layer)
    bed = {name: p.detach() for name, p in layer.morpho.beds[0].named_parameters()}
    y = plain(x).detach()
    parts = [part.tolist() for part in np.array_split(np.arange(features), seeds)]
    expected = y + REFERENCES[kind](plain, bed, x, y, parts).detach()
    assert not torch.allclose(expected, y, **CLOSE)
    torch.testing.assert_close(layer(x).detach(), expected, **CLOSE)


@pytest.mark.parametrize("kind", REFERENCES)
def test_only_the_chunks_of_the_event_change(kind, make_layer, fill_beds):
    base_layer = nn.Conv2d(2, 5, 3).double()
    plain = plain_copy(base_layer)
    layer = make_layer(base_layer, kind=kind, seeds=3)
    layer.request_germination([1])
    fill_beds(layer)
    x = torch.randn(2, 2, 6, 5, dtype=torch.float64)
    # Channels 2 and 3 are chunk 1 of 5 channels in 3 chunks.
    assert torch.equal(layer(x)[:, [0, 1, 4]], plain(x)[:, [0, 1, 4]])
    assert (layer(x) != plain(x))[:, [2, 3]].any()


@pytest.mark.parametrize("kind", REFERENCES)
def test_channels_last_input_gives_the_same_output(kind, make_layer, fill_beds):
    layer = make_layer(nn.Conv2d(2, 5, 3).double(), kind=kind, seeds=3)
    layer.request_germination()
    fill_beds(layer)
    x = torch.randn(2, 2, 6, 5, dtype=torch.float64)
    torch.testing.assert_close(layer(x.to(memory_format=torch.channels_last)), layer(x), **CLOSE)


@pytest.mark.parametrize("activation", sorted(base.ACTIVATIONS))
@pytest.mark.parametrize("kind", REFERENCES)
@pytest.mark.parametrize("case", ["linear", "conv1d", "conv2d, groups"])
def test_newborn_learns_from_the_first_step(case, kind, activation, make_layer):
    make, shape = LAYERS[case]
    # 16 units: that all of them are silent ReLUs at every position is out of the question.
    layer = make_layer(make().double(), kind=kind, activation=activation, seeds=2, hidden=16)
    layer.request_germination([1])
    x = torch.randn(shape, dtype=torch.float64)
    before = layer(x)
    before.square().sum().backward()
    final = getattr(layer.morpho.beds[0], FINAL.get(kind, "w_out"))
    gradient = final.grad[1] if kind == "mlp" else final.grad[layer.chunks.mask(1)]
    assert (gradient != 0).any()
    others = final.grad[0] if kind == "mlp" else final.grad[layer.chunks.mask(0)]
    assert not others.any(), "no seed lives in chunk 0"
    with torch.no_grad():
        final -= 0.01 * final.grad
    assert layer(x).square().sum() < before.square().sum()


@pytest.mark.parametrize("activation", ["relu", "gelu", "selu", "silu", "tanh"])
def test_activation_is_the_one_that_was_named(activation):
    config = BlueprintConfig(hidden=2, activation=activation)
    x = torch.linspace(-2, 2, 9)
    assert torch.equal(
        blueprint_type("neurons")(Site(3, ChunkManager(4, 2)), config).activation(x),
        {"relu": nn.ReLU(), "gelu": nn.GELU(), "selu": nn.SELU(), "silu": nn.SiLU(), "tanh": nn.Tanh()}[activation](x),
    )


def test_unknown_activation_is_refused_with_those_there_are(make_layer):
    layer = nn.Linear(4, 6)
    with pytest.raises(ValueError, match="`blueprint.activation` can't be 'swish': Known: gelu, relu, selu"):
        make_layer(layer, activation="swish")
    assert type(layer) is nn.Linear


@pytest.mark.parametrize(
    ("layer", "hidden"),
    [
        (nn.Linear(100, 200), 100 * 200 // (100 + 1 + 200)),
        (nn.Conv2d(8, 16, 3), 8 * 9 * 16 // (8 * 9 + 1 + 16)),
        (nn.Linear(4, 2), 8),
    ],
)
def test_automatic_neurons_cost_about_the_layers_own_weights_and_are_at_least_eight(layer, hidden):
    blueprint = blueprint_type("neurons")(Site.of(layer, ChunkManager(layer.weight.shape[0], 2)), BlueprintConfig())
    assert blueprint.hidden == hidden
    inputs, outputs = layer.weight[0].numel(), layer.weight.shape[0]
    assert blueprint.numel() == hidden * (inputs + 1 + outputs)
    assert hidden == 8 or layer.weight.numel() - (inputs + 1 + outputs) < blueprint.numel() <= layer.weight.numel()


def test_automatic_mlp_is_twice_as_wide_as_its_chunk():
    blueprint = blueprint_type("mlp")(Site(5, ChunkManager(7, 3)), BlueprintConfig(kind="mlp"))
    assert blueprint.hidden == 6
    assert blueprint.numel() == 3 * (6 * 3 + 6 + 3 * 6)


@pytest.mark.parametrize("kind", [kind for kind in REFERENCES if kind != "affine"])
def test_new_incoming_weights_lie_within_torchs_default_bound(kind, make_layer):
    layer = make_layer(nn.Linear(25, 36), kind=kind, seeds=2, hidden=200)
    layer.request_germination()
    bed = layer.morpho.beds[0]
    bound = (18 if kind == "mlp" else 25) ** -0.5
    # 5000 and 7200 uniform draws: the largest lies within 1 % of the bound but for odds of e^-50.
    assert 0.99 * bound < bed.w_in.abs().max() <= bound
    assert all(p.abs().max() <= bound for name, p in bed.named_parameters() if name.startswith("b_"))
    assert not bed.w_out.any()


def test_taken_name_is_refused_and_keeps_its_blueprint():
    taken = blueprint_type("mlp")
    with pytest.raises(ValueError, match="'mlp' is registered already: ChunkMLP"):
        register_blueprint("mlp")(type("Other", (taken,), {}))
    assert blueprint_type("mlp") is taken


def test_unknown_name_is_refused_with_those_there_are():
    with pytest.raises(
        ValueError,
        match=r"`blueprint.kind` can't be 'transformer': Known: affine, block, glu, lowrank, mlp",
    ):
        blueprint_type("transformer")


def test_what_is_no_blueprint_cannot_be_registered():
    for wrong in (nn.Linear, lambda site, config: None):
        with pytest.raises(TypeError, match="`wrong` must be a subclass of Blueprint"):
            register_blueprint("wrong")(wrong)
    with pytest.raises(ValueError, match="can't be 'wrong'"):
        blueprint_type("wrong")


class Gain(Blueprint):
    """A learnt gain of each feature, as a user would write it."""

    source = "chunk"

    def shapes(self):
        return {"gain": (self.site.chunks.num_chunks, 1, self.site.chunks.max_width)}

    def reset_(self, parameters, generator):
        with torch.no_grad():
            parameters["gain"].zero_()

    def grow(self, parameters, source):
        return parameters["gain"] * source


@pytest.fixture
def gain(monkeypatch):
    monkeypatch.setattr(base, "_REGISTRY", dict(base._REGISTRY))
    register_blueprint("gain")(Gain)


def test_users_own_blueprint_grows_learns_is_kept_and_is_restored(gain):
    config = MorphoConfig(
        layers=LayersConfig(num_seeds=2),
        blueprint=BlueprintConfig(kind="gain"),
        warmup=WarmupConfig(steps=0),
        lifecycle=LifecycleConfig(active_ticks=0),
    )

    def fresh() -> nn.Module:
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(4, 5).double())
        morph_(model, config)
        return model

    model = fresh()
    x = torch.randn(16, 4, dtype=torch.float64)
    target = 3 * model(x).detach()
    seeds = model[0].morpho
    optimizer = torch.optim.SGD(list(seeds.parameters()), lr=3.0)
    link = OptimizerLink(hybrid_layers(model), [optimizer])
    engine = GrowthEngine(hybrid_layers(model), Scripted(events=[{"tick": 1, "layer": "0"}]), link)

    def measure(keys, together):
        return [Measurement(seeds=(key,), rise=0.5, lower=0.1, batches=4) for key in keys]

    for step in range(400):
        if step in (0, 399):
            engine.tick(step=step, total_steps=400, loss=None, measure=measure)
        optimizer.zero_grad()
        F.mse_loss(model(x), target).backward()
        optimizer.step()
    # A gain of 2 on top of the host makes it 3 times itself: the one solution.
    torch.testing.assert_close(model(x), target, rtol=1e-3, atol=1e-3)
    engine.tick(step=400, total_steps=400, loss=None, measure=measure)
    assert [(r.chunk, r.blueprint, r.stage) for r in engine.records] == [
        (0, "gain", "FOSSILIZED"),
        (1, "gain", "FOSSILIZED"),
    ]
    restored = fresh()
    restored.load_state_dict(model.state_dict())
    assert torch.equal(restored(x), model(x))
