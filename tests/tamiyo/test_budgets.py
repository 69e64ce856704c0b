"""Budgets hold whatever a policy asks for."""

from __future__ import annotations

import pytest
import torch
from observations import shipped_policies
from torch import nn, optim

from lightning_morpho import (
    AllAtStart,
    BlueprintConfig,
    BudgetConfig,
    GrowthEngine,
    LayersConfig,
    LifecycleConfig,
    MorphoConfig,
    OptimizerLink,
    Tamiyo,
    WarmupConfig,
    hybrid_layers,
    morph_,
)


def grown(policy: Tamiyo, budget: BudgetConfig, beds: int, dtype: torch.dtype = torch.float32) -> GrowthEngine:
    """A net in which a policy had 12 ticks of its own."""
    model = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).to(dtype)
    config = MorphoConfig(
        layers=LayersConfig(num_seeds=1, beds=beds),
        blueprint=BlueprintConfig(kind="neurons"),
        warmup=WarmupConfig(steps=0),
        lifecycle=LifecycleConfig(active_ticks=0, embargo_ticks=0, alpha_step=1.0),
        budget=budget,
    )
    morph_(model, config)
    layers = hybrid_layers(model)
    engine = GrowthEngine(layers, policy, OptimizerLink(layers, [optim.SGD(model.parameters(), 0.1)]))
    for tick in range(1, 13):
        engine.tick(step=10 * tick, total_steps=120, loss=1.0, measure=None)
    return engine


@pytest.mark.parametrize(("parameters", "beds"), [(90, 1), (250, 4), (2000, 3)])
def test_no_policy_adds_more_parameters_than_allowed(parameters: int, beds: int) -> None:
    for name, policy in shipped_policies().items():
        added = grown(policy, BudgetConfig(parameters=parameters), beds).live_parameters
        assert added <= parameters, name
        assert added > 0 or name not in ("uniform", "all_at_start", "eager", "plateau", "bandit", "narrowest"), name


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 4), (torch.float64, 8)])
def test_memory_is_counted_with_gradients_and_optimizer_state(dtype: torch.dtype, size: int) -> None:
    limit = 2 * (4 * 8 * 11) + 100  # bytes of two beds of the smallest layer in float32, and a little
    memory = BudgetConfig(memory=16 * limit / 2**20)
    engine = grown(AllAtStart(), memory, 4, dtype)
    held = sum(p.numel() for layer in engine.layers.values() for p in layer.morpho.parameters())
    assert 0 < 4 * size * held <= 16 * limit
    assert engine.live_parameters <= held
