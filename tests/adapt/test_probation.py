"""The probation as a pure rule: what it moves, and that it never spends more than it frees."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_morpho import Observation, Probation, Stage
from lightning_morpho.tamiyo import Cull, Germinate, Keep, LayerView, Measure, Measurement, SeedView


def layer(name: str, *seeds: SeedView, cost: int = 10, free: int = 1, **options: Any) -> LayerView:
    defaults: dict[str, Any] = {
        "features": 4,
        "germinations": len(seeds),
        "dormant": () if seeds else (0,),
    }
    return LayerView(name=name, bed_parameters=cost, free_beds=free, seeds=seeds, **(defaults | options))


def seed(due: bool = True, generation: int = 0, stage: Stage = Stage.ACTIVE, **options: Any) -> SeedView:
    defaults: dict[str, Any] = {"chunk": 0, "age": 3, "alpha": 1.0, "bed": 0, "fading": False}
    return SeedView(generation=generation, stage=stage, due=due, **(defaults | options))


def observation(layers: list[LayerView], rises: dict[str, float] | None = None, **options: Any) -> Observation:
    measured = [
        Measurement(seeds=((name, 0),), rise=rise, lower=math.nan, batches=4) for name, rise in (rises or {}).items()
    ]
    defaults: dict[str, Any] = {"tick": 3, "step": 20, "total_steps": 100, "losses": (1.0,)}
    return Observation(layers=tuple(layers), measurements=tuple(measured), **(defaults | options))


def decide(layers: list[LayerView], rises: dict[str, float] | None = None, **options: Any) -> list[tuple[str, str]]:
    short = []
    for decision in Probation().decide(observation(layers, rises, **options)):
        name = decision.layer if isinstance(decision, Germinate) else None
        if isinstance(decision, (Keep, Cull)):
            name = decision.seed[0]
        short.append((type(decision).__name__, name))
    return short


def test_every_layer_gets_a_seed_before_the_first_step():
    asked = Probation().begin(observation([layer("a"), layer("b"), layer("full", free=0)], step=0, losses=()))
    assert [g.layer for g in asked] == ["a", "b"]


def test_worse_half_is_culled_and_the_best_get_a_bed_each():
    rises = {"a": 0.1, "b": 0.4, "c": -0.2, "d": 0.3}
    assert decide([layer(name, seed()) for name in rises], rises) == [
        ("Keep", "b"),
        ("Keep", "d"),
        ("Cull", "a"),
        ("Cull", "c"),
        ("Germinate", "b"),
        ("Germinate", "d"),
    ]


def test_of_an_odd_number_the_middle_one_is_kept_and_a_single_one_too():
    rises = {"a": 0.1, "b": 0.4, "c": 0.2}
    decided = decide([layer(name, seed()) for name in rises], rises)
    assert [d for d in decided if d[0] == "Cull"] == [("Cull", "a")]
    assert [d for d in decided if d[0] == "Germinate"] == [("Germinate", "b")], "only what one seed frees"
    assert decide([layer("a", seed())], {"a": -1.0}) == [("Keep", "a")]


@pytest.mark.parametrize(
    ("options", "seeds"),
    [({"step": 9}, [seed()]), ({}, [seed(due=False, stage=Stage.LOADING)]), ({"can_measure": False}, [seed()])],
    ids=["too early", "still warming up", "no held-out loss yet"],
)
def test_probation_waits(options, seeds):
    assert decide([layer("a", *seeds), layer("b", seed())], **options) == []


def test_it_asks_first():
    (asked,) = Probation().decide(observation([layer("a", seed()), layer("b", seed())]))
    assert asked == Measure(seeds=(("a", 0), ("b", 0)))


def test_what_can_not_be_measured_is_kept_after_half_of_the_training():
    decided = Probation().decide(observation([layer("a", seed())], step=50, can_measure=False))
    assert [(type(d), d.reason) for d in decided] == [(Keep, "unjudged: no held-out loss")]


def test_what_did_not_fit_into_the_measurement_is_kept_and_gets_nothing():
    decided = decide([layer(n, seed()) for n in "abc"], {"a": 0.1, "b": 0.2})
    assert decided == [("Keep", "b"), ("Keep", "c"), ("Cull", "a"), ("Germinate", "b")]


def test_moved_seeds_are_kept_without_another_probation():
    later = [layer("a", seed(generation=1)), layer("b", seed(stage=Stage.CULLED, due=False, bed=None))]
    assert decide(later) == [("Keep", "a")]
    assert decide([layer("a", seed(stage=Stage.FOSSILIZED, due=False))]) == []


def test_layer_that_was_off_joins_late_and_is_not_moved_alone():
    assert decide([layer("a", late=True)]) == [("Germinate", "a")]


def test_without_moving_all_are_kept():
    policy = Probation(share=0.0)
    decided = policy.decide(observation([layer("a", seed()), layer("b", seed())]))
    assert [type(d) for d in decided] == [Keep, Keep]


@given(
    st.lists(st.tuples(st.floats(-1, 1), st.integers(1, 50), st.integers(0, 1)), min_size=1, max_size=12),
    st.floats(0.01, 0.99),
)
def test_never_more_is_granted_than_freed_and_only_to_the_kept(rows, share):
    layers = [layer(str(i), seed(), cost=cost, free=free) for i, (_, cost, free) in enumerate(rows)]
    rises = {str(i): rise for i, (rise, _, _) in enumerate(rows)}
    decided = Probation(share=share).decide(observation(layers, rises))
    cost = {view.name: view.bed_parameters for view in layers}
    kept = {d.seed[0] for d in decided if isinstance(d, Keep)}
    culled = {d.seed[0] for d in decided if isinstance(d, Cull)}
    granted = [d.layer for d in decided if isinstance(d, Germinate)]
    assert kept | culled == set(cost) and not kept & culled and kept
    assert len(culled) == math.floor(share * len(rows))
    assert set(granted) <= kept and len(granted) == len(set(granted))
    assert sum(cost[name] for name in granted) <= sum(cost[name] for name in culled)
    assert not culled or max(rises[name] for name in culled) <= min(rises[name] for name in kept)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"at": 1.5}, r"`tamiyo.at` must be a fraction of training in \[0, 1\], got 1.5"),
        ({"share": 1}, "`tamiyo.share`"),
    ],
)
def test_wrong_values_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Probation(**options)
