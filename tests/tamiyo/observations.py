"""Random observations, and every shipped policy."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from hypothesis import strategies as st
from omegaconf import OmegaConf

from lightning_morpho import Observation, Stage, Tamiyo
from lightning_morpho.tamiyo import LayerView, Measurement, Outcome, SeedView, Tried

GROUP = Path(__file__).parents[2] / "configs" / "morpho" / "tamiyo"


def shipped_policies() -> dict[str, Tamiyo]:
    """Every policy of the config group, with the settings it ships with."""
    return {file.stem: instantiate(OmegaConf.load(file)) for file in sorted(GROUP.glob("*.yaml"))}


any_float = st.one_of(st.floats(-10, 10, width=32), st.just(math.nan), st.just(math.inf))
some_loss = st.one_of(st.none(), st.floats(0.01, 10))
STATISTICS = ("mean", "variance", "silent", "correlation", "host_gradient", "effective_rank")


@st.composite
def layer_views(draw: st.DrawFn, position: int) -> LayerView:
    chunks = draw(st.integers(1, 4))
    live = draw(st.lists(st.integers(0, chunks - 1), unique=True))
    seeds = [
        SeedView(
            chunk=chunk,
            generation=draw(st.integers(0, 3)),
            stage=draw(st.sampled_from([Stage.LOADING, Stage.ACTIVE, Stage.FOSSILIZED, Stage.CULLED])),
            age=draw(st.integers(0, 20)),
            alpha=draw(st.floats(0, 1)),
            bed=draw(st.one_of(st.none(), st.integers(0, 3))),
            fading=False,
            due=draw(st.booleans()),
        )
        for chunk in sorted(live)
    ]
    names = draw(st.lists(st.sampled_from(STATISTICS), unique=True))
    return LayerView(
        name=f"net.{position}",
        position=position,
        kind=draw(st.sampled_from(["span", "neurons"])),
        features=8 * chunks,
        width=draw(st.integers(1, 64)),
        bed_parameters=draw(st.integers(1, 1000)),
        free_beds=draw(st.integers(0, 2)),
        germinations=draw(st.integers(0, 3)),
        dormant=tuple(c for c in range(chunks) if c not in live),
        seeds=tuple(seeds),
        statistics={name: tuple(draw(any_float) for _ in range(chunks)) for name in sorted(names)},
    )


@st.composite
def trial_of(draw: st.DrawFn, layer: LayerView) -> Tried:
    losses = tuple(draw(st.lists(any_float, max_size=3)))
    return Tried(place=(layer.name,), losses=losses, steps=draw(st.integers(1, 9)), seconds=draw(st.floats(0, 9)))


@st.composite
def observations(draw: st.DrawFn) -> Observation:
    layers = tuple(draw(layer_views(position)) for position in range(draw(st.integers(1, 4))))
    tick = draw(st.integers(1, 12))
    total = draw(st.one_of(st.none(), st.integers(1, 1000)))
    due = [(layer.name, seed.chunk) for layer in layers for seed in layer.seeds if seed.due]
    germinations = sum(layer.germinations for layer in layers)
    values: dict[str, Any] = {}
    if due and draw(st.booleans()):
        values["measurements"] = tuple(
            Measurement(seeds=(key,), rise=draw(any_float), lower=draw(any_float), batches=draw(st.integers(0, 9)))
            for key in due
        )
    if draw(st.booleans()):
        values["no_trial"] = None
        values["trials"] = draw(st.one_of(st.none(), st.just(tuple(draw(trial_of(layer)) for layer in layers))))
    return Observation(
        tick=tick,
        step=draw(st.integers(0, 1000)),
        total_steps=total,
        losses=tuple(draw(st.lists(some_loss, min_size=tick, max_size=tick))),
        training_losses=tuple(draw(st.lists(some_loss, min_size=tick, max_size=tick))),
        layers=layers,
        last_round=draw(st.integers(1, tick)) if germinations else None,
        stop_patience=draw(st.one_of(st.none(), st.integers(1, 5))),
        outcomes=tuple(
            Outcome.of(layer.kind, layer.name, [(draw(st.floats(-1, 1)), 10)])
            for layer in layers
            if draw(st.booleans())
        ),
        can_measure=draw(st.booleans()),
        **values,
    )
