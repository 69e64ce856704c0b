"""Layers with live seeds, whatever their kind and layout, against the plain formula; and what may not break them."""

import sys
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from hosts import Host, linear_net, loaders, make_trainer, quick
from lightning_morpho import BlueprintConfig, HybridKasminaLayer, LayersConfig, MorphoConfig
from lightning_morpho.kernels import dispatch
from tests.engine.reference import per_seed, relative_error

BASES = {
    "linear": (lambda: nn.Linear(5, 10), (6, 5)),
    "sequence": (lambda: nn.Linear(5, 10), (2, 3, 5)),
    "no batch": (lambda: nn.Linear(5, 10), (5,)),
    "conv1d": (lambda: nn.Conv1d(5, 10, 3), (2, 5, 7)),
    "conv2d": (lambda: nn.Conv2d(5, 10, 3, stride=2), (2, 5, 7, 6)),
    "conv2d, no batch": (lambda: nn.Conv2d(5, 10, 3), (5, 7, 6)),
    "conv3d": (lambda: nn.Conv3d(5, 10, 2), (2, 5, 3, 4, 3)),
}


def layer_of(base, kind="mlp", beds=2, seeds=3, live=None):
    torch.manual_seed(0)
    config = MorphoConfig(layers=LayersConfig(num_seeds=seeds, beds=beds), blueprint=BlueprintConfig(kind=kind))
    layer = HybridKasminaLayer(base(), config)
    layer.request_germination(live)
    nn.init.normal_(layer.morpho.beds[0].w_out)
    return layer


def fossilize(layer):
    """Keep the first event's seeds and let a second one germinate in the same chunks."""
    chunks = range(layer.num_seeds)
    layer.morpho.beds[0].steps = layer.morpho.beds[0].warmup
    layer.morpho.advance()
    layer.morpho.keep(chunks, reason="test")
    layer.morpho.advance()
    layer.request_germination([0, 2])
    nn.init.normal_(layer.morpho.beds[1].w_out)


@pytest.mark.parametrize("name", BASES)
@pytest.mark.parametrize("live", [None, [1]])
def test_any_layer_agrees_with_one_seed_at_a_time(name, live):
    base, shape = BASES[name]
    layer = layer_of(base, live=live)
    x = torch.randn(shape)
    if name == "conv2d":
        x = x.to(memory_format=torch.channels_last)
    plain = base()
    plain.load_state_dict({k: v for k, v in layer.state_dict().items() if not k.startswith("morpho")})
    columns = layer.morpho.blueprint.site.to_columns(plain(x)).double()
    bed = [p.detach().double() for p in layer.morpho.beds[0].parameters()]
    alpha = torch.from_numpy(layer.morpho.row_alpha(0)).double()
    want = per_seed(columns, layer.chunks, [bed], [alpha], "relu")
    assert relative_error(layer.morpho.blueprint.site.to_columns(layer(x)), want) < 3e-6
    layer(x).square().sum().backward()
    assert layer.weight.grad is not None


@pytest.mark.parametrize("kind", ["mlp", "neurons"])
def test_a_fossil_and_its_successor_both_read_the_base_layer(kind):
    layer = layer_of(BASES["linear"][0], kind=kind)
    x = torch.randn(6, 5)
    base = nn.functional.linear(x, layer.weight, layer.bias)
    first = layer(x) - base
    fossilize(layer)
    both = layer(x) - base
    layer.morpho.mute([0, 2])
    torch.testing.assert_close(layer(x) - base, first)
    layer.morpho.mute(())
    assert not torch.allclose(both, first)
    layer(x).sum().backward()
    assert layer.morpho.beds[0].w_out.grad.abs().sum() > 0
    assert layer.morpho.beds[1].w_out.grad.abs().sum() > 0


def test_a_change_of_the_active_set_between_forward_and_backward_is_harmless():
    layer = layer_of(BASES["linear"][0], live=[1])
    x = torch.randn(6, 5)
    layer(x).square().sum().backward()
    want = layer.morpho.beds[0].w_in.grad.clone()
    layer.zero_grad()
    loss = layer(x).square().sum()
    layer.morpho.mute([1])
    loss.backward()
    torch.testing.assert_close(layer.morpho.beds[0].w_in.grad, want)


def test_a_muted_seed_with_infinite_weights_does_no_harm():
    layer = layer_of(BASES["linear"][0])
    with torch.no_grad():
        layer.morpho.beds[0].w_out[1] = torch.inf
    layer.morpho.mute([1])
    assert torch.isfinite(layer(torch.randn(6, 5))).all()


def test_compile_gives_one_graph_whatever_alpha_is():
    layer = layer_of(BASES["linear"][0])
    x = torch.randn(6, 5)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        torch.testing.assert_close(compiled(x), layer(x))
        layer.morpho.state.update([0, 1], alpha=0.25)
        layer.morpho.refresh()
        torch.testing.assert_close(compiled(x), layer(x))
        compiled(x).square().sum().backward()
    got = layer.morpho.beds[0].w_in.grad.clone()
    layer.zero_grad()
    layer(x).square().sum().backward()
    torch.testing.assert_close(got, layer.morpho.beds[0].w_in.grad)


def test_export_holds_the_registered_operator():
    layer = layer_of(BASES["linear"][0]).eval()
    program = torch.export.export(layer, (torch.randn(6, 5),), strict=False)
    x = torch.randn(6, 5)
    torch.testing.assert_close(program.module()(x), layer(x))


def test_per_sample_gradients_take_the_reference():
    layer = layer_of(BASES["linear"][0])
    values = dict(layer.named_parameters())

    def loss(values, x):
        return torch.func.functional_call(layer, values, (x,)).sum()

    grads = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(values, torch.randn(4, 5))
    assert grads["morpho.beds.0.w_in"].shape[0] == 4


def test_a_broken_triton_is_no_reason_to_fail(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    monkeypatch.setitem(sys.modules, "lightning_morpho.kernels.triton", None)
    caches = dispatch.triton_problem, dispatch.shared_memory
    for cache in caches:
        cache.cache_clear()
    try:
        assert "Triton is missing or broken" in dispatch.triton_problem()
        assert layer_of(BASES["linear"][0])(torch.randn(6, 5)).shape == (6, 10)
    finally:
        monkeypatch.undo()
        for cache in caches:
            cache.cache_clear()


def test_the_original_output_is_left_alone_where_it_is_someone_elses():
    layer = layer_of(BASES["linear"][0])
    seen = []
    layer.register_forward_hook(lambda module, args, output: seen.append(output))
    x = torch.randn(6, 5)
    assert layer(x) is seen[0]


def test_the_plan_uploads_only_alpha_of_live_chunks():
    layer = layer_of(BASES["linear"][0], live=[2])
    (active,) = layer.morpho.plan._active
    assert [rows.tolist() for rows in active.rows] == [[], [1]]
    np.testing.assert_array_equal(active.alpha.numpy(), layer.morpho.row_alpha(0))


@pytest.mark.parametrize(
    ("regimes", "words"),
    [(dispatch.REGIMES, "batched matrix products"), ((), "plain operations: no kernel takes this dtype")],
)
def test_the_report_says_what_computes_the_seeds(regimes, words, monkeypatch, tmp_path):
    """A run that is several times slower than it could be must not be so without a word."""
    monkeypatch.setattr(dispatch, "REGIMES", regimes)
    callback = quick(blueprint=BlueprintConfig(kind="mlp"))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        make_trainer(tmp_path, callback, max_epochs=4).fit(Host(linear_net()), **loaders())
    assert [words in entry.backend for entry in callback.report.taken] == [True, True]
    assert words in str(callback.report)
    slow = [str(w.message) for w in caught if "computed by plain operations" in str(w.message)]
    assert len(slow) == (0 if regimes else 2), "once a layer"
