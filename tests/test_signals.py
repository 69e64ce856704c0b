"""What gates of rising alphas look at: measured for the gates that need it, and carried across a checkpoint."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import nn

from lightning_morpho import GraftingConfig
from lightning_morpho.layers.signals import SignalTracker


@pytest.mark.parametrize("gate", ["drift", "adaptive"])
def test_drift_is_the_weights_relative_change_since_the_last_tick(gate: str) -> None:
    tracker = SignalTracker(GraftingConfig(gate=gate))
    weight = torch.randn(60, 50)
    assert math.isnan(tracker.read([], weight)(0).drift)
    # The sketch keeps norms to about 5 %.
    assert tracker.read([], 1.5 * weight)(0).drift == pytest.approx(0.5, rel=1e-5)
    changed = 1.5 * weight + 0.3 * torch.randn(60, 50)
    assert tracker.read([], changed)(0).drift == pytest.approx(0.2, rel=0.25)
    assert math.isnan(tracker.read([], None)(0).drift)


def test_gradient_norms_are_those_of_the_last_step_alone() -> None:
    """A bed that is gone, and whose place another seed takes, must not lend it its norm."""
    tracker = SignalTracker(GraftingConfig(gate="grad_norm"))
    first, second = nn.Linear(2, 1), nn.Linear(2, 1)
    for bed, scale in ((first, 1.0), (second, 2.0)):
        for parameter in bed.parameters():
            parameter.grad = torch.full_like(parameter, scale)
    tracker.note_gradients({0: first, 1: second})  # type: ignore[dict-item]
    signals = tracker.read([], None)
    assert [signals(bed).grad_norm for bed in (0, 1)] == pytest.approx([3**0.5, 2 * 3**0.5])
    tracker.note_gradients({1: second})  # type: ignore[dict-item]
    assert math.isnan(tracker.read([], None)(0).grad_norm)


def test_a_resumed_run_reads_what_the_run_itself_would_have_read() -> None:
    config, weight = GraftingConfig(gate="drift"), torch.randn(30, 20)
    before, after = SignalTracker(config), SignalTracker(config)
    before.read([], weight)
    after.load_dict(json.loads(json.dumps(before.to_dict())))
    drifts = [tracker.read([], 2 * weight)(0).drift for tracker in (before, after)]
    assert drifts[0] == drifts[1] == pytest.approx(1.0)
