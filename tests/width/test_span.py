"""Spans: growing between two layers must be what widening the layer in between is, and fold away exactly."""

from __future__ import annotations

import copy
import inspect
import pickle
import sys
import threading
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

sys.path.insert(0, str(Path(__file__).parent))
from families import SwiGLU  # noqa: E402
from lightning_morpho import (  # noqa: E402
    BlueprintConfig,
    BudgetConfig,
    LayersConfig,
    LifecycleConfig,
    LifecycleError,
    MorphoConfig,
    OptimizerLink,
    PairProbe,
    WarmupConfig,
    confirm_pairs_,
    export,
    hybrid_layers,
    morph_,
)
from lightning_morpho.confirmation import decide_pairs_, unconfirmed  # noqa: E402
from lightning_morpho.layers import clear_taps  # noqa: E402

CONFIG = MorphoConfig(
    blueprint=BlueprintConfig(hidden=5),
    layers=LayersConfig(beds=2, num_seeds=2),
    warmup=WarmupConfig(steps=0),
    lifecycle=LifecycleConfig(active_ticks=0, embargo_ticks=0, alpha_step=0.5),
)
R = nn.ReLU
FORMS = {
    "linear": (lambda: nn.Sequential(nn.Linear(6, 4), R(), nn.Linear(4, 3)), (8, 6)),
    "gelu and dropout": (
        lambda: nn.Sequential(nn.Linear(6, 4), nn.GELU(), nn.Dropout(0.0), nn.Linear(4, 3)),
        (8, 6),
    ),
    "conv with norm": (
        lambda: nn.Sequential(nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4), R(True), nn.Conv2d(4, 3, 3)),
        (4, 2, 8, 8),
    ),
    "conv, pool, flatten": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3, padding="same", padding_mode="circular", bias=False),
            nn.BatchNorm2d(4),
            R(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(64, 3),
        ),
        (4, 2, 8, 8),
    ),
    "swiglu": (lambda: SwiGLU(bias=True), (8, 6)),
    "chain": (
        lambda: nn.Sequential(
            nn.Conv1d(1, 4, 5, stride=2, padding=1),
            nn.BatchNorm1d(4),
            R(),
            nn.Conv1d(4, 4, 3, padding=1, bias=False),
            nn.BatchNorm1d(4),
            R(),
            nn.MaxPool1d(2),
            nn.Flatten(),
            nn.Linear(16, 6),
            nn.Tanh(),
            nn.Linear(6, 3),
        ),
        (8, 1, 18),
    ),
}


def grown(form: str, dtype: torch.dtype = torch.float64, rounds: int = 1, config: MorphoConfig = CONFIG):
    """A model whose pairs have all germinated, and a batch for it."""
    torch.manual_seed(0)
    build, shape = FORMS[form]
    model, x = build().to(dtype), torch.randn(*shape, dtype=dtype)
    morph_(model, config)
    assert confirm_pairs_(model, x) == {}
    for _ in range(rounds):
        germinate(model)
    return model, x


def germinate(model: nn.Module) -> None:
    for layer in hybrid_layers(model).values():
        if layer.morpho.free_beds:
            layer.request_germination([c for c in range(layer.num_seeds) if layer.seed(c).stage.name == "DORMANT"])


def settle(model: nn.Module, x: torch.Tensor, steps: int, optimizer=torch.optim.Adam, **options) -> None:
    """Train by a plain loop."""
    optimizer = optimizer(model.parameters(), **({"lr": 1e-2} | options))
    if hybrid_layers(model):
        link = OptimizerLink(hybrid_layers(model), [optimizer])
    target = torch.randn(model(x).shape, dtype=x.dtype, generator=torch.Generator().manual_seed(1))
    for _ in range(steps):
        optimizer.zero_grad()
        (model(x) - target).square().mean().backward()
        optimizer.step()
    if hybrid_layers(model):
        link.close()


@pytest.mark.parametrize("form", FORMS)
def test_birth_changes_no_bit_and_gradients_live_by_the_second_step(form):
    model, x = grown(form, rounds=0)
    model.eval()
    before = model(x)
    germinate(model)
    assert torch.equal(before, model(x))
    model.train()
    settle(model, x, 2, torch.optim.SGD)
    model.zero_grad()
    model(x).square().sum().backward()
    for layer in hybrid_layers(model).values():
        for part in layer.morpho.grown():
            for name, parameter in part.named_parameters():
                assert part.free == (not parameter.requires_grad)
                # A bias before a batch norm has no effect, in a plain net either.
                assert part.free or parameter.grad.abs().sum() > 0 or name.startswith("b_in")


@pytest.mark.parametrize("form", FORMS)
def test_training_equals_that_of_the_plain_wide_net_over_fifty_adam_steps(form):
    model, x = grown(form)
    model.train()
    wide = export(model, prune=False)
    for norm in (m for m in wide.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)):
        norm.reset_running_stats()
    for norm in (m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)):
        norm.reset_running_stats()
    settle(model, x, 50)
    settle(wide, x, 50)
    assert (model(x) - wide(x)).abs().max() < 1e-9
    folded = export(model, prune=False).state_dict()
    for name, value in wide.state_dict().items():
        if "running" not in name and "tracked" not in name:
            # Adam divides by the size of the gradient: 1e-16 of rounding grows to this in 50 steps.
            assert (value - folded[name]).abs().max() < 1e-9, name


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
@pytest.mark.parametrize("rounds", [1, 2])
@pytest.mark.parametrize("form", FORMS)
def test_folding_is_exact_and_needs_no_code_of_ours(form, rounds, dtype, tolerance):
    config = MorphoConfig(
        blueprint=CONFIG.blueprint,
        layers=LayersConfig(beds=2, num_seeds=1),
        warmup=CONFIG.warmup,
        lifecycle=LifecycleConfig(active_ticks=0, embargo_ticks=0, train_fossils=True),
    )
    model, x = grown(form, dtype, config=config)
    settle(model, x, 5)
    if rounds == 2:
        for layer in hybrid_layers(model).values():
            layer.morpho.advance()
            if not layer.morpho.dormant:
                layer.morpho.keep([0], reason="test")
                layer.morpho.advance()
        germinate(model)
        settle(model, x, 5)
    model.eval()
    plain = export(model)
    assert (plain(x) - model(x)).abs().max() <= tolerance * model(x).abs().max().clamp(min=1)
    assert all(type(m).__module__.startswith(("torch.", "families")) for m in plain.modules())
    assert torch.equal(pickle.loads(pickle.dumps(plain))(x), plain(x))


@pytest.mark.parametrize("kind", ["neurons", "mlp", "block"])
def test_other_kinds_are_exported_as_plain_modules_beside_their_layer(kind):
    torch.manual_seed(0)
    build, shape = FORMS["chain"]
    model, x = build().double(), torch.randn(*shape).double()
    blueprint = BlueprintConfig(kind=kind, hidden=3, activation="gelu")
    morph_(model, MorphoConfig(blueprint=blueprint, layers=LayersConfig(num_seeds=3), warmup=WarmupConfig(steps=0)))
    germinate(model)
    settle(model, x, 5)
    hybrid_layers(model)["3"].cancel_germination(1)
    hybrid_layers(model)["3"].morpho.advance()
    model.eval()
    plain = export(model)
    assert (plain(x) - model(x)).abs().max() < 1e-12
    assert not any(type(m).__module__.startswith("lightning_morpho") for m in plain.modules())
    assert torch.equal(pickle.loads(pickle.dumps(plain))(x), plain(x))


def test_culled_span_fades_out_with_its_links_and_leaves_the_host():
    model, x = grown("chain")
    settle(model, x, 5)
    model.eval()
    host = copy.deepcopy(model)
    for layer in hybrid_layers(model).values():
        if not layer.morpho.dormant:
            layer.morpho.cull(range(2), reason="test")
    outputs = [model(x)]
    for _ in range(2):
        for layer in hybrid_layers(model).values():
            layer.morpho.advance()
        outputs.append(model(x))
        assert (export(model)(x) - model(x)).abs().max() < 1e-12, "at every alpha on the way"
    assert all(layer.morpho.dormant for layer in hybrid_layers(model).values())
    assert all(link.free for layer in hybrid_layers(model).values() for link in layer.morpho.links.all_links())
    for layer in hybrid_layers(host).values():
        layer.implementation = "base"
    assert torch.equal(outputs[-1], host(x))
    assert not torch.equal(outputs[0], outputs[1])


def test_span_that_germinates_before_an_older_one_changes_nothing():
    model, x = grown("chain", rounds=0)
    layers = hybrid_layers(model)
    layers["10"].request_germination()
    settle(model, x, 3)
    model.eval()
    before = model(x)
    layers["8"].request_germination()
    layers["3"].request_germination()
    assert torch.equal(before, model(x))
    model.train()
    settle(model, x, 3)
    assert all(link.weight.abs().sum() > 0 for link in layers["10"].morpho.links.all_links() if not link.free)


def test_frozen_norm_of_the_host_freezes_those_of_its_spans():
    model, x = grown("conv with norm")
    settle(model, x, 2)
    model.train()
    model[1].eval()
    before = [b.clone() for b in hybrid_layers(model)["3"].morpho.buffers()]
    model(x)
    assert all(map(torch.equal, before, hybrid_layers(model)["3"].morpho.buffers()))


def test_running_statistics_of_a_newborn_are_those_of_its_batches_after_one_step():
    model, x = grown("conv with norm")
    model.train()
    bed = hybrid_layers(model)["3"].morpho.beds[0]
    made = model[0].morpho.blueprint.site.project(x, bed.w_in0)
    mean, variance = made.mean((0, 2, 3)), made.var((0, 2, 3))
    optimizer = torch.optim.SGD(model.parameters(), 1e-12)  # a step at rate 0 counts as none
    link = OptimizerLink(hybrid_layers(model), [optimizer])
    model(x).sum().backward()
    optimizer.step()
    link.close()
    assert torch.allclose(bed.norms[0].running_mean, mean) and torch.allclose(bed.norms[0].running_var, variance)


def test_copies_and_pickles_act_alike_and_share_nothing():
    model, x = grown("chain")
    settle(model, x, 3)
    model.eval()
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(copied(x), model(x))
        before = model(x)
        settle(copied, x, 1)
        assert torch.equal(before, model(x))


def test_state_dict_restores_live_and_linked_spans_bit_for_bit():
    model, x = grown("chain")
    settle(model, x, 3)
    other, _ = grown("chain", rounds=0)
    other.load_state_dict(model.state_dict())
    model.eval(), other.eval()
    assert torch.equal(other(x), model(x))
    assert torch.equal(export(other)(x), export(model)(x))


def test_checkpoint_without_growth_loads_strictly():
    build, _ = FORMS["chain"]
    plain = build().double()
    model, x = grown("chain", rounds=0)
    model.load_state_dict(plain.state_dict())
    plain.eval(), model.eval()
    assert torch.equal(plain(x), model(x))


# ------------------------------------------------------------------------------------------------- refusals
def test_unconfirmed_pair_cannot_germinate_and_says_what_to_do():
    model = nn.Sequential(nn.Linear(6, 4), R(), nn.Linear(4, 3))
    morph_(model, CONFIG)
    with pytest.raises(LifecycleError, match="must be confirmed"):
        model[2].request_germination()
    with pytest.raises(LifecycleError, match="becomes wider when `2` grows"):
        model[0].request_germination()


class Regions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.mode = nn.Linear(6, 4), nn.Linear(4, 3), "plain"

    def forward(self, x):
        if self.mode == "together":
            return checkpoint(lambda t: self.b(torch.relu(self.a(t))), x, use_reentrant=False)
        if self.mode == "apart":
            h = checkpoint(lambda t: torch.relu(self.a(t)), x, use_reentrant=False)
            return checkpoint(self.b, h, use_reentrant=False)
        if self.mode == "A A B B":
            first, second = torch.relu(self.a(x)), torch.relu(self.a(x + 1))
            return self.b(first) + self.b(second)
        if self.mode == "B first":
            return self.b(self.a(x)[:, :4] * 0 + 1)
        if self.mode == "in place":
            h = torch.relu(self.a(x))
            with torch.no_grad():
                x.add_(1)
            return self.b(h)
        if self.mode == "only B":
            return self.b(x[:, :4])
        return self.b(torch.relu(self.a(x)))


def regions(confirm: str = "plain") -> tuple[Regions, dict[str, str]]:
    model = Regions()
    morph_(model, CONFIG)
    model.mode = confirm
    with PairProbe(model) as probe:
        model(torch.randn(5, 6)).sum().backward()
    return model, decide_pairs_(model, probe.verdicts())


@pytest.mark.parametrize(("mode", "reason"), [("apart", "checkpoint region"), ("A A B B", "calls come as a, a, b, b")])
def test_orders_that_would_give_wrong_numbers_are_refused_by_the_probe(mode, reason):
    model, refused = regions(mode)
    assert reason in refused["b"] and not unconfirmed(model)
    with pytest.raises(LifecycleError, match=reason):
        model.b.request_germination()
    assert model.b.morpho.free_beds == 0


def test_checkpoint_region_around_both_layers_gives_the_same_gradients():
    model, refused = regions("together")
    assert refused == {}
    model.b.request_germination()
    settle(model, torch.randn(5, 6), 2)
    gradients = []
    for model.mode in ("plain", "together"):
        model.zero_grad()
        x = torch.ones(5, 6, requires_grad=True)
        model(x).square().sum().backward()
        gradients.append([x.grad] + [p.grad for p in model.parameters() if p.grad is not None])
    assert all(map(torch.equal, *gradients))


@pytest.mark.parametrize(
    ("mode", "message"),
    [("apart", "checkpoint region"), ("in place", "changed in place"), ("only B", "without `a` before it")],
)
def test_later_misuse_raises_instead_of_giving_a_wrong_number(mode, message):
    model, _ = regions()
    model.b.request_germination()
    model.mode = mode
    with pytest.raises(RuntimeError, match=message):
        model(torch.randn(5, 6)).sum().backward()


def test_threads_are_told_apart():
    model, _ = regions()
    model.b.request_germination()
    h = torch.relu(model.a(torch.randn(5, 6)))
    caught = []

    def call() -> None:
        try:
            model.b(h)
        except RuntimeError as error:
            caught.append(str(error))

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    assert "different threads" in caught[0]


def test_taps_hold_nothing_after_a_pass_and_can_be_cleared():
    model, _ = regions()
    model.b.request_germination()
    model(torch.randn(5, 6))
    assert model.a.morpho.outlet.empty
    model.a(torch.randn(5, 6))
    clear_taps(hybrid_layers(model).values())
    assert model.a.morpho.outlet.empty


@pytest.mark.slow
def test_compiled_model_needs_one_graph_before_and_one_after_germination():
    import torch._dynamo.testing

    torch._dynamo.reset()
    model, x = grown("chain", torch.float32, rounds=0)
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    compiled(x)
    assert counter.frame_count == 1
    for name in ("3", "8", "10"):
        hybrid_layers(model)[name].request_germination()
    for alpha in (1.0, 0.5, 0.25):
        for layer in hybrid_layers(model).values():
            layer.morpho.state.update(range(layer.num_seeds), alpha=alpha)
            layer.morpho.refresh()
        assert torch.allclose(compiled(x), model(x), atol=1e-6)
    assert counter.frame_count == 2


# ------------------------------------------------------------------------------------- every kind of newborn
def newborn(kind: str, warmup: int = 0) -> tuple[nn.Module, torch.Tensor]:
    config = MorphoConfig(
        blueprint=BlueprintConfig(kind=kind, hidden=3),
        layers=LayersConfig(num_seeds=2),
        warmup=WarmupConfig(steps=warmup, min_steps=warmup),
    )
    model, x = grown("chain", rounds=0, config=config)
    settle(model, x, 2)
    germinate(model)
    return model, x


@pytest.mark.parametrize("kind", ["span", "neurons", "mlp", "block"])
def test_newborn_of_every_kind_changes_no_bit(kind):
    model, x = newborn(kind)
    model.eval()
    live = model(x)
    for layer in hybrid_layers(model).values():
        layer.implementation = "base"
    assert torch.equal(live, model(x))


OPTIMIZERS = {
    "sgd": (torch.optim.SGD, {"momentum": 0.9}),
    "adam": (torch.optim.Adam, {}),
    "adamw": (torch.optim.AdamW, {"weight_decay": 0.1}),
    "rmsprop": (torch.optim.RMSprop, {}),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("kind", ["span", "neurons", "mlp", "block"])
def test_newborn_of_every_kind_moves_by_its_share_and_incumbents_in_full(kind, optimizer):
    made, options = OPTIMIZERS[optimizer]
    states = []
    for warmup in (0, 10):
        model, x = newborn(kind, warmup)
        before = {name: value.clone() for name, value in model.named_parameters()}
        settle(model, x, 1, made, **options)
        states.append({name: value.detach() - before[name] for name, value in model.named_parameters()})
    for name, full in states[0].items():
        expected = full / 10 if ".morpho." in name else full
        assert torch.allclose(states[1][name], expected, atol=1e-12), name


@pytest.mark.parametrize("budget", [150, 400, 1000])
def test_budget_counts_links_and_norms(budget):
    build, _ = FORMS["chain"]
    model = build()
    report = morph_(
        model,
        MorphoConfig(blueprint=CONFIG.blueprint, layers=LayersConfig(beds=3), budget=BudgetConfig(parameters=budget)),
    )
    held = sum(p.numel() for layer in hybrid_layers(model).values() for p in layer.morpho.parameters())
    assert held == report.allocated <= budget


def test_seed_that_is_muted_for_credit_is_out_of_every_way_to_the_output():
    model, x = grown("chain")
    settle(model, x, 5)
    model.eval()
    layers = hybrid_layers(model)
    full = model(x)
    layers["3"].morpho.mute(range(2))
    muted = model(x)
    layers["3"].morpho.mute(())
    assert torch.equal(full, model(x))
    bed = layers["3"].morpho.beds[0]
    with torch.no_grad():
        bed.w_out.zero_()
        for _, link in layers["8"].morpho.links.live(0):
            link.weight.zero_()
    assert torch.allclose(model(x), muted, atol=1e-12)


def test_norm_without_bias_folds_too():
    if "bias" not in inspect.signature(nn.BatchNorm1d.__init__).parameters:
        pytest.skip("this torch has no such norm")
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4, bias=False), R(), nn.Linear(4, 3)), torch.randn(8, 6)
    morph_(model, CONFIG)
    confirm_pairs_(model, x)
    germinate(model)
    settle(model, x, 5)
    model.eval()
    assert torch.allclose(export(model)(x), model(x), atol=1e-6)
