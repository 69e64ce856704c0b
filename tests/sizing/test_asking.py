"""When the policy that finds the size grows, and when it asks again: decisions on observations made by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from lightning_morpho import AutoSize, Observation
from lightning_morpho.tamiyo import Assess, Assessment, Germinate, LayerView, Penalize

LAYER = LayerView(
    name="net.2",
    position=0,
    kind="span",
    features=8,
    width=4,
    bed_parameters=100,
    free_beds=1,
    germinations=0,
    dormant=(0,),
    seeds=(),
    statistics={},
)


def at(step: int, found: Sequence[Assessment] | None, total: int | None = 1000, **values: Any) -> Observation:
    """A tick of a run that has not grown yet."""
    ticks = max(1, step // 50)
    losses = values.pop("losses", (1.0,) * ticks)
    entries = None if found is None else tuple(found)
    return Observation(
        tick=len(losses),
        step=step,
        total_steps=total,
        losses=losses,
        layers=(LAYER,),
        assessments=entries,
        can_size=True,
        **values,
    )


def said(step: int, share: float, own: float, residual: float = 1.0, error: float = 1e-6) -> Assessment:
    return Assessment(layer="net.2", share=share, own=own, error=error, residual=residual, step=step)


def kinds(observation: Observation, policy: AutoSize | None = None) -> list[str]:
    return [type(decision).__name__ for decision in (policy or AutoSize()).decide(observation)]


GROWS = [Germinate.__name__, Penalize.__name__]
ASKS = [Assess.__name__]


def test_the_host_is_asked_from_the_earliest_moment_on():
    assert kinds(at(19, None)) == []
    assert kinds(at(20, None)) == ASKS


@pytest.mark.parametrize("scale", [1.0, 1e-3])
def test_it_grows_at_once_where_much_of_what_can_be_explained_needs_new_units(scale):
    """However little that is: in language modelling nearly all of the residual is noise."""
    assert kinds(at(20, [said(20, 0.1 * scale, 0.3 * scale)])) == GROWS


def test_what_may_be_chance_is_not_enough():
    assert kinds(at(20, [said(20, 0.1, 0.0, error=0.06)])) == []


def test_a_host_that_learns_fast_is_asked_again_at_the_next_tick():
    """Its promise falls by more than half while training goes on as long again: it needs no help."""
    first = said(50, 0.02, 0.8, residual=1.0)
    assert kinds(at(50, [first])) == []
    assert kinds(at(100, [first])) == ASKS
    assert kinds(at(100, [first, said(100, 0.02, 0.7, residual=0.5)])) == []


def test_a_host_whose_learning_slows_down_is_helped():
    first = said(50, 0.02, 0.8, residual=1.0)
    assert kinds(at(100, [first, said(100, 0.02, 0.7, residual=0.8)])) == GROWS
    near = [said(80, 0.02, 0.8), said(100, 0.02, 0.8)]  # too near to say how fast it learns
    assert kinds(at(100, near)) == []


def test_a_slow_host_is_helped_even_if_this_answer_is_unsure():
    """In language modelling the answers are close to their errors: one of several would be missed."""
    unsure, slow = said(120, 0.001, 0.7, error=0.001), said(50, -0.01, 0.8)
    assert kinds(at(120, [slow, said(60, 0.02, 0.7), unsure])) == GROWS
    assert kinds(at(120, [said(50, 0.02, 0.8), said(60, -0.01, 0.7), unsure])) == []  # that was long ago


def test_the_last_answer_is_final():
    never = [said(step, -0.01, 0.5) for step in (50, 100, 150)]
    assert kinds(at(200, never)) == ASKS
    assert kinds(at(250, [*never, said(200, -0.01, 0.5)])) == []


def test_rare_ticks_still_ask_once():
    """The first tick may come long after the last moment to ask."""
    assert kinds(at(400, None)) == ASKS
    assert kinds(at(400, [said(400, 0.1, 0.1)])) == GROWS


@pytest.mark.parametrize("found", [None, ()])
def test_where_nothing_can_be_asked_or_need_be_it_grows(found):
    policy = AutoSize() if found == () else AutoSize(explains=0.0)
    assert kinds(at(100, found), policy) == GROWS


def test_one_pair_that_is_too_narrow_is_enough():
    found = [said(100, -0.01, 0.5), Assessment(layer="net.4", share=0.1, own=0.1, error=0.01, step=100)]
    assert kinds(at(100, found)) == GROWS


def test_without_a_known_end_the_host_is_asked_until_its_loss_has_stalled():
    falling = (1.0, 0.8, 0.6, 0.5, 0.4)
    assert kinds(at(250, None, None, losses=falling)) == ASKS
    assert kinds(at(400, None, None, losses=(*falling, 0.4, 0.4, 0.4))) == ASKS
    assert kinds(at(450, None, None, losses=(*falling, 0.4, 0.4, 0.4, 0.1))) == []


@pytest.mark.parametrize(("step", "pays"), [(100, False), (200, True)])
def test_a_host_that_may_shrink_pays_the_penalty_from_the_last_answer_on(step, pays):
    """Until then it is not known yet whether it is to grow."""
    found = [said(step, -0.01, 0.5)]
    assert kinds(at(step, found), AutoSize(sizing="both")) == [Penalize.__name__] * pays
