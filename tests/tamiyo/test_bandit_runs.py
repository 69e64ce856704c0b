"""The bandit in real runs: which blueprint pays is learnt in one run and used by the next."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hosts import Host, loaders, make_trainer, quick
from lightning_morpho import (
    Bandit,
    BlueprintConfig,
    BudgetConfig,
    LayersConfig,
    LifecycleConfig,
    MorphoConfig,
    hybrid_layers,
    morph_,
)
from lightning_morpho.tamiyo import Germinate
from lightning_morpho.tamiyo.replay import read_ticks
from lightning_morpho.telemetry.field_reports import FIELD_REPORTS_FILE, read_field_reports

KINDS = {"net.paths.*.wide": "neurons", "net.paths.*.plain": "block"}


class TwoWays(nn.Module):
    """Two layers side by side on the same input, so that what grows in either can do the same good."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.plain = nn.Linear(8, 3), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.wide(x) + self.plain(x)


class Paths(nn.Module):
    def __init__(self, count: int = 3) -> None:
        super().__init__()
        self.paths = nn.ModuleList(TwoWays() for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([path(x) for path in self.paths]).sum(0)


def fit(root: Path, policy: Bandit, epochs: int) -> list[str]:
    """Kinds of what germinated, in order."""
    torch.manual_seed(0)
    callback = quick(
        seed=2,
        tamiyo=policy,
        layers=LayersConfig(kinds=KINDS, beds=1),
        blueprint=BlueprintConfig(hidden=8),
        budget=BudgetConfig(parameters=100_000),
        lifecycle=LifecycleConfig(active_ticks=3, embargo_ticks=1, alpha_step=1.0),
    )
    make_trainer(root, callback, max_epochs=epochs).fit(Host(Paths(), lr=0.02), **loaders())
    grown = [d.layer for tick in read_ticks(root) for d in tick.decisions if isinstance(d, Germinate)]
    return ["neurons" if layer.endswith("wide") else "block" for layer in grown]


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that tries both blueprints and knows nothing."""
    root = tmp_path_factory.mktemp("earlier")
    assert set(fit(root, Bandit(every=1, events=2), epochs=20)) == {"neurons", "block"}
    return root


def test_a_run_reports_which_of_its_blueprints_paid(earlier: Path) -> None:
    returns: dict[str, list[float]] = {}
    for report in read_field_reports(earlier / FIELD_REPORTS_FILE):
        returns.setdefault(report.kind, []).append((report.gain or 0.0) / report.parameters)
    means = {kind: fmean(values) for kind, values in returns.items()}
    assert means["neurons"] > means["block"], "what reads three outputs knows less than what reads eight inputs"


def test_the_next_run_begins_with_what_paid(earlier: Path, tmp_path: Path) -> None:
    blind, taught = [], []
    for seed in range(4):
        blind += fit(tmp_path / f"blind{seed}", Bandit(seed=seed, every=1), epochs=3)
        taught += fit(tmp_path / f"taught{seed}", Bandit(seed=seed, every=1, prior=str(earlier)), epochs=3)
    assert taught.count("neurons") > blind.count("neurons")
    assert taught.count("neurons") >= 0.75 * len(taught)


# ---- blueprints of single layers
def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3))


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        ({}, {"2": "span", "4": "span"}),
        ({"0": "glu"}, {"0": "glu", "4": "span"}),
        ({"4": "block", "*": "auto"}, {"2": "span", "4": "block"}),
        ({"*": "lowrank", "0": "glu"}, {"0": "lowrank", "2": "lowrank", "4": "lowrank"}),
    ],
)
def test_layers_grow_what_they_are_told_to(kinds: dict[str, str], expected: dict[str, str]) -> None:
    model = net()
    morph_(model, MorphoConfig(layers=LayersConfig(kinds=kinds)))
    found = {name: layer.morpho.kind for name, layer in hybrid_layers(model).items() if len(layer.morpho.beds)}
    assert found == expected


def test_a_kind_for_no_layer_is_refused() -> None:
    with pytest.raises(ValueError, match="`layers.kinds` has the pattern 'decoder.*'.*matches none"):
        morph_(net(), MorphoConfig(layers=LayersConfig(kinds={"decoder.*": "glu"})))


@pytest.mark.parametrize("kinds", [["glu"], {"0": 1}, {1: "glu"}, {"0": ""}])
def test_kinds_that_are_none_are_refused(kinds: Any) -> None:
    with pytest.raises(ValueError, match="`layers.kinds` must be names of blueprints by globs"):
        LayersConfig(kinds=kinds)


def test_a_blueprint_that_nobody_knows_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="glu"):
        quick(layers=LayersConfig(kinds={"net.0": "glue"}))
