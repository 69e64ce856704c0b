"""Dead hidden units: exactly zero everywhere, without effect on the rest, and gone from the exported model."""

from __future__ import annotations

import pytest
import torch
from grown_nets import NETS, grown
from torch import Tensor

from lightning_morpho import OptimizerLink, export, hybrid_layers
from lightning_morpho.layers import HiddenLayer, hidden_layers


def kill(layer: HiddenLayer, seed: int) -> Tensor:
    """Some units of each block, drawn; at least one of each is spared."""
    dead = torch.rand(layer.units, generator=torch.Generator().manual_seed(seed)) < 0.5
    for part in layer.split(dead).values():
        part[0] = False
    return dead


@pytest.mark.parametrize("name", NETS)
def test_export_leaves_dead_units_out_and_computes_the_same(name):
    model, x = grown(name)
    full = export(model)
    layers = hidden_layers(hybrid_layers(model).values())
    dead = {layer.name: kill(layer, i) for i, layer in enumerate(layers)}
    for layer in layers:
        layer.mark_dead_(dead[layer.name])
    plain = export(model)
    torch.testing.assert_close(plain(x), model(x), rtol=1e-5, atol=1e-5)
    assert sum(p.numel() for p in plain.parameters()) < sum(p.numel() for p in full.parameters())
    for layer in layers:
        inputs = plain.get_submodule(layer.name).weight.shape[1]
        assert inputs == int((~dead[layer.name]).sum()) * layer.blueprint.route.positions
    assert not any(m is not None for m in hybrid_layers(plain).values())


@pytest.mark.parametrize("name", NETS)
def test_a_narrower_host_equals_one_with_the_units_sliced_out_by_hand(name):
    """The reference: an exported net of full size whose consumers' columns are set to zero."""
    model, x = grown(name)
    layers = hidden_layers(hybrid_layers(model).values())
    dead = {layer.name: kill(layer, i) for i, layer in enumerate(layers)}
    reference = export(model)
    for layer in layers:
        weight = reference.get_submodule(layer.name).weight
        columns = dead[layer.name].repeat_interleave(layer.blueprint.route.positions)
        with torch.no_grad():
            weight[:, columns] = 0
        layer.mark_dead_(dead[layer.name])
    torch.testing.assert_close(model(x), reference(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NETS)
def test_masks_name_every_weight_of_a_dead_unit(name):
    """What a mask misses would keep training and bring a removed unit back."""
    model, x = grown(name)
    layers = hidden_layers(hybrid_layers(model).values())
    for i, layer in enumerate(layers):
        layer.mark_dead_(kill(layer, i))
    before = export(model)
    zero = [(p, mask) for layer in layers for p, mask in layer.masks()]
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape))
        for parameter, mask in zero:
            parameter.mul_(mask)
    after = export(model)
    assert [p.shape for p in before.parameters()] == [p.shape for p in after.parameters()]
    torch.testing.assert_close(after(x), model(x), rtol=1e-5, atol=1e-5)


def test_dead_units_survive_a_round_trip_through_state_dict():
    model, x = grown("mlp")
    for i, layer in enumerate(hidden_layers(hybrid_layers(model).values())):
        layer.mark_dead_(kill(layer, i))
    again, _ = grown("mlp")
    again.load_state_dict(model.state_dict())
    assert [p.shape for p in export(again).parameters()] == [p.shape for p in export(model).parameters()]
    torch.testing.assert_close(again(x), model(x), rtol=0, atol=0)


def test_pairs_come_last_to_first():
    """The rule spends its tolerance from the output backwards; what it saw of earlier layers stays true so."""
    model, _ = grown("mlp")
    assert [layer.name for layer in hidden_layers(hybrid_layers(model).values())] == ["4", "2"]


def test_a_bed_that_is_taken_again_trains_all_of_its_units():
    """Masks of units that sizing removed from its last seed would hold the next one's at zero for good."""
    model, x = grown("mlp")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    layers = hybrid_layers(model)
    hidden = hidden_layers(layers.values())[0]
    layer = layers[hidden.name]
    dead = torch.zeros(hidden.units, dtype=torch.bool)
    dead[-2:] = True  # of the bed, whose units come after the host's
    hidden.mark_dead_(dead)
    link = OptimizerLink(layers, [optimizer])
    held = {id(parameter) for parameter in layer.morpho.beds[0].parameters()}
    assert any(id(parameter) in held and not mask.all() for parameter, mask in hidden.masks())
    layer.morpho.cull(range(layer.num_seeds), reason="test")
    for _ in range(12):  # fades out, then the embargo
        layer.morpho.advance()
    assert layer.morpho.beds[0].free
    layer.request_germination()
    link.drop_stale_state()
    with torch.no_grad():
        for parameter in layer.morpho.beds[0].parameters():
            parameter.fill_(1.0)
    model(x).sum().backward()
    optimizer.step()
    assert all(bool(parameter.all()) for parameter in layer.morpho.beds[0].parameters())


def test_weights_of_dead_units_stay_zero_and_their_moments_are_forgotten():
    """What momentum and weight decay bring back would make the run and its narrower export two nets."""
    model, x = grown("mlp")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    link = OptimizerLink(hybrid_layers(model), [optimizer])
    model(x).square().sum().backward()
    optimizer.step()
    layers = hidden_layers(hybrid_layers(model).values())
    for i, hidden in enumerate(layers):
        hidden.mark_dead_(kill(hidden, i))
    link.note_dead_units()
    masked = [(parameter, mask) for layer in layers for parameter, mask in layer.masks()]
    assert not any(bool((optimizer.state[p]["momentum_buffer"] * (1 - mask)).any()) for p, mask in masked)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert not any(bool((parameter * (1 - mask)).any()) for parameter, mask in masked)
