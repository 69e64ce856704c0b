"""Alpha's curves, gates and presets as pure functions: what the docs say of each, over all values of its signal."""

from __future__ import annotations

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_morpho import GraftingConfig
from lightning_morpho.grafting import CURVES, GATES, Pace, Ramp, Signals, climb, improvement, instability
from lightning_morpho.lifecycle_config import PRESETS

ENDLESS = 1.0
"""An alpha step that never holds a ramp back."""
GOOD = Signals(drift=0.0, instability=0.0, grad_norm=0.0, improvement=0.5)
BAD = Signals(drift=9.0, instability=9.0, grad_norm=1e9, improvement=-0.5)
SIGNALS = st.builds(
    Signals,
    drift=st.floats(0, 10) | st.just(math.nan),
    instability=st.floats(0, 10) | st.just(math.nan),
    grad_norm=st.floats(0, 1e30) | st.sampled_from([math.nan, math.inf]),
    improvement=st.floats(-10, 1) | st.just(math.nan),
)


def ride(config: GraftingConfig, *signals: Signals, step: float = ENDLESS) -> list[float]:
    """Alpha after each tick, from the start of a ramp."""
    ramp, alpha, seen = Ramp(), 0.0, []
    for now in signals:
        ramp, alpha = climb(ramp, alpha, now, config, step)
        seen.append(alpha)
    return seen


# ---------------------------------------------------------------- curves
@pytest.mark.parametrize("name", CURVES)
def test_curves_rise_from_zero_to_one_and_are_symmetric(name: str) -> None:
    points = [CURVES[name](p / 100) for p in range(101)]
    assert (points[0], points[-1]) == (pytest.approx(0, abs=1e-12), pytest.approx(1, abs=1e-12))
    assert all(after > before for before, after in zip(points, points[1:], strict=False))
    assert [1 - p for p in reversed(points)] == pytest.approx(points, abs=1e-12)


def test_curves_differ_in_how_gently_they_start() -> None:
    start = {name: CURVES[name](0.1) for name in CURVES}
    assert start["sigmoid"] < start["cosine"] < start["linear"] == 0.1


# ---------------------------------------------------------------- gates
@pytest.mark.parametrize("gate", GATES)
def test_a_gate_is_open_on_good_signals(gate: str) -> None:
    assert GATES[gate](GOOD, GraftingConfig(gate=gate)) == Pace(1.0)


@pytest.mark.parametrize("gate", [g for g in GATES if g != "none"])
def test_a_gate_is_shut_on_bad_signals_and_on_missing_ones(gate: str) -> None:
    config = GraftingConfig(gate=gate)
    assert GATES[gate](BAD, config).speed < 1e-8
    assert GATES[gate](Signals(), config).speed == 0


@pytest.mark.parametrize(
    ("gate", "signals", "speed"),
    [
        ("drift", Signals(drift=0.2), 1.0),
        ("drift", Signals(drift=0.201), 0.0),
        ("stability", Signals(instability=0.2), 1.0),  # half of the limit
        ("stability", Signals(instability=0.3), 0.5),
        ("stability", Signals(instability=0.4), 0.0),
        ("grad_norm", Signals(grad_norm=2.0), 1.0),
        ("grad_norm", Signals(grad_norm=8.0), 0.25),
        ("performance", Signals(improvement=0.01), 0.0),  # must be exceeded
        ("performance", Signals(improvement=0.011), 1.0),
        ("adaptive", Signals(drift=0.15, improvement=-1.0), 1.0),  # drifts: looks at drift alone
        ("adaptive", Signals(drift=0.25, improvement=1.0), 0.0),
        ("adaptive", Signals(drift=0.1, improvement=-1.0), 0.0),  # calm: looks at the loss alone
        ("adaptive", Signals(drift=0.1, improvement=1.0), 1.0),
    ],
)
def test_gates_keep_their_limits(gate: str, signals: Signals, speed: float) -> None:
    config = GraftingConfig(gate=gate, max_drift=0.2, max_instability=0.4, max_grad_norm=2.0, min_improvement=0.01)
    assert GATES[gate](signals, config).speed == pytest.approx(speed)


def test_only_stability_goes_back_and_only_above_its_limit() -> None:
    assert [g for g in GATES if GATES[g](BAD, GraftingConfig(gate=g)).retreat] == ["stability"]
    config = GraftingConfig(gate="stability")
    assert not GATES["stability"](Signals(instability=config.max_instability), config).retreat


def test_drift_pauses_and_resumes_where_it_stopped() -> None:
    config = GraftingConfig(gate="drift", ticks=4)
    assert ride(config, GOOD, GOOD, BAD, BAD, GOOD, GOOD) == pytest.approx([0.25, 0.5, 0.5, 0.5, 0.75, 1.0])


def test_stability_slows_down_then_returns_to_the_last_stable_alpha_and_stays() -> None:
    config = GraftingConfig(gate="stability", ticks=4, max_instability=0.4)
    slow = Signals(instability=0.3)
    assert ride(config, GOOD, slow, slow, BAD, BAD, GOOD) == pytest.approx([0.25, 0.375, 0.5, 0.25, 0.25, 0.5])


@given(st.lists(SIGNALS, max_size=30), st.sampled_from(sorted(PRESETS)), st.floats(0.01, 1), st.integers(1, 9))
def test_no_signal_moves_alpha_by_more_than_a_step_or_out_of_its_range(
    signals: list[Signals], preset: str, step: float, ticks: int
) -> None:
    config = dataclasses.replace(GraftingConfig.preset(preset), ticks=ticks)
    path = [0.0, *ride(config, *signals, step=step)]
    assert all(0 <= alpha <= 1 for alpha in path)
    assert all(abs(after - before) <= step + 1e-12 for before, after in zip(path, path[1:], strict=False))
    if config.gate != "stability":
        assert all(after >= before for before, after in zip(path, path[1:], strict=False))


# ---------------------------------------------------------------- presets
@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_takes_alpha_to_one_in_its_ticks_if_all_is_well(preset: str) -> None:
    config = GraftingConfig.preset(preset)
    path = ride(config, *[GOOD] * config.ticks)
    assert path[-1] == pytest.approx(1)
    assert config.ramp and all(alpha < 1 for alpha in path[:-1])


def test_presets_part_where_their_strategies_do() -> None:
    ends = {p: ride(GraftingConfig.preset(p), *[GOOD] * 2, *[BAD] * 20)[-1] for p in PRESETS}
    assert ends.pop("fixed_ramp") == 1  # alone looks at nothing
    assert all(0.4 < end < 0.6 for end in ends.values()), ends


def test_an_unknown_preset_is_refused_with_those_there_are() -> None:
    with pytest.raises(ValueError, match="momentum"):
        GraftingConfig.preset("momentun")


# ---------------------------------------------------------------- signals
@given(st.floats(0.1, 100), st.floats(0.001, 0.009), st.integers(3, 10))
def test_a_steady_fall_is_stable_at_any_scale(loss: float, fall: float, ticks: int) -> None:
    assert instability([loss * (1 - fall * t) for t in range(ticks)], ticks) == pytest.approx(0, abs=1e-9)


def test_instability_and_improvement_do_not_depend_on_the_losses_scale() -> None:
    losses = [3.0, 2.0, 2.5, 1.0]
    for scale in (1e-6, 1e6):
        scaled = [scale * loss for loss in losses]
        assert instability(scaled, 4) == pytest.approx(instability(losses, 4))
        assert improvement(scaled) == pytest.approx(improvement(losses)) == pytest.approx(0.6)


@pytest.mark.parametrize("losses", [[], [1.0], [1.0, None], [None, 1.0]])
def test_what_was_not_measured_is_nan(losses: list[float | None]) -> None:
    assert math.isnan(improvement(losses))
    assert math.isnan(instability(losses, 4))
