"""State of a layer's seeds: an update happens as a whole or not at all, and views are always current."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_morpho import LifecycleError, LogicalSeed, Stage, StateTensor


def test_seeds_start_dormant_without_bed_and_at_alpha_zero():
    state = StateTensor(3)
    assert len(state) == 3
    assert state.to_dict() == {
        "stage": [0, 0, 0],
        "fading": [False] * 3,
        "bed": [-1] * 3,
        "errors": [0] * 3,
        "generation": [0] * 3,
        "age": [0] * 3,
        "alpha": [0.0] * 3,
    }


def test_state_takes_eighteen_bytes_a_seed():
    assert StateTensor(1000).nbytes == 18_000


def test_layer_without_seeds_is_refused():
    with pytest.raises(ValueError, match="at least 1, got 0"):
        StateTensor(0)


def test_update_sets_one_value_for_all_or_one_a_seed():
    state = StateTensor(4)
    state.update([0, 2], age=7, alpha=[0.25, 0.5])
    state.update(3, stage=Stage.ACTIVE)
    assert state.age.tolist() == [7, 0, 7, 0]
    assert state.alpha.tolist() == [0.25, 0.0, 0.5, 0.0]
    assert state.stage.tolist() == [0, 0, 0, 2]
    assert state.version == 2


@pytest.mark.parametrize(
    ("seeds", "values", "message"),
    [
        ([0, 3], {"age": 1}, r"\[0, 2\], got \[3\]"),
        ([-1], {"age": 1}, r"got \[-1\]"),
        ([0], {"age": 1, "colour": 2}, "colour"),
        ([0, 1], {"age": 1, "alpha": [0.5, 1.01]}, "alpha"),
        ([0], {"age": 1, "alpha": -0.01}, "alpha"),
        ([0], {"age": 1, "alpha": math.nan}, "alpha"),
        ([0, 1], {"age": 1, "generation": [1, 2, 3]}, "broadcast"),
        pytest.param(
            [0],
            {"age": 1, "stage": "active"},
            "active",
        ),
    ],
)
def test_wrong_update_changes_nothing(seeds, values, message):
    state = StateTensor(3)
    before = state.to_dict()
    with pytest.raises(ValueError, match=message):
        state.update(seeds, **values)
    assert state.to_dict() == before
    assert state.version == 0


@pytest.mark.parametrize("values", [{"stage": 300}, {"bed": 40_000}, {"errors": -1}])
def test_value_that_does_not_fit_its_field_is_refused(values):
    with pytest.raises((ValueError, OverflowError)):
        StateTensor(3).update(0, **values)


def test_boolean_mask_selects_seeds_or_is_refused():
    state = StateTensor(3)
    try:
        state.update([False, False, True], age=9)
    except (TypeError, ValueError):
        return
    assert state.age.tolist() == [0, 0, 9]


def test_where_finds_the_seeds_in_any_of_the_stages():
    state = StateTensor(5)
    state.update([1, 4], stage=Stage.ACTIVE)
    state.update(2, stage=Stage.CULLED)
    assert state.where(Stage.ACTIVE).tolist() == [1, 4]
    assert state.where(Stage.CULLED, Stage.ACTIVE).tolist() == [1, 2, 4]
    assert state.where(Stage.FOSSILIZED).tolist() == []
    assert state.where().tolist() == []


def test_view_of_a_seed_follows_the_state():
    state = StateTensor(2)
    seed = LogicalSeed(state, 1, "neurons", {"mean": 0.5})
    assert (seed.stage, seed.alpha, seed.bed, seed.generation, seed.age, seed.errors) == (
        Stage.DORMANT,
        0,
        None,
        0,
        0,
        0,
    )
    state.update(1, stage=Stage.ACTIVE, alpha=0.75, bed=0, generation=3, age=4, errors=2)
    assert (seed.stage, seed.alpha, seed.bed, seed.generation, seed.age, seed.errors) == (
        Stage.ACTIVE,
        0.75,
        0,
        3,
        4,
        2,
    )
    assert seed.stage is Stage.ACTIVE
    assert "chunk=1, generation=3, stage=ACTIVE, alpha=0.75, age=4, blueprint='neurons'" in repr(seed)


def test_view_says_whether_its_seed_recovers_from_errors():
    state = StateTensor(2)
    seed = LogicalSeed(state, 1, "neurons", {})
    for stage in Stage:
        state.update(1, stage=stage)
        assert seed.recovering is (stage is Stage.ERROR_RECOVERY)


def test_view_hands_a_request_to_its_layer_and_without_one_says_so():
    state, asked = StateTensor(2), []
    LogicalSeed(state, 1, "neurons", {}, lambda chunks: asked.append(chunks) or chunks).request_germination()
    assert asked == [[1]]
    with pytest.raises(LifecycleError, match="without a layer"):
        LogicalSeed(state, 1, "neurons", {}).request_germination()


@given(st.integers(1, 6), st.data())
def test_saved_state_is_plain_and_restores_every_field(size, data):
    def several(elements):
        return data.draw(st.lists(elements, min_size=size, max_size=size))

    state, restored = StateTensor(size), StateTensor(size)
    state.update(
        range(size),
        stage=several(st.sampled_from(Stage)),
        fading=several(st.booleans()),
        bed=several(st.integers(-1, 100)),
        errors=several(st.integers(0, 1000)),
        generation=several(st.integers(0, 10**6)),
        age=several(st.integers(0, 10**6)),
        alpha=several(st.floats(0, 1, width=32)),
    )
    restored.load_dict(json.loads(json.dumps(state.to_dict())))
    assert restored.to_dict() == state.to_dict()
    for name in state.to_dict():
        assert getattr(restored, name).dtype == getattr(state, name).dtype


def test_restored_state_is_a_copy():
    state, restored = StateTensor(1), StateTensor(1)
    restored.load_dict(state.to_dict())
    restored.update(0, age=5)
    assert state.age.tolist() == [0]


def test_state_of_another_number_of_seeds_is_refused_and_changes_nothing():
    state = StateTensor(2)
    with pytest.raises(ValueError, match="2 seeds was expected, got 3"):
        state.load_dict(StateTensor(3).to_dict())
    assert len(state) == 2


def test_incomplete_state_changes_nothing():
    state = StateTensor(2)
    saved = StateTensor(2).to_dict() | {"stage": [2, 2]}
    del saved["alpha"]
    with pytest.raises((KeyError, ValueError)):
        state.load_dict(saved)
    assert state.stage.tolist() == [0, 0]
