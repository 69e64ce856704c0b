"""Optimizers and beds: newborns move gently, start fresh, and incumbents notice nothing."""

import copy

import pytest
import torch
import torch.distributed as dist
from torch import nn, optim
from torch.nn import functional as F

from lightning_morpho import (
    BlueprintConfig,
    LayersConfig,
    LifecycleConfig,
    MorphoConfig,
    OptimizerLink,
    WarmupConfig,
    hybrid_layers,
    morph_,
)

OPTIMIZERS = {
    "sgd": lambda ps: optim.SGD(ps, lr=0.1, momentum=0.9, nesterov=True),
    "adam": lambda ps: optim.Adam(ps, lr=0.01),
    "adamw, foreach": lambda ps: optim.AdamW(ps, lr=0.01, weight_decay=0.1, foreach=True),
    "rmsprop": lambda ps: optim.RMSprop(ps, lr=0.01, momentum=0.5),
}


def grown(*, warmup=0, beds=1, germinate=True) -> nn.Sequential:
    """Two hybrid layers in double precision, the first with a live bed."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)).double()
    morph_(
        model,
        MorphoConfig(
            layers=LayersConfig(num_seeds=1, beds=beds),
            blueprint=BlueprintConfig(kind="neurons", hidden=3, activation="tanh"),
            warmup=WarmupConfig(steps=warmup, min_steps=warmup),
            lifecycle=LifecycleConfig(active_ticks=0, embargo_ticks=0, alpha_step=1.0),
        ),
    )
    if germinate:
        model[0].request_germination()
    return model


DATA = torch.Generator().manual_seed(5)
X, Y = (torch.randn(8, n, generator=DATA, dtype=torch.float64) for n in (4, 2))


def train(model, optimizer, steps=1):
    for _ in range(steps):
        optimizer.zero_grad()
        F.mse_loss(model(X), Y).backward()
        optimizer.step()


def link(model, *optimizers) -> OptimizerLink:
    return OptimizerLink(hybrid_layers(model), optimizers)


# ---------------------------------------------------------------- warm-up
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_newborn_moves_by_a_rising_share_of_what_the_optimizer_asks_for(name):
    length = 5
    model = grown(warmup=length)
    twin = copy.deepcopy(model)
    optimizer, plain = OPTIMIZERS[name](model.parameters()), OPTIMIZERS[name](twin.parameters())
    link(model, optimizer)
    newborns = [p for p in twin[0].morpho.parameters()]
    for step in range(1, length + 4):
        train(model, optimizer)
        old = [p.detach().clone() for p in newborns]
        train(twin, plain)
        share = min(1.0, step / length)
        with torch.no_grad():
            for p, before in zip(newborns, old, strict=True):
                p.copy_(before + share * (p - before))
        for (key, p), reference in zip(model.named_parameters(), twin.parameters(), strict=True):
            # The interpolation is rounded once more on one side: a few units in the last place a step.
            torch.testing.assert_close(p, reference, rtol=1e-12, atol=1e-13, msg=f"{key} after step {step}")
    assert (model[0].morpho.beds[0].w_out != 0).all()


def test_first_step_of_a_newborn_is_one_part_in_its_warmup():
    model = grown(warmup=50)
    bed = model[0].morpho.beds[0]
    optimizer = optim.SGD(model.parameters(), lr=1.0)
    link(model, optimizer)
    train(model, optimizer)
    torch.testing.assert_close(bed.w_out.detach(), -bed.w_out.grad / 50, rtol=1e-12, atol=0)


def test_incumbents_are_not_slowed_by_a_newborn():
    model = grown(warmup=50)
    twin = copy.deepcopy(model)
    optimizer, plain = (optim.Adam(m.parameters(), lr=0.01) for m in (model, twin))
    link(model, optimizer)
    train(model, optimizer)
    train(twin, plain)
    for mine, theirs in ((model[0].weight, twin[0].weight), (model[2].bias, twin[2].bias)):
        assert torch.equal(mine, theirs)


def test_optimizer_that_takes_a_closure_is_warmed_up_too():
    model = grown(warmup=4)
    bed = model[0].morpho.beds[0]
    optimizer = optim.SGD(model.parameters(), lr=1.0)
    link(model, optimizer)

    def closure():
        optimizer.zero_grad()
        loss = F.mse_loss(model(X), Y)
        loss.backward()
        return loss

    assert optimizer.step(closure) > 0
    torch.testing.assert_close(bed.w_out.detach(), -bed.w_out.grad / 4, rtol=1e-12, atol=0)


# ---------------------------------------------------------------- state
@pytest.mark.parametrize("name", ["sgd", "adam", "adamw, foreach", "rmsprop"])
def test_bed_that_is_taken_again_starts_fresh_and_incumbents_keep_their_moments(name):
    model = grown(beds=2)
    optimizer = OPTIMIZERS[name](model.parameters())
    connection = link(model, optimizer)
    layer = model[0]
    train(model, optimizer, 3)
    first, second = layer.morpho.beds
    assert all(p in optimizer.state for p in first.parameters())
    layer.cancel_germination(0)
    layer.morpho.advance()  # alpha 0: culled, the bed is free
    layer.morpho.advance()  # the embargo is over
    moments = {
        key: {k: torch.as_tensor(v).clone() for k, v in optimizer.state[p].items() if v is not None}
        for key, p in model.named_parameters()
        if "morpho" not in key
    }
    layer.request_germination()
    assert not first.free and second.free
    connection.drop_stale_state()
    assert not any(p in optimizer.state for p in first.parameters())
    for key, p in model.named_parameters():
        for k, value in moments.get(key, {}).items():
            assert torch.equal(torch.as_tensor(optimizer.state[p][k]), value)
    assert len(moments) == 4 and all(moments.values())

    fresh = copy.deepcopy(model)
    only_new = OPTIMIZERS[name](list(fresh[0].morpho.beds[0].parameters()))
    train(model, optimizer)
    train(fresh, only_new)
    for mine, theirs in zip(first.parameters(), fresh[0].morpho.beds[0].parameters(), strict=True):
        assert torch.equal(mine, theirs), "the first step must be that of a new optimizer"


def test_stale_state_is_dropped_before_the_next_step_even_without_a_tick():
    model = grown()
    optimizer = optim.Adam(model.parameters())
    link(model, optimizer)
    layer = model[0]
    train(model, optimizer, 4)
    layer.cancel_germination(0)
    layer.morpho.advance()
    layer.morpho.advance()
    layer.request_germination()
    train(model, optimizer)
    assert [float(optimizer.state[p]["step"]) for p in layer.morpho.beds[0].parameters()] == [1.0] * 3
    assert float(optimizer.state[layer.weight]["step"]) == 5.0


def test_free_beds_are_never_touched_by_weight_decay_or_steps():
    model = grown(germinate=False)
    optimizer = optim.AdamW(model.parameters(), weight_decay=0.5)
    link(model, optimizer)
    train(model, optimizer, 3)
    beds = list(model[0].morpho.parameters())
    assert not any(p.any() for p in beds)
    assert not any(p in optimizer.state for p in beds)


# ---------------------------------------------------------------- membership
@pytest.fixture
def one_rank():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_free_beds_of_a_model_that_was_unfrozen_get_no_gradient_from_other_ranks(one_rank):
    """`model.requires_grad_(True)` in the middle of training: zeros would give empty beds optimizer states."""
    model = grown(beds=2)
    model.requires_grad_(True)
    optimizer = optim.Adam(model.parameters())
    linked = link(model, optimizer)
    F.mse_loss(model(X), Y).backward()
    linked.settle_gradients(optimizer)
    gradients = [[p.grad is not None for p in bed.parameters()] for bed in model[0].morpho.beds]
    assert all(gradients[0]) and not any(gradients[1])


def test_missing_beds_join_the_group_of_their_layers_weight():
    model = grown(germinate=False)
    groups = [
        {"params": [model[2].weight, model[2].bias], "lr": 0.5},
        {"params": [model[0].weight, model[0].bias], "lr": 0.25},
    ]
    optimizer = optim.SGD(groups)
    added = link(model, optimizer).added
    assert len(added) == 2
    assert "`0`: 3 parameters" in added[0] and "`2`: 3 parameters" in added[1]
    homes = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert {homes[id(p)] for p in model[0].parameters()} == {0.25}
    assert {homes[id(p)] for p in model[2].parameters()} == {0.5}
    model[0].request_germination()
    bed = model[0].morpho.beds[0]
    train(model, optimizer)
    # lr 0.25 and no warm-up: a plain SGD step, exactly representable factor.
    torch.testing.assert_close(bed.w_out.detach(), -0.25 * bed.w_out.grad, rtol=1e-15, atol=0)


def test_beds_that_are_in_the_optimizer_are_not_added_again():
    model = grown()
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    before = [len(group["params"]) for group in optimizer.param_groups]
    assert link(model, optimizer).added == []
    assert [len(group["params"]) for group in optimizer.param_groups] == before


def test_each_layers_beds_join_the_optimizer_of_its_weight():
    model = grown(germinate=False)
    first = optim.SGD([model[0].weight], lr=0.1)
    second = optim.SGD([model[2].weight], lr=0.1)
    link(model, first, second)
    assert len(first.param_groups[0]["params"]) == len(second.param_groups[0]["params"]) == 4
    assert first.param_groups[0]["params"][1] is model[0].morpho.beds[0].w_in


def test_beds_of_a_frozen_weight_join_the_only_optimizer():
    model = grown(germinate=False)
    optimizer = optim.SGD([model[2].weight], lr=0.1)
    link(model, optimizer)
    held = {id(p) for p in optimizer.param_groups[0]["params"]}
    assert all(id(p) in held for p in model[0].morpho.parameters())


def test_beds_without_a_home_among_two_optimizers_are_refused_and_nothing_changes():
    model = grown(germinate=False)
    optimizers = optim.SGD([model[2].weight], lr=0.1), optim.SGD([model[2].bias], lr=0.1)
    with pytest.raises(ValueError, match=r"weights of \['0'\].*none of the 2 optimizers.*`layers.exclude`"):
        link(model, *optimizers)
    assert [len(o.param_groups[0]["params"]) for o in optimizers] == [1, 1]
    assert not any(o._optimizer_step_pre_hooks or o._optimizer_step_post_hooks for o in optimizers)


def test_beds_stand_beside_muon_which_takes_matrices_alone():
    """In its group they were, until the first germination ended the run: "gradient must be a 2D matrix"."""
    model = grown(germinate=False)
    matrices = optim.Muon([model[0].weight, model[2].weight], lr=0.01)
    with pytest.raises(ValueError, match="Muon.*second optimizer from `configure_optimizers`"):
        link(model, matrices)
    others = optim.AdamW([model[0].bias, model[2].bias], lr=0.01)
    link(model, matrices, others)
    model[0].request_germination()
    before = model[0].morpho.beds[0].w_out.clone()
    for _ in range(2):
        train(model, others)
        matrices.step()
    assert len(matrices.param_groups[0]["params"]) == 2
    assert not torch.equal(before, model[0].morpho.beds[0].w_out)


def test_group_of_named_parameters_stays_consistent():
    model = grown(germinate=False)
    optimizer = optim.SGD([(n, p) for n, p in model.named_parameters() if p.requires_grad], lr=0.1)
    link(model, optimizer)
    (group,) = optimizer.param_groups
    assert len(group["param_names"]) == len(group["params"])


# ---------------------------------------------------------------- counters
def test_steps_are_counted_by_layer_and_since_germination_by_bed():
    model = grown(beds=2)
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    link(model, optimizer)
    train(model, optimizer, 3)
    assert [layer.morpho.steps for layer in hybrid_layers(model).values()] == [3, 3]
    assert [bed.steps for bed in model[0].morpho.beds] == [3, 0]
    model[2].request_germination()
    train(model, optimizer, 2)
    assert model[0].morpho.steps == 5
    assert [bed.steps for bed in model[0].morpho.beds] == [5, 0]
    assert [bed.steps for bed in model[2].morpho.beds] == [2, 0]


def test_warmup_length_follows_from_the_steps_counted_before_the_germination():
    model = grown(germinate=False)
    morpho = model[0].morpho
    object.__setattr__(morpho.config, "warmup", WarmupConfig(steps=300, share=0.5, min_steps=2))
    optimizer = optim.SGD(model.parameters(), lr=0.01)
    link(model, optimizer)
    train(model, optimizer, 10)
    model[0].request_germination()
    assert morpho.beds[0].warmup == 5


def test_optimizer_counts_the_layers_it_trains_alone():
    model = grown(germinate=False)
    first = optim.SGD(model[0].parameters(), lr=0.1)
    second = optim.SGD(model[2].parameters(), lr=0.1)
    link(model, first, second)
    train(model, first, 2)
    train(model, second)
    assert [layer.morpho.steps for layer in hybrid_layers(model).values()] == [2, 1]


def test_steps_of_a_bed_that_two_optimizers_share_are_counted_once():
    """Counted by both, the warm-up of a newborn was over in half the time."""
    model = grown(warmup=4)
    layer = model[0].morpho
    first = optim.SGD([p for p in model.parameters() if p.ndim == 2], lr=0.1)
    second = optim.SGD([p for p in model.parameters() if p.ndim != 2], lr=0.1)
    shared = link(model, first, second)
    assert shared.added == []
    for _ in range(2):
        train(model, first)
        second.step()
    assert (layer.beds[0].steps, layer.steps, layer.beds[0].share) == (2, 2, 0.75)


def test_closed_link_leaves_the_optimizer_alone():
    model = grown(warmup=50)
    optimizer = optim.SGD(model.parameters(), lr=1.0)
    connection = link(model, optimizer)
    train(model, optimizer)
    bed = model[0].morpho.beds[0]
    connection.close()
    before = bed.w_out.detach().clone()
    train(model, optimizer)
    torch.testing.assert_close(bed.w_out.detach(), before - bed.w_out.grad, rtol=1e-12, atol=1e-15)
    assert (bed.steps, model[0].morpho.steps) == (1, 1)


def test_step_that_moves_nothing_does_not_count():
    """Saving a sharded checkpoint makes one; a run that is saved more often must not warm up faster."""
    model = grown(warmup=10)
    optimizer = optim.SGD(model.parameters(), lr=0.0)
    link(model, optimizer)
    train(model, optimizer, 2)
    assert (model[0].morpho.beds[0].steps, model[0].morpho.steps) == (0, 0)
    optimizer.param_groups[0]["lr"] = 0.1
    train(model, optimizer)
    assert (model[0].morpho.beds[0].steps, model[0].morpho.steps) == (1, 1)


def test_a_rate_that_warms_up_from_zero_speaks_against_no_newborn():
    """A rate of zero has no peak to be compared with: growth at the start was to be refused, or to divide by zero."""
    model = grown(germinate=False)
    assert link(model, optim.SGD(model.parameters(), lr=0.0)).rate_share("0") == 1.0


def test_a_gradient_that_is_not_finite_reaches_no_weight_in_a_plain_loop():
    """Where no callback settles gradients, one step with a NaN would end the seed and all that it feeds."""
    model = grown()
    optimizer = optim.Adam(model.parameters(), lr=0.01)
    linked = link(model, optimizer)
    F.mse_loss(model(X), Y).backward()
    bed = model[0].morpho.beds[0]
    for parameter in bed.parameters():
        parameter.grad.fill_(torch.nan)
    optimizer.step()
    linked.close()
    assert all(bool(p.isfinite().all()) for p in model.parameters())
