"""A user's own module as a blueprint: what they wrote must run as they wrote it, and cost no boilerplate."""

from __future__ import annotations

import copy
import pickle

import lightning as L
import pytest
import torch
from torch import Tensor, nn

from hosts import Host, assert_equal, linear_net, loaders, make_trainer, moves, quick
from lightning_morpho import BlueprintConfig, export, register_blueprint, register_module_blueprint
from lightning_morpho.blueprints import base

CLOSE = {"rtol": 1e-11, "atol": 1e-12}


class Branching(nn.Module):
    """Looks at its data, which `torch.func.vmap` can't batch."""

    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        self.inner = nn.Linear(i, o)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) if x.sum().item() > 1e9 else torch.tanh(self.inner(x))


FACTORIES = {
    "net": lambda i, o: nn.Sequential(nn.Linear(i, 4), nn.LayerNorm(4), nn.GELU(), nn.Linear(4, o)),
    "branching": Branching,
}


@pytest.fixture(autouse=True)
def _own_registry(monkeypatch):
    monkeypatch.setattr(base, "_REGISTRY", dict(base._REGISTRY))


def register(factory: str, source: str) -> str:
    register_module_blueprint("mine", FACTORIES[factory], source=source)
    return "mine"


@pytest.mark.parametrize("factory", FACTORIES)
@pytest.mark.parametrize("source", ["input", "output", "chunk"])
def test_layer_adds_the_modules_output_times_the_gain_chunk_by_chunk(source, factory, grown):
    plain = nn.Linear(5, 7).double()
    layer = grown(copy.deepcopy(plain), kind=register(factory, source))
    assert layer.morpho.blueprint.batched == (source == "chunk" and factory == "net")
    x = torch.randn(3, 5, dtype=torch.float64)
    y = plain(x)
    expected = y.clone()
    for index, bed in enumerate(layer.morpho.beds):
        alpha = layer.morpho.row_alpha(index)
        values = dict(bed.named_parameters())
        for chunk, (start, stop) in enumerate([(0, 4), (4, 7)]):
            # An independent module for each chunk, with the weights of its row.
            ends = {"input": (5, 7), "output": (7, 7), "chunk": (4, 4)}[source]
            module = FACTORIES[factory](*ends).double()
            for name, parameter in module.named_parameters():
                value = values[name.replace(".", "__")]
                parameter.data = (value[chunk] if source == "chunk" else value).detach()
            gain = values["zero_gain"]
            if source == "chunk":
                padded = nn.functional.pad(y[:, start:stop], (0, 4 - (stop - start)))
                added = (module(padded) * gain[chunk])[:, : stop - start]
            else:
                added = (module(x if source == "input" else y) * gain)[:, start:stop]
            expected[:, start:stop] += float(alpha[chunk]) * added
    torch.testing.assert_close(layer(x), expected, **CLOSE)
    torch.testing.assert_close(export(nn.Sequential(layer))(x), expected, **CLOSE)


def test_module_for_convolutions_reads_and_gives_channels_first(make_layer, fill_beds):
    register_module_blueprint("mine", lambda i, o: nn.Conv2d(i, o, 3, padding=1, bias=False))
    plain = nn.Conv2d(2, 6, 3, padding=1).double()
    layer = make_layer(copy.deepcopy(plain), kind="mine", seeds=2)
    x = torch.randn(2, 2, 5, 5, dtype=torch.float64)
    layer.request_germination()
    assert torch.equal(layer(x), plain(x))
    fill_beds(layer)
    bed = layer.morpho.beds[0]
    added = nn.functional.conv2d(x, bed.weight, padding=1) * bed.zero_gain.view(-1, 1, 1)
    torch.testing.assert_close(layer(x), plain(x) + added, **CLOSE)
    torch.testing.assert_close(export(nn.Sequential(layer))(x), layer(x), **CLOSE)


@pytest.mark.parametrize("source", ["input", "chunk"])
def test_newborn_is_silent_and_learns_and_no_random_number_is_lost(source, make_layer):
    layer = make_layer(nn.Linear(5, 7).double(), kind=register("net", source), seeds=2)
    x = torch.randn(16, 5, dtype=torch.float64)
    before, state = layer(x), torch.get_rng_state()
    layer.request_germination([0])
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(layer(x), before)
    layer(x).square().sum().backward()
    gain = layer.morpho.beds[0].zero_gain
    assert gain.grad.any()
    with torch.no_grad():
        gain -= 0.01 * gain.grad
    assert layer(x).square().sum() < before.square().sum()


def test_chunks_are_born_different_and_runs_alike(make_layer):
    kind = register("net", "chunk")
    first, second = (make_layer(nn.Linear(5, 8), kind=kind, seeds=2) for _ in range(2))
    for layer in (first, second):
        layer.request_germination()
    weights = dict(first.morpho.beds[0].named_parameters())["0__weight"]
    assert not torch.equal(weights[0], weights[1])
    assert_equal(dict(first.morpho.state_dict()), dict(second.morpho.state_dict()))


def test_dropout_in_the_module_follows_train_and_eval(make_layer, fill_beds):
    register_module_blueprint("mine", lambda i, o: nn.Sequential(nn.Linear(i, o), nn.Dropout(0.5)))
    layer = make_layer(nn.Linear(5, 64), kind="mine")
    layer.request_germination()
    fill_beds(layer)
    x = torch.randn(4, 5)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))


def test_copies_and_pickles_grow_on(grown):
    layer = grown(nn.Linear(5, 7), kind=register("net", "chunk"))
    x = torch.randn(2, 5)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin(x), layer(x))


@pytest.mark.parametrize(
    ("factory", "error", "message"),
    [
        (lambda i, o: nn.Sequential(nn.Linear(i, o), nn.BatchNorm1d(o)), ValueError, r"buffers \(1.running_mean"),
        (lambda i, o: nn.Identity(), ValueError, "no parameters"),
        (lambda i, o: "linear", TypeError, "must return an nn.Module, got 'linear'"),
    ],
)
def test_wrong_module_is_refused_at_registration_or_before_the_layer_is_touched(factory, error, message, make_layer):
    with pytest.raises(ValueError, match=message):
        register_module_blueprint("mine", factory)
    with pytest.raises(ValueError, match="`blueprint.kind` can't be 'mine'"):
        base.blueprint_type("mine")
    register_module_blueprint("mine", factory, probe=False)
    layer = nn.Linear(4, 6)
    with pytest.raises(error, match=message):
        make_layer(layer, kind="mine")
    assert type(layer) is nn.Linear


def test_wrong_source_and_taken_name_are_refused():
    with pytest.raises(ValueError, match="`source` must be 'input', 'output' or 'chunk', got 'layer'"):
        register_module_blueprint("mine", nn.Linear, source="layer")
    with pytest.raises(ValueError, match="'lowrank' is registered already"):
        register_module_blueprint("lowrank", nn.Linear)
    with pytest.raises(TypeError):
        register_blueprint("mine")(nn.Linear)


# ------------------------------------------------------------------------------------------ runs
def fit(root, kind: str, epochs: int, ckpt=None) -> tuple[L.Trainer, Host]:
    L.seed_everything(0, verbose=False)
    callback = quick(blueprint=BlueprintConfig(kind=kind))
    trainer, module = make_trainer(root, callback, max_epochs=epochs), Host(linear_net())
    trainer.fit(module, **loaders(), ckpt_path=ckpt, weights_only=True if ckpt else None)
    return trainer, module


@pytest.mark.parametrize("kind", ["lowrank", "affine", "glu", "mine"])
def test_fit_grows_and_resumes_in_the_middle_bit_for_bit(kind, tmp_path):
    if kind == "mine":
        register("net", "chunk")
    _, whole = fit(tmp_path, kind, 4)
    seen = moves(tmp_path)
    assert {(layer, source, target) for _, layer, source, target in seen} >= {
        (name, "DORMANT", "LOADING") for name in ("net.0", "net.2")
    }
    trainer, _ = fit(tmp_path / "half", kind, 2)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    _, resumed = fit(tmp_path / "rest", kind, 4, tmp_path / "half.ckpt")
    assert_equal(dict(whole.state_dict()), dict(resumed.state_dict()))
    events = [*moves(tmp_path / "half"), *moves(tmp_path / "rest")]
    assert events == seen
