"""Budgets hold whatever a policy asks for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from observations import shipped_policies
from torch import nn, optim
from torch.utils.flop_counter import FlopCounterMode

from hosts import Host, assert_equal, conv_net, linear_net, loaders, make_trainer, quick
from lightning_morpho import (
    AllAtStart,
    BlueprintConfig,
    BudgetConfig,
    GrowthEngine,
    LayersConfig,
    LifecycleConfig,
    LifecycleError,
    MorphoConfig,
    Observation,
    OptimizerLink,
    Periodic,
    Tamiyo,
    WarmupConfig,
    confirm_pairs_,
    hybrid_layers,
    morph_,
)
from lightning_morpho.flops import FlopBudget, counted_positions
from lightning_morpho.tamiyo import Cull, Decision, Germinate, Keep
from lightning_morpho.telemetry import EVENTS_FILE, read_events


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


# ---- floating-point operations
def strided_net() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv1d(2, 4, 3, stride=2),
        nn.ReLU(),
        nn.Conv1d(4, 5, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv1d(5, 3, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(9, 6),
        nn.GELU(),
        nn.Linear(6, 2),
    )


def sequence_net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 4), nn.ReLU(), nn.Linear(4, 3))


NETS = {"strided": (strided_net, (6, 2, 20)), "sequence": (sequence_net, (4, 9, 5))}


def counted(model: nn.Module, x: torch.Tensor) -> float:
    model.eval()  # in training, beds are looked over once a tick
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(x)
    return float(counter.get_total_flops())


@pytest.mark.parametrize("kind", ["auto", "neurons", "mlp", "glu"])
@pytest.mark.parametrize("net", NETS)
def test_operations_are_those_that_torch_counts(net: str, kind: str) -> None:
    make, shape = NETS[net]
    model, x = make(), torch.randn(shape)
    plain = counted(model, x)
    config = MorphoConfig(layers=LayersConfig(num_seeds=1, beds=2), blueprint=BlueprintConfig(kind=kind, hidden=16))
    morph_(model, config)
    confirm_pairs_(model, x)
    layers = hybrid_layers(model)
    budget = FlopBudget(layers)
    with counted_positions(layers) as positions:
        model(x)
    budget.positions = positions
    assert budget.host == plain and budget.grown == 0
    growing = [name for name, layer in layers.items() if layer.morpho.free_bed() is not None]
    for name in [*growing[::2], *growing[1::2]]:  # so that links to older and to younger beds come about
        before, expected = budget.grown, budget.cost(name)
        layers[name].morpho.germinate()
        assert budget.grown - before == expected
    assert budget.grown == counted(model, x) - plain


class Requests(Tamiyo):
    """What hypothesis wants, whether it can be had or not."""

    def __init__(self, script: list[list[tuple[int, int, str]]]) -> None:
        self.script = script

    def grow(self, observation: Observation) -> list[Decision]:
        return []

    def decide(self, observation: Observation) -> list[Decision]:
        decisions: dict[Any, Decision] = {}  # one germination a layer and one verdict a seed
        for place, chunk, verb in self.script[observation.tick - 1]:
            layer = observation.layers[place % len(observation.layers)]
            due = {seed.chunk for seed in layer.seeds if seed.due}
            if verb == "grow" and layer.free_beds and chunk in layer.dormant:
                wish = Germinate(layer=layer.name, chunks=(chunk,), reason="wanted", force=True)
                decisions.setdefault(layer.name, wish)
            elif verb != "grow" and chunk in due:
                verdict = (Keep if verb == "keep" else Cull)(seed=(layer.name, chunk), reason="wanted")
                decisions.setdefault((layer.name, chunk), verdict)
        return [*decisions.values()]


wishes = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 1), st.sampled_from(["grow", "grow", "keep", "cull"])))


@given(script=st.lists(wishes, min_size=12, max_size=12), share=st.floats(0.05, 6), limit=st.integers(90, 900))
@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
def test_no_sequence_of_requests_exceeds_a_budget(script: Any, share: float, limit: int) -> None:
    model = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    x = torch.randn(5, 6)
    plain = counted(model, x)
    config = MorphoConfig(
        layers=LayersConfig(num_seeds=2, beds=3),
        blueprint=BlueprintConfig(kind="neurons"),
        warmup=WarmupConfig(steps=0),
        lifecycle=LifecycleConfig(active_ticks=0, embargo_ticks=0, alpha_step=1.0),
        budget=BudgetConfig(parameters=limit, flops=share),
    )
    morph_(model, config)
    layers = hybrid_layers(model)
    policy, link = Requests(script), OptimizerLink(layers, [optim.SGD(model.parameters(), 0.1)])
    refused: list[str] = []
    engine = GrowthEngine(layers, policy, link, lambda e: refused.append(getattr(e, "reason", "")), flops=share)
    with counted_positions(layers) as positions:
        model(x)
    engine.budget.positions = positions
    for tick in range(1, 13):
        engine.tick(step=10 * tick, total_steps=120, loss=1.0, measure=None)
        assert engine.live_parameters <= limit
        assert engine.budget.grown <= share * engine.budget.host
        assert counted(model, x) - plain <= share * plain
    for name, layer in layers.items():  # nor does a request past the controller
        if engine.budget.problem(name) and layer.morpho.free_bed() is not None and layer.morpho.state.where(0).size:
            with pytest.raises(LifecycleError, match="budget.flops"):
                layer.request_germination()


def flops_run(root: Path, share: float, **options: Any) -> Any:
    torch.manual_seed(0)
    callback = quick(tamiyo=Periodic(start=1, every=1, events=2), budget=BudgetConfig(flops=share))
    make_trainer(root, callback, **options).fit(module := Host(linear_net()), **loaders())
    return module, callback


def test_run_says_once_what_the_budget_of_operations_leaves_out(tmp_path: Path) -> None:
    module, _ = flops_run(tmp_path, 2.0, max_epochs=4)
    entries = list(read_events(tmp_path / EVENTS_FILE))
    born = [e["layer"] for e in entries if e.get("from") == "DORMANT"]
    refused = [(e["layer"], e["reason"]) for e in entries if e["event"] == "refused"]
    assert set(born) == {"net.0"}
    assert [layer for layer, _ in refused] == ["net.2"] and "`budget.flops` allows 2" in refused[0][1]


def test_positions_are_counted_once_and_kept_over_a_resume(tmp_path: Path) -> None:
    whole, callback = flops_run(tmp_path / "whole", 9.0, max_epochs=4)
    state = callback.state_dict()["engine"]["positions"]
    assert state == {"net.0": 32, "net.2": 32}
    flops_run(tmp_path / "first", 9.0, max_epochs=2, enable_checkpointing=True)
    (checkpoint,) = (tmp_path / "first").rglob("*.ckpt")
    torch.manual_seed(0)
    again = quick(tamiyo=Periodic(start=1, every=1, events=2), budget=BudgetConfig(flops=9.0))
    module = Host(linear_net())
    make_trainer(tmp_path / "again", again, max_epochs=4).fit(module, **loaders(), ckpt_path=checkpoint)
    assert again.state_dict()["engine"]["positions"] == state
    assert_equal(
        {k: p.detach() for k, p in module.named_parameters()}, {k: p.detach() for k, p in whole.named_parameters()}
    )


def test_compiled_model_and_convolutions_have_their_operations_counted(tmp_path: Path) -> None:
    callback = quick(budget=BudgetConfig(flops=9.0))
    module = Host(conv_net())
    module.net.compile(backend="eager")
    make_trainer(tmp_path, callback, max_epochs=2).fit(module, **loaders())
    assert callback.state_dict()["engine"]["positions"] == {"net.1": 32 * 4, "net.5": 32}


@pytest.mark.parametrize(
    ("values", "named"),
    [({"flops": 0}, "flops"), ({"flops": float("nan")}, "flops")],
)
def test_bad_budget_is_refused_by_name(values: Any, named: str) -> None:
    with pytest.raises(ValueError, match=f"`budget.{named}`"):
        BudgetConfig(**values)
