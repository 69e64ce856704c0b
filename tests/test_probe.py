"""A bug in a user's blueprint shows when it is registered, and names the layer, what was expected and what was got."""

import pytest
import torch
from torch import nn

from lightning_morpho import (
    Blueprint,
    BlueprintConfig,
    HybridKasminaLayer,
    MorphoConfig,
    blueprint_type,
    register_blueprint,
    register_module_blueprint,
)
from lightning_morpho.blueprints import base
from lightning_morpho.blueprints.probe import ProbeError, probe


@pytest.fixture(autouse=True)
def _own_registry(monkeypatch):
    monkeypatch.setattr(base, "_REGISTRY", dict(base._REGISTRY))


def made(grow, reset=0.0, source="output", layers=(), shape=None):
    """A gain on the output, or what a mistake makes of it."""

    class Mine(Blueprint):
        def shapes(self):
            n = self.site.chunks
            per_chunk = {"gain": (n.num_chunks, 1, n.max_width)}
            return shape or (per_chunk if source == "chunk" else {"gain": (self.site.out_features,)})

        def reset_(self, parameters, generator):
            parameters["gain"].fill_(reset)

        def grow(self, parameters, source):
            return grow(self, parameters["gain"], source)

    Mine.source, Mine.layers = source, layers
    return Mine


def per_feature(self, gain, source):
    return source * self.site.per_feature(gain)


@pytest.mark.parametrize("kind", ["affine", "block", "glu", "lowrank", "mlp", "neurons"])
def test_built_in_kinds_work_in_every_layer(kind):
    state = torch.get_rng_state()
    assert len(probe(blueprint_type(kind))) == 10
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    ("blueprint", "message"),
    [
        (
            made(lambda self, gain, y: per_feature(self, gain, y)[:-1]),
            r"`mine` in Linear.* with 2 seeds must give shape \(3, 16\), got",
        ),
        (made(lambda self, gain, y: y @ gain[:-1]), r"`mine` in Linear.* with 2 seeds raised RuntimeError: .*size"),
        (made(lambda self, gain, y: None), r"shape \(3, 16\), got NoneType"),
        (made(per_feature, reset=0.5), "must give exactly zero after `reset_`, got values up to"),
        (made(lambda self, gain, y: per_feature(self, gain.detach(), y)), "receives no gradient"),
        (made(lambda self, gain, y: per_feature(self, gain * gain, y)), "receives no gradient"),
        (made(lambda self, gain, y: y * gain, layers=(nn.Linear, nn.Conv2d)), r"`mine` in Conv2d.*raised"),
        (made(per_feature, layers=(nn.Embedding,)), r"may hold nn.Linear and nn.Conv1d/2d/3d, got .*Embedding"),
        # Right for chunks of one width, wrong for what is padded to it.
        (
            made(lambda self, gain, y: (gain * y)[..., :8][..., : 16 // len(y)], source="chunk"),
            "with 3 seeds must give",
        ),
    ],
)
def test_mistakes_are_refused_and_leave_the_registry_as_it_was(blueprint, message):
    with pytest.raises(ProbeError, match=message):
        register_blueprint("mine")(blueprint)
    assert "mine" not in base._REGISTRY
    assert blueprint.kind == ""
    register_blueprint("mine", probe=False)(blueprint)
    assert blueprint_type("mine") is blueprint


def test_without_a_declaration_it_must_work_in_one_kind_of_layer_only():
    register_module_blueprint("mine", lambda i, o: nn.Conv1d(i, o, 9, padding=4), source="output")
    assert all(layer.startswith("Conv1d") for layer in probe(blueprint_type("mine")))
    with pytest.raises(ProbeError, match="in Linear"):
        register_module_blueprint("other", lambda i, o: nn.Linear(i, o + 1))


def test_a_declared_kind_is_refused_in_other_layers_before_they_are_touched():
    register_module_blueprint("mine", nn.Linear, layers=[nn.Linear])
    config = MorphoConfig(blueprint=BlueprintConfig(kind="mine"))
    layer = nn.Conv1d(4, 6, 3)
    with pytest.raises(ValueError, match=r"`mine` is for \['Linear'\], got a layer Conv1d"):
        HybridKasminaLayer(layer, config)
    assert type(layer) is nn.Conv1d
    HybridKasminaLayer(nn.Linear(4, 6), config).request_germination()
