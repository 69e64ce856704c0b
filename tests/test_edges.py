"""Random lives of seeds in both lifecycles: never off the table, no bed leaked, no parameter lost, alpha in bounds."""

import random

import pytest
import torch
from torch import nn

from lightning_morpho import (
    BlueprintConfig,
    GraftingConfig,
    HybridKasminaLayer,
    LayersConfig,
    LifecycleConfig,
    LifecycleError,
    MorphoConfig,
    OptimizerLink,
    WarmupConfig,
)
from lightning_morpho.lifecycle import LIFECYCLES, Stage

SEEDS, STEP = 3, 0.4
ACTIONS = [*["tick"] * 5, *["germinate"] * 2, "cancel", "cull", "keep", "keep", "error", "rollback", "step", "reload"]


def life(seed):
    """One random sequence of requests and ticks; every invariant holds after each of them."""
    draw = random.Random(seed)
    kind = draw.choice(sorted(LIFECYCLES))
    table = LIFECYCLES[kind]
    config = MorphoConfig(
        layers=LayersConfig(num_seeds=SEEDS, beds=2),
        blueprint=BlueprintConfig(kind="neurons", hidden=2),
        warmup=WarmupConfig(steps=0),
        grafting=GraftingConfig(ticks=draw.randint(1, 4), curve=draw.choice(["linear", "cosine", "sigmoid"])),
        lifecycle=LifecycleConfig(
            kind=kind, active_ticks=draw.randint(0, 2), embargo_ticks=draw.randint(0, 2), alpha_step=STEP,
            fine_tuning_ticks=draw.randint(1, 4), recovery_ticks=1, max_errors=draw.randint(1, 2),
            timeout_ticks=draw.randint(4, 8),
            incubation=draw.choice(["none", "boosting"]) if kind == "full" else "none",
        ),
    )  # fmt: skip
    layer = HybridKasminaLayer(nn.Linear(2, 6), config)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    link = OptimizerLink({"layer": layer}, [optimizer])
    seeds, seen = layer.morpho, []
    seeds.on_transition = seen.append

    def request(action):
        try:
            action()
        except LifecycleError:
            return

    for _ in range(40):
        chunk = draw.randrange(SEEDS)
        before = [(seeds.stages.stage(c), layer.seed(c).alpha, layer.seed(c).generation) for c in range(SEEDS)]
        what = draw.choice(ACTIONS)
        if what == "tick":
            layer.advance([1.0, 0.5])
        elif what == "step":
            optimizer.zero_grad()
            layer(torch.randn(4, 2)).square().mean().backward()
            optimizer.step()
        elif what == "reload":
            layer.load_state_dict(layer.state_dict())
        else:
            request(
                {
                    "germinate": lambda c=chunk: layer.request_germination(c),
                    "cancel": lambda c=chunk: layer.cancel_germination(c),
                    "cull": lambda c=chunk: seeds.cull([c], reason="test"),
                    "keep": lambda c=chunk: seeds.keep([c], reason="test"),
                    "error": lambda c=chunk: seeds.record_errors([c], reason="test"),
                    "rollback": seeds.roll_back,
                }[what]
            )
        for c, (stage, alpha, generation) in enumerate(before):
            now = layer.seed(c)
            assert 0 <= now.alpha <= 1
            born = stage is Stage.DORMANT and what == "germinate"
            if now.generation == generation and not born and what not in ("error", "rollback"):
                assert abs(now.alpha - alpha) <= (STEP + 1e-6 if what == "tick" else 0), what
        check_beds(layer, optimizer, table)
    for t in seen:
        assert t.target in table.successors(t.source)
    link.close()
    return {(kind, t.source.name, t.target.name) for t in seen}


def check_beds(layer, optimizer, table):
    """Tenants and beds agree; every parameter is in exactly one group; what is free is zero and still."""
    state = layer.morpho.state
    for c in range(SEEDS):
        here = layer.seed(c)
        assert (here.bed is not None) == (here.stage in table.live or here.stage is Stage.FOSSILIZED)
        assert here.bed is not None or here.alpha == 0
    for index, bed in enumerate(layer.morpho.beds):
        tenants = {c for c in range(SEEDS) if state.bed[c] == index} | set(bed.kept.nonzero()[0].tolist())
        assert set(bed.occupied.nonzero()[0].tolist()) == tenants
        if bed.free:
            assert not any(p.any() or p.requires_grad for p in bed.parameters())
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert len(held) == len(set(held)) and set(held) == {id(p) for p in layer.parameters()}


def edges(lives):
    return set().union(*(life(seed) for seed in lives))


def test_random_lives_never_leave_the_table():
    edges(range(60))


@pytest.mark.exhaustive
def test_a_thousand_random_lives_pass_every_edge_of_both_tables_and_no_other():
    wanted = {
        (kind, source.name, target.name)
        for kind, table in LIFECYCLES.items()
        for source in table.stages
        for target in table.successors(source)
    }
    assert edges(range(1000)) == wanted
