"""Merging: an adapted host that computes something else after the merge would be lost for good."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from lightning_morpho import (
    BlueprintConfig,
    LayersConfig,
    LifecycleError,
    MorphoConfig,
    export,
    hybrid_layers,
    merge_,
    morph_,
)
from test_blueprints import LAYERS, plain_copy

# The same double-precision sums of at most 100 terms, in another order.
CLOSE = {"rtol": 1e-11, "atol": 1e-12}
FOLDING = [case for case in LAYERS if "groups" not in case and "depthwise" not in case]


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
@pytest.mark.parametrize("kind", ["lowrank", "affine"])
@pytest.mark.parametrize("case", FOLDING)
def test_merged_layer_is_a_plain_one_that_computes_the_same(case, kind, grown):
    make, shape = LAYERS[case]
    base = make().double()
    plain = plain_copy(base)
    layer = grown(base, kind=kind, seeds=min(2, base.weight.shape[0]))
    model = nn.Sequential(layer)
    x = torch.randn(shape, dtype=torch.float64)
    before = model(x).detach()
    assert not torch.allclose(before, plain(x), **CLOSE)
    assert merge_(model) == ["0"]
    assert type(model[0]) is type(plain) and model[0].weight.shape == plain.weight.shape
    assert set(model[0].state_dict()) - {"bias"} == set(plain.state_dict()) - {"bias"}
    torch.testing.assert_close(model(x).detach(), before, **CLOSE)


@pytest.mark.parametrize("kind", ["lowrank", "affine"])
def test_weights_equal_a_loop_over_features_and_ranks(kind, grown):
    base = nn.Linear(5, 7).double()
    weight, bias = base.weight.detach().clone(), base.bias.detach().clone()
    layer = grown(base, kind=kind)
    alphas = [layer.morpho.row_alpha(i) for i in range(2)]
    chunk_of = [0, 0, 0, 0, 1, 1, 1]
    expected, shift = weight.clone(), bias.clone()
    for bed, alpha in zip(layer.morpho.beds, alphas, strict=True):
        for o in range(7):
            a = float(alpha[chunk_of[o]])
            if kind == "affine":
                expected[o] += a * bed.scale[o].item() * weight[o]
                shift[o] += a * (bed.scale[o].item() * bias[o] + bed.shift[o].item())
            else:
                for r in range(len(bed.w_in)):
                    expected[o] += a * bed.w_out[o, r].item() * bed.w_in[r].detach()
    merge_(nn.Sequential(layer))
    torch.testing.assert_close(layer.weight.detach(), expected, **CLOSE)
    torch.testing.assert_close(layer.bias.detach(), shift, **CLOSE)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 4e-2)])
def test_merge_in_low_precision_loses_one_rounding_of_the_weight(dtype, tolerance, grown):
    layer = grown(nn.Linear(16, 16).to(dtype))
    x = torch.randn(8, 16, dtype=dtype)
    exact = copy.deepcopy(layer).double()(x.double())
    merge_(nn.Sequential(layer))
    # Relative to outputs of about 10; one rounding of the weights is eps/2 of each of 16 terms.
    assert (layer(x).double() - exact).abs().max() <= tolerance * exact.abs().max()


def test_layer_without_bias_gets_one_for_a_shift(grown):
    layer = grown(nn.Linear(5, 7, bias=False).double(), kind="affine")
    merge_(nn.Sequential(layer))
    assert layer.bias.shape == (7,) and layer.bias.any()


def test_export_folds_the_same_weights_and_leaves_the_model(grown):
    model = nn.Sequential(grown(nn.Linear(5, 7).double()), nn.Tanh(), grown(nn.Linear(7, 3).double(), kind="affine"))
    x = torch.randn(4, 5, dtype=torch.float64)
    before = model(x).detach()
    plain = export(model)
    assert [type(m) for m in plain] == [nn.Linear, nn.Tanh, nn.Linear] and len(hybrid_layers(model)) == 2
    torch.testing.assert_close(plain(x), before, **CLOSE)
    merge_(model)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), model.parameters(), strict=True))


@pytest.mark.parametrize("kind", ["lowrank", "glu"])
def test_what_does_not_fold_is_refused_by_merge_and_exported_as_modules(kind, grown):
    base = nn.Conv2d(4, 6, 3, groups=2).double() if kind == "lowrank" else nn.Conv2d(4, 6, 3, stride=2).double()
    model = nn.Sequential(grown(base, kind=kind), nn.ReLU())
    x = torch.randn(2, 4, 6, 5, dtype=torch.float64)
    before = model(x).detach()
    with pytest.raises(LifecycleError, match=f"'0': '`{kind}` does not fold here'.*export"):
        merge_(model)
    assert list(hybrid_layers(model)) == ["0"], "nothing may have changed"
    torch.testing.assert_close(export(model)(x), before, **CLOSE)


def test_dormant_model_merges_to_itself():
    model = nn.Sequential(nn.Linear(4, 4))
    weights = model[0].weight.detach().clone()
    morph_(model, MorphoConfig(blueprint=BlueprintConfig(kind="neurons")))
    assert merge_(model) == [] and type(model[0]) is nn.Linear and torch.equal(model[0].weight, weights)


class Tied(nn.Module):
    """A language model's ends: the output layer's weight is the embedding's."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(7, 5), nn.Linear(5, 7, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.embed(x))


def test_tied_weight_does_not_leak_into_the_embedding(fill_beds):
    model = Tied().double()
    morph_(model, MorphoConfig(blueprint=BlueprintConfig(kind="lowrank")))
    model.head.request_germination()
    fill_beds(model.head)
    x, embedding = torch.arange(7), model.embed.weight.detach().clone()
    before = model(x).detach()
    plain = export(model)
    merge_(model)
    for made in (model, plain):
        torch.testing.assert_close(made(x).detach(), before, **CLOSE)
        assert torch.equal(made.embed.weight, embedding)


def test_layer_that_is_switched_off_is_refused(grown):
    layer = grown(nn.Linear(4, 4))
    layer.implementation = "base"
    with pytest.raises(LifecycleError, match="switched off"):
        merge_(nn.Sequential(layer))


def test_parametrized_layer_is_refused(grown):
    layer = parametrizations.weight_norm(grown(nn.Linear(4, 4)))
    with pytest.raises(LifecycleError, match="parametrization"):
        merge_(nn.Sequential(layer))


def test_merged_weights_load_into_the_host_that_was_never_swapped(fill_beds):
    def host() -> nn.Module:
        torch.manual_seed(3)
        return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))

    model = host()
    morph_(model, MorphoConfig(blueprint=BlueprintConfig(kind="lowrank"), layers=LayersConfig(num_seeds=1)))
    for layer in hybrid_layers(model).values():
        layer.request_germination()
        fill_beds(layer)
    x = torch.randn(5, 4)
    before = model(x).detach()
    merge_(model)
    fresh = host()
    fresh.load_state_dict(model.state_dict(), strict=True)
    torch.testing.assert_close(fresh(x), before, rtol=1e-5, atol=1e-5)
