"""Both transition tables against the edges written out by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_morpho import LifecycleError, Stage
from lightning_morpho.lifecycle import LIFECYCLES

EDGES = {
    "phase1": {
        "DORMANT": "LOADING",
        "LOADING": "ACTIVE CULLED ERROR_RECOVERY",
        "ACTIVE": "FOSSILIZED CULLED ERROR_RECOVERY",
        "CULLED": "DORMANT",
        "ERROR_RECOVERY": "DORMANT",
        "FOSSILIZED": "",
    },
    "full": {
        "DORMANT": "GERMINATED",
        "GERMINATED": "TRAINING CANCELLED",
        "TRAINING": "GRAFTING CANCELLED CULLED ROLLED_BACK ERROR_RECOVERY",
        "GRAFTING": "STABILIZATION CULLED ROLLED_BACK ERROR_RECOVERY",
        "STABILIZATION": "EVALUATING CULLED ROLLED_BACK ERROR_RECOVERY",
        "EVALUATING": "FINE_TUNING CULLED ROLLED_BACK ERROR_RECOVERY",
        "FINE_TUNING": "FOSSILIZED CULLED ROLLED_BACK ERROR_RECOVERY",
        "FOSSILIZED": "",
        "CULLED": "DORMANT",
        "CANCELLED": "DORMANT",
        "ROLLED_BACK": "DORMANT",
        "ERROR_RECOVERY": "DORMANT",
    },
}
STAGES = [(name, stage) for name in EDGES for stage in Stage]


def test_there_are_exactly_the_two_lifecycles():
    assert set(LIFECYCLES) == set(EDGES)
    for name, table in LIFECYCLES.items():
        assert table.name == name
        assert {stage.name for stage in table.stages} == set(EDGES[name])


@pytest.mark.parametrize(("name", "stage"), STAGES)
def test_successors_are_those_of_the_design(name, stage):
    assert {s.name for s in LIFECYCLES[name].successors(stage)} == set(EDGES[name].get(stage.name, "").split())


@pytest.mark.parametrize(
    ("name", "live"),
    [("phase1", "LOADING ACTIVE"), ("full", "GERMINATED TRAINING GRAFTING STABILIZATION EVALUATING FINE_TUNING")],
)
def test_live_stages_lie_between_dormancy_and_fossil(name, live):
    assert {s.name for s in LIFECYCLES[name].live} == set(live.split())


@given(st.sampled_from(sorted(EDGES)), st.lists(st.sampled_from(Stage), max_size=60))
def test_random_walk_stays_in_the_table_and_wrong_steps_name_the_allowed_ones(name, targets):
    table, here = LIFECYCLES[name], Stage.DORMANT
    for target in targets:
        allowed = EDGES[name][here.name].split()
        if target.name in allowed:
            table.check(here, target)
            here = target
            continue
        with pytest.raises(LifecycleError) as refusal:
            table.check(here, target)
        message = str(refusal.value)
        assert f"in {here.name} can't become {target.name} in lifecycle `{name}`" in message
        listed = message.split(f"allowed from {here.name}: ")[1].rstrip(".")
        assert listed == (", ".join(sorted(allowed)) or "none, it is terminal")


@pytest.mark.parametrize("name", sorted(EDGES))
def test_every_stage_is_reached_from_dormancy_and_only_fossils_never_leave(name):
    table = LIFECYCLES[name]
    reached, frontier = {Stage.DORMANT}, {Stage.DORMANT}
    while frontier:
        frontier = {t for s in frontier for t in table.successors(s)} - reached
        reached |= frontier
    assert reached == table.stages
    assert {s for s in table.stages if not table.successors(s)} == {Stage.FOSSILIZED}


def test_stage_numbers_in_checkpoints_never_change():
    names = (
        "DORMANT LOADING ACTIVE FOSSILIZED CULLED ERROR_RECOVERY GERMINATED TRAINING GRAFTING STABILIZATION "
        "EVALUATING FINE_TUNING CANCELLED ROLLED_BACK"
    )
    assert {stage.name: stage.value for stage in Stage} == {name: i for i, name in enumerate(names.split())}
