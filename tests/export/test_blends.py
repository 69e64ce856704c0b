"""Whatever way seeds enter the host, the plain model and a loaded checkpoint compute the same."""

from __future__ import annotations

import copy
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from lightning_morpho import GraftingConfig, LifecycleConfig, export, hybrid_layers, load_grown_, morph_, save_export

sys.path.insert(0, str(Path(__file__).parent))
from grown import architecture, config, grow_, host_alone  # noqa: E402


def blended(blend: str, kind: str, ticks: int) -> tuple[nn.Module, nn.Module, torch.Tensor]:
    """The model before growth, the grown one some ticks after its germinations, and a batch."""
    model, x = architecture("vgg")
    before = copy.deepcopy(model)
    grafting = GraftingConfig(blend=blend, ticks=4)
    morph_(model, replace(config(kind), grafting=grafting, lifecycle=LifecycleConfig(active_ticks=9)))
    for layer in hybrid_layers(model).values():
        layer.request_germination([0])
        with torch.no_grad():
            for parameter in layer.morpho.bed_at(0).parameters():
                parameter.normal_(0, 0.3)
        for _ in range(ticks):
            layer.morpho.advance()
    return before.eval(), model.eval(), x


@pytest.mark.parametrize("ticks", [2, 8])
@pytest.mark.parametrize(
    ("blend", "kind"),
    [("lerp", "mlp"), ("lerp", "own_module"), ("multiply", "mlp"), ("multiply", "neurons"), ("multiply", "affine")],
)
def test_every_blend_leaves_as_plain_modules(blend, kind, ticks, tmp_path):
    before, model, x = blended(blend, kind, ticks)
    assert (host_alone(model, x) - model(x)).abs().max() > 1e-3, "the seeds change nothing to compare"
    assert (export(model)(x) - model(x)).abs().max() < 1e-6
    formats = ["pt", "pt2"] if kind == "own_module" else ["pt", "pt2", "safetensors"]
    report = save_export(model, tmp_path / "net", x, formats=formats)
    assert max(report.differences.values()) < 1e-5


@pytest.mark.parametrize(("blend", "kind"), [("lerp", "mlp"), ("multiply", "block"), ("add", "glu")])
def test_checkpoint_is_loaded_with_the_blend_it_was_made_with(blend, kind):
    before, model, x = blended(blend, kind, ticks=2)
    load_grown_(before, model.state_dict())
    assert torch.equal(before.eval()(x), model(x))


@pytest.mark.parametrize("off", ["2", "4", "6"])
def test_a_layer_in_the_middle_of_a_chain_that_is_switched_off_takes_its_links_along(off):
    x, (first, second) = torch.randn(5, 6), [nn.Linear(8, 8) for _ in range(2)]
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), first, nn.ReLU(), second, nn.ReLU(), nn.Linear(8, 3))
    grow_(model, x, config("auto"))
    on = model(x)
    model.get_submodule(off).implementation = "base"
    assert (export(model)(x) - model(x)).abs().max() < 1e-6
    assert not torch.equal(model(x), on)
