"""The stage machine of a layer: endings at once, contained errors, and what a tick costs."""

import pytest
import torch
from torch import nn

from lightning_morpho import GraftingConfig, GrowthEngine, OptimizerLink, hybrid_layers, morph_
from lightning_morpho.layers import seeds
from lightning_morpho.tamiyo import Keep, Tamiyo


def names(layer):
    return [layer.seed(c).stage.name for c in range(layer.num_seeds)]


def transitions_of(layer):
    seen = []
    layer.morpho.on_transition = seen.append
    return seen


def test_rollback_ends_live_seeds_at_once_and_spares_fossils(make_layer, fill_beds):
    layer = make_layer(seeds=3, beds=3, embargo_ticks=1)
    x = torch.randn(5, 4, dtype=torch.float64)
    layer.request_germination(0)
    layer.morpho.advance()
    layer.morpho.keep([0], reason="test")
    fill_beds(layer)
    with_fossil = layer(x)
    for chunk in (1, 2):
        layer.request_germination(chunk)
    layer.cancel_germination(2)
    fill = [p for bed in list(layer.morpho.beds)[1:] for p in bed.parameters()]
    with torch.no_grad():
        for parameter in fill:
            parameter.normal_()
    seen = transitions_of(layer)
    assert layer.morpho.roll_back(figures={"loss": 9.0}) == [1, 2]
    assert torch.equal(layer(x), with_fossil)
    assert names(layer) == ["FOSSILIZED", "CULLED", "CULLED"]
    assert [(t.chunk, t.reason, t.figures) for t in seen] == [(c, "rollback", {"loss": 9.0}) for c in (1, 2)]
    assert all(bed.free and not any(p.any() for p in bed.parameters()) for bed in list(layer.morpho.beds)[1:])
    layer.morpho.advance()
    assert names(layer)[1:] == ["CULLED", "CULLED"]  # the embargo
    layer.morpho.advance()
    assert names(layer)[1:] == ["DORMANT", "DORMANT"]
    assert layer.morpho.roll_back() == []


def test_errors_silence_a_seed_until_there_were_too_many(make_layer, fill_beds):
    layer = make_layer(max_errors=2, recovery_ticks=2, alpha_step=0.5, grafting=GraftingConfig(ticks=2))
    x = torch.randn(5, 4, dtype=torch.float64)
    untouched = layer(x)
    layer.request_germination()
    fill_beds(layer)
    whole = layer(x)
    layer.morpho.record_errors([0, 1], reason="not finite")
    assert torch.equal(layer(x), untouched)
    assert [layer.seed(0).alpha, layer.seed(0).errors] == [0, 1]
    layer.morpho.advance()
    assert layer.seed(0).alpha == 0.5 and layer.seed(0).stage.name == "LOADING"
    layer.morpho.advance()
    assert torch.equal(layer(x), whole)
    assert layer.seed(0).stage.name == "ACTIVE" and layer.morpho.stages.due(0)
    layer.morpho.record_errors([0], reason="not finite")
    assert names(layer) == ["ERROR_RECOVERY", "ACTIVE"]
    for _ in range(2):
        layer.morpho.advance()
    assert names(layer)[0] == "ERROR_RECOVERY"  # the cooldown
    layer.morpho.advance()
    assert names(layer)[0] == "DORMANT"
    layer.morpho.record_errors([0], reason="late")  # a seed that is not live can't err
    assert (layer.seed(0).errors, layer.seed(1).errors) == (2, 1)


def test_errors_and_what_they_led_to_are_saved(make_layer):
    layer, other = make_layer(max_errors=2, alpha_step=0.25), make_layer(max_errors=2, alpha_step=0.25)
    layer.request_germination()
    layer.morpho.record_errors([1], reason="not finite")
    layer.morpho.advance()
    other.load_state_dict(layer.state_dict())
    for each in (layer, other):
        each.morpho.advance()
        assert [each.seed(1).alpha, each.seed(1).errors] == [0.5, 1]
        each.morpho.record_errors([1], reason="not finite")
        assert names(each)[1] == "ERROR_RECOVERY"


class KeepAll(Tamiyo):
    def decide(self, observation):
        return [Keep(seed=(v.name, s.chunk), reason="all") for v in observation.layers for s in v.seeds if s.due]

    def grow(self, observation):
        return []


def test_a_tick_builds_a_layers_plan_twice_at_most_however_many_seeds_it_judges(monkeypatch, morpho_config):
    model = nn.Sequential(nn.Linear(4, 60))
    morph_(model, morpho_config(seeds=60))
    layers = hybrid_layers(model)
    layers["0"].request_germination()
    layers["0"].morpho.advance()
    built = []
    monkeypatch.setattr(seeds, "plan_", lambda *a, original=seeds.plan_: built.append(1) or original(*a))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    engine = GrowthEngine(layers, KeepAll(), OptimizerLink(layers, [optimizer]))
    engine.tick(step=1, total_steps=None, loss=None, measure=None)
    assert set(names(layers["0"])) == {"FOSSILIZED"}
    assert len(built) <= 2


def test_a_decision_that_fails_leaves_the_plan_in_line_with_the_state(make_layer, fill_beds):
    layer = make_layer(seeds=2, beds=2)
    layer.request_germination(0)
    fill_beds(layer)
    x = torch.randn(3, 4, dtype=torch.float64)
    with pytest.raises(ValueError, match="chunk"), layer.morpho.together():
        layer.morpho.roll_back()
        layer.morpho.cull([7], reason="no such chunk")
    assert torch.equal(layer(x), nn.functional.linear(x, layer.weight, layer.bias))
