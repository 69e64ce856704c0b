"""One thread, one seed per test, and factories for small layers."""

import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from torch import nn

from lightning_morpho import (
    BlueprintConfig,
    GraftingConfig,
    HybridKasminaLayer,
    LayersConfig,
    LifecycleConfig,
    MorphoConfig,
    WarmupConfig,
)

# On two shared cores one thread is several times faster than the default.
torch.set_num_threads(1)

# The same examples in every run: a failure that a colleague sees can be repeated.
# Nothing depends on the time that drawing takes: a busy machine would fail what is right.
settings.register_profile(
    "repeatable",
    deadline=None,
    derandomize=True,
    database=None,
    max_examples=50,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def _same_random_numbers_in_every_order():
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture
def morpho_config() -> Callable[..., MorphoConfig]:
    """A configuration with small beds; keyword arguments not named here are the lifecycle's, whose kind is `table`."""

    def make(
        kind="neurons",
        seeds=2,
        beds=1,
        hidden=3,
        activation="relu",
        warmup=0,
        table="phase1",
        grafting=None,
        **lifecycle,
    ) -> MorphoConfig:
        return MorphoConfig(
            layers=LayersConfig(num_seeds=seeds, beds=beds),
            blueprint=BlueprintConfig(kind=kind, hidden=hidden, activation=activation),
            warmup=WarmupConfig(steps=warmup, min_steps=warmup),
            lifecycle=LifecycleConfig(**{"kind": table, "active_ticks": 0, "embargo_ticks": 0, **lifecycle}),
            grafting=GraftingConfig() if grafting is None else grafting,
        )

    return make


@pytest.fixture
def make_layer(morpho_config) -> Callable[..., HybridKasminaLayer]:
    """A hybrid layer, by default over ``nn.Linear(4, 6)`` in double precision."""

    def make(layer: nn.Module | None = None, **config) -> HybridKasminaLayer:
        return HybridKasminaLayer(nn.Linear(4, 6).double() if layer is None else layer, morpho_config(**config))

    return make


@pytest.fixture
def fill_beds() -> Callable[[HybridKasminaLayer], None]:
    """Give live beds random parameters, as training would: a newborn's output is zero."""

    def fill(layer: HybridKasminaLayer) -> None:
        with torch.no_grad():
            for bed in layer.morpho.beds:
                if not bed.free:
                    for parameter in bed.parameters():
                        parameter.normal_()

    return fill


@pytest.fixture
def grown(make_layer: Callable, fill_beds: Callable) -> Callable[..., HybridKasminaLayer]:
    """A layer with two live beds: a kept one at full strength, and one that fades out, half gone."""

    def make(layer: nn.Module, kind: str = "lowrank", seeds: int = 2, **config: object) -> HybridKasminaLayer:
        made = make_layer(layer, kind=kind, seeds=seeds, beds=2, alpha_step=0.5, **config)
        for number in range(2):
            made.request_germination()
            made.morpho.advance()
            chunks = range(made.num_seeds)
            made.morpho.keep(chunks, reason="test") if number == 0 else made.morpho.cull(chunks[:1], reason="test")
            made.morpho.advance()
        fill_beds(made)
        made.morpho.refresh()
        assert sum(not bed.free for bed in made.morpho.beds) == 2 and made.morpho.state.alpha[0] == 0.5
        return made

    return make


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built once, through the source distribution as a release is: it must hold all that it needs."""
    folder, root = tmp_path_factory.mktemp("dist"), Path(__file__).parent.parent
    _python("-m", "build", "--no-isolation", "--outdir", str(folder), str(root))
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="session")
def installed_wheel(wheel: Path) -> Path:
    """A folder with only the wheel in it; its dependencies are those of this environment."""
    site = wheel.parent / "site"
    _python("-m", "pip", "install", "--no-deps", "--no-index", "--target", str(site), str(wheel))
    return site


def _python(*command: str) -> None:
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
