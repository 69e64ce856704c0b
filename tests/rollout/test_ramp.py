"""Ramps: a percentage that rises although the run is sick, or never rises, would make them worthless."""

from __future__ import annotations

import json
import math

import pytest

from lightning_morpho import GuardConfig, RampConfig
from lightning_morpho.rollout import Guard, Ramp, RunHealth

FINE, SICK = RunHealth(val_loss=1.0), RunHealth(val_loss=9.0)
SCHEDULE = {0: 1, 2: 25, 4: 100}


def ramp(**options) -> Ramp:
    made = Ramp(RampConfig(schedule=SCHEDULE, **options))
    made.start(0)
    return made


def percentages(ramp: Ramp, healths) -> list[float]:
    seen = []
    for progress, health in enumerate(healths, start=1):
        ramp.tick(progress, health)
        seen.append(ramp.percentage)
    return seen


def test_percentage_follows_the_schedule_while_the_guard_holds():
    assert percentages(ramp(), [FINE] * 5) == [1, 25, 25, 100, 100]


def test_before_the_first_stage_nobody_is_on():
    late = Ramp(RampConfig(schedule={2: 50}, monitor_ticks=0))
    assert late.start(0) is None and late.percentage == 0
    assert percentages(late, [FINE] * 3) == [0, 50, 50]


def test_monitored_period_holds_a_stage_back_however_late_it_is():
    assert percentages(ramp(monitor_ticks=3), [FINE] * 7) == [1, 1, 25, 25, 25, 100, 100]


def test_failing_guard_turns_everything_off_at_that_tick_and_for_good():
    made = ramp()
    assert percentages(made, [FINE, FINE, SICK, FINE, FINE, FINE]) == [1, 25, 0, 0, 0, 0]
    assert "val_loss 9 is above 1.05" in made.halted


def test_previous_goes_one_stage_back_and_stays_there():
    health = [FINE, FINE, FINE, FINE, SICK, FINE, FINE]
    assert percentages(ramp(on_failure="previous"), health) == [1, 25, 25, 100, 25, 25, 25]


def test_previous_goes_back_again_while_the_guard_fails():
    assert percentages(ramp(on_failure="previous"), [FINE, FINE, SICK, SICK, SICK]) == [1, 25, 1, 0, 0]


def test_hold_waits_until_the_guard_holds_again():
    made = ramp(on_failure="hold")
    assert percentages(made, [FINE, SICK, SICK, FINE, FINE]) == [1, 1, 1, 25, 100]


def test_hold_is_told_once():
    made = ramp(on_failure="hold")
    made.tick(1, FINE)
    assert [made.tick(i, SICK) is None for i in (2, 3)] == [False, True]


def test_resumed_ramp_goes_on_where_it_was():
    whole, first = ramp(monitor_ticks=2), ramp(monitor_ticks=2)
    expected = percentages(whole, [FINE] * 6)
    head = percentages(first, [FINE] * 3)
    second = Ramp(RampConfig(schedule=SCHEDULE, monitor_ticks=2))
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert second.start(0) is None, "a resumed ramp must not begin again"
    for progress in (4, 5, 6):
        second.tick(progress, FINE)
        head.append(second.percentage)
    assert head == expected


# ------------------------------------------------------------------------------------------ guard
@pytest.mark.parametrize(
    ("config", "healths", "holds"),
    [
        ({}, [RunHealth(val_loss=1.0), RunHealth(val_loss=1.05)], True),
        ({}, [RunHealth(val_loss=1.0), RunHealth(val_loss=1.06)], False),
        ({}, [RunHealth(val_loss=-1.0), RunHealth(val_loss=-0.96)], True),
        ({}, [RunHealth(val_loss=-1.0), RunHealth(val_loss=-0.94)], False),
        ({}, [RunHealth(val_loss=math.nan)], False),
        ({"val_loss": None}, [RunHealth(val_loss=math.inf)], False),
        ({}, [RunHealth()], True),
        ({"baseline": {"val_loss": 0.5}}, [RunHealth(val_loss=0.6)], False),
        ({"baseline": {"val_loss": 2.0}}, [RunHealth(val_loss=1.0), RunHealth(val_loss=2.0)], True),
        ({"step_time": 0.5}, [RunHealth(step_time=1.0), RunHealth(step_time=1.6)], False),
        ({"step_time": None}, [RunHealth(step_time=1.0), RunHealth(step_time=9.0)], True),
        ({}, [RunHealth(errors=1)], False),
        ({"errors": None}, [RunHealth(errors=7)], True),
    ],
)
def test_guard_compares_with_the_baseline(config, healths, holds):
    guard = Guard(GuardConfig(**config))
    assert [guard.check(health) for health in healths][-1].holds is holds
