"""What nothing reads is left out, and the output stays what it was."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

from lightning_morpho import (
    BlueprintConfig,
    LayersConfig,
    LifecycleError,
    MorphoConfig,
    WarmupConfig,
    confirm_pairs_,
    export,
    find_pairs,
    hybrid_layers,
    morph_,
    unmorph_,
)
from lightning_morpho.export import drop_dead_units_

TOLERANCE = 1e-12  # float64; another width is another order of summation
R = nn.ReLU


class SwiGLU(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(6, 8), nn.Linear(6, 8, bias=False), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(nn.functional.silu(self.gate(x)) * self.up(x))


def _conv() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8), R(), nn.MaxPool2d(2)),
        *(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8, affine=False), R(), nn.Flatten(), nn.Linear(32, 3)),
    )


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (lambda: nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 8), R(), nn.Linear(8, 3)), (5, 6)),
    "conv, norm, flatten": (_conv, (4, 2, 8, 8)),
    "two producers": (SwiGLU, (5, 6)),
}


def made(name: str) -> tuple[nn.Module, torch.Tensor]:
    build, shape = MODELS[name]
    model, x = build().double(), torch.randn(*shape).double()
    for _ in range(3):
        model(x)  # running statistics of its own
    return model.eval(), x


def silence(model: nn.Module, consumer: str, units: list[int], of: int) -> None:
    """Nothing reads these units any more."""
    weight = model.get_submodule(consumer).weight
    with torch.no_grad():
        weight.unflatten(1, (of, -1))[:, units] = 0


@pytest.mark.parametrize(
    ("name", "consumer", "producers"),
    [
        ("mlp", "4", ["2"]),
        ("conv, norm, flatten", "4", ["0"]),
        ("conv, norm, flatten", "8", ["4"]),
        ("two producers", "down", ["gate", "up"]),
    ],
)
def test_unread_units_leave_all_layers_that_they_touch(name, consumer, producers):
    model, x = made(name)
    silence(model, consumer, [0, 3, 7], of=8)
    before, parameters = model(x), sum(p.numel() for p in model.parameters())
    assert drop_dead_units_(model, find_pairs(model, x).pairs.values()) == {consumer: 3}
    assert (model(x) - before).abs().max() < TOLERANCE
    assert all(model.get_submodule(p).weight.shape[0] == 5 for p in producers)
    assert sum(p.numel() for p in model.parameters()) < parameters
    assert model(x).requires_grad
    assert copy.deepcopy(model).load_state_dict(model.state_dict())


def test_units_read_by_dropped_ones_alone_go_too():
    model, x = made("mlp")
    silence(model, "4", [1, 2], of=8)
    silence(model, "2", [], of=8)
    with torch.no_grad():
        model[2].weight[:, 5] = 0
        model[2].weight[1, 5] = 1.0  # unit 5 of the first layer is read by unit 1 of the second alone
    before = model(x)
    assert drop_dead_units_(model, find_pairs(model, x).pairs.values()) == {"4": 2, "2": 1}
    assert (model(x) - before).abs().max() < TOLERANCE


def test_a_layer_that_nothing_reads_keeps_one_unit():
    model, x = made("conv, norm, flatten")
    silence(model, "4", list(range(8)), of=8)
    before = model(x)
    drop_dead_units_(model, find_pairs(model, x).pairs.values())
    assert model[0].out_channels == model[1].num_features == 1
    assert (model(x) - before).abs().max() < TOLERANCE


def test_units_outside_pairs_stay():
    model = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), R(), nn.Linear(8, 3))  # the norm mixes units
    silence(model, "3", [1], of=8)
    assert drop_dead_units_(model, find_pairs(model, torch.ones(2, 6)).pairs.values()) == {}
    assert model[0].out_features == 8


def grown(name: str, kind: str, chunks: int = 2) -> tuple[nn.Module, torch.Tensor]:
    model, x = made(name)
    blueprint = BlueprintConfig(kind=kind, hidden=4)
    morph_(
        model, MorphoConfig(blueprint=blueprint, layers=LayersConfig(num_seeds=chunks), warmup=WarmupConfig(steps=0))
    )
    confirm_pairs_(model, x)
    for layer in hybrid_layers(model).values():
        if len(layer.morpho.beds):
            layer.request_germination()
    with torch.no_grad():
        for layer in hybrid_layers(model).values():
            for part in layer.morpho.grown():
                for parameter in part.parameters():
                    parameter.normal_(0, 0.3)
    return model, x


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("kind", ["span", "neurons", "mlp", "block"])
def test_export_leaves_out_dead_units_of_beds_and_of_the_host(kind, name):
    model, x = grown(name, kind)
    layers = hybrid_layers(model)
    layer = layers[list(layers)[-1]]
    with torch.no_grad():
        bed = layer.morpho.bed_at(0)
        bed.w_out.unflatten(1 if kind != "mlp" else 2, (4, -1)).select(1 if kind != "mlp" else 2, 2).zero_()
        if kind == "span":
            silence(model, layer.morpho.name, [6], of=8)
    whole, pruned = export(model, prune=False), export(model)
    assert (whole(x) - model(x)).abs().max() < TOLERANCE
    assert (pruned(x) - model(x)).abs().max() < TOLERANCE
    count = {m: sum(p.numel() for p in m.parameters()) for m in (whole, pruned)}
    assert count[pruned] < count[whole]


@pytest.mark.parametrize("kind", ["span", "neurons", "mlp", "block"])
def test_newborns_that_add_nothing_are_gone_and_can_be_kept(kind):
    model, x = made("mlp")
    host = copy.deepcopy(model)
    morph_(model, MorphoConfig(blueprint=BlueprintConfig(kind=kind, hidden=4)))
    confirm_pairs_(model, x)
    for layer in hybrid_layers(model).values():
        if len(layer.morpho.beds):
            layer.request_germination()
    plain = export(model)
    assert plain.state_dict().keys() == host.state_dict().keys()
    assert all(torch.equal(value, host.state_dict()[key]) for key, value in plain.state_dict().items())
    assert sum(p.numel() for p in export(model, prune=False).parameters()) > sum(p.numel() for p in host.parameters())


def test_an_unconfirmed_pair_is_left_alone():
    model, x = made("mlp")
    silence(model, "4", [1], of=8)
    morph_(model)
    assert export(model)[2].out_features == 8
    confirm_pairs_(model, x)
    assert export(model)[2].out_features == 7


@pytest.mark.parametrize("kind", ["span", "neurons", "block"])
def test_the_host_alone_is_what_its_own_weights_compute(kind):
    model, x = grown("mlp", kind)
    for layer in hybrid_layers(model).values():
        layer.implementation = "base"
    alone, grown_output = model(x), export(model)(x)
    assert torch.equal(alone, grown_output), "a layer that is switched off is exported without its seeds"
    for layer in hybrid_layers(model).values():
        layer.implementation = "chunked"
    assert not torch.equal(model(x), alone)
    with pytest.raises(LifecycleError, match="discard_live"):
        unmorph_(model)
    unmorph_(model, discard_live=True)
    assert torch.equal(model(x), alone)
    assert all(type(m).__module__.startswith("torch.") for m in model.modules())
    model.load_state_dict(MODELS["mlp"][0]().state_dict())
