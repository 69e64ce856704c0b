"""The pair finder: a wrong pair would let a net grow where nothing can be folded; a missed one stays narrow."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
from families import FAMILIES  # noqa: E402
from lightning_morpho import MorphoConfig, PairProbe, find_pairs, morph_, register_channelwise  # noqa: E402
from lightning_morpho.confirmation import decide_pairs_  # noqa: E402


def _names(report) -> set[str]:
    return {"+".join(pair.producers) + ">" + name for name, pair in report.pairs.items()}


@pytest.mark.parametrize("name", FAMILIES)
def test_running_a_batch_finds_every_true_pair_and_no_other(name):
    family = FAMILIES[name]
    report = find_pairs(family.build(), family.example(), forward=family.forward)
    assert _names(report) == set(family.pairs), str(report)


@pytest.mark.parametrize("name", FAMILIES)
def test_code_alone_proposes_the_true_pairs_but_those_listed_as_missed(name):
    family = FAMILIES[name]
    missed = set(family.missed or {})
    proposed = _names(find_pairs(family.build()))
    assert {pair for pair in family.pairs if pair.split(">")[1] not in missed} <= proposed


@pytest.mark.parametrize("name", FAMILIES)
def test_a_wrong_proposal_is_refused_by_the_first_step_and_never_grows(name):
    family = FAMILIES[name]
    model, batch = family.build(), family.example()
    try:
        morph_(model, MorphoConfig())
    except ValueError:
        pytest.skip("no eligible layer")
    with PairProbe(model) as probe:
        if family.forward is not None:
            family.forward(model, batch)
        elif isinstance(batch, dict):
            model(**batch)
        else:
            model(batch)
    decide_pairs_(model, probe.verdicts())
    live = {
        "+".join(tap.producer.name for tap in seeds.inlets) + ">" + seeds.name
        for seeds in (m.morpho for m in model.modules() if hasattr(m, "morpho"))
        if seeds.inlets and seeds.confirmed
    }
    assert live <= set(family.pairs)


REASONS = {
    "skip": ("b", "a branch"),
    "concat": ("c", "joins the outputs"),
    "two heads": ("left", "used 2 times"),
    "layer norm": ("3", "not known to treat channels by themselves"),
    "layer called twice": ("b", "several times|own producer|comes from|read different|not every call"),
    "tied weights": ("dec", "tied to"),
    "depthwise": ("2", "grouped"),
    "user's hook": ("2", "hook"),
    "pruned weight": ("2", "parametrized"),
    "view that regroups": ("b", "regroups"),
    "values steer control flow": ("b", "a branch"),
}


@pytest.mark.parametrize("name", REASONS)
def test_a_refusal_says_why(name):
    consumer, reason = REASONS[name]
    family = FAMILIES[name]
    refused = find_pairs(family.build(), family.example()).refused
    assert re.search(reason, refused[consumer]), refused


def test_finding_pairs_leaves_no_trace_in_the_model():
    model = FAMILIES["vgg"].build()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(3)
    find_pairs(model)
    find_pairs(model, torch.ones(2, 1, 8, 8))
    after = torch.rand(2)
    torch.manual_seed(3)
    assert torch.equal(after, torch.rand(2))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_probe_of_a_training_step_changes_no_bit_of_it():
    def step(watch: bool) -> tuple[torch.Tensor, ...]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(True), nn.Dropout(0.5), nn.Linear(8, 2))
        x = torch.randn(8, 6)
        if watch:
            with PairProbe(model) as probe:
                model(x).square().sum().backward()
            assert "4" in {name for name, pair in probe.verdicts().items() if not isinstance(pair, str)}
        else:
            model(x).square().sum().backward()
        return *(p.grad for p in model.parameters()), *model.buffers(), torch.rand(1)

    assert all(map(torch.equal, step(True), step(False)))


def test_probe_keeps_no_activation_alive():
    import gc
    import weakref

    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
    kept: list[weakref.ref] = []
    handle = model[1].register_forward_hook(lambda module, args, out: kept.append(weakref.ref(out)))
    with PairProbe(model) as probe, torch.no_grad():
        model(torch.randn(4, 6))
        gc.collect()
        assert kept[0]() is None
    handle.remove()
    assert probe.verdicts()


def test_operations_of_the_user_count_once_they_are_registered():
    @register_channelwise
    def squared(x):
        return torch.relu(x) * x.abs()

    @register_channelwise
    class Shifted(nn.Module):
        def forward(self, x):
            return x + x.sign()

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.shift, self.b = nn.Linear(3, 4), Shifted(), nn.Linear(4, 2)

        def forward(self, x):
            return self.b(self.shift(squared(self.a(x))))

    for report in (find_pairs(Net()), find_pairs(Net(), torch.randn(5, 3))):
        assert _names(report) == {"a>b"}


def test_registered_operation_that_mixes_channels_is_caught_by_the_numbers():
    @register_channelwise
    def centred(x):
        return x - x.mean(-1, keepdim=True)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x):
            return self.b(centred(self.a(x)))

    assert "mixes the channels" in find_pairs(Net(), torch.randn(5, 3)).refused["b"]


def test_explicit_pair_reaches_what_the_finder_misses():
    model = FAMILIES["module without forward"].build()
    assert _names(find_pairs(model)) == set()
    assert _names(find_pairs(model, explicit=[("a", "relu", "b")])) == {"a>b"}
    with pytest.raises(ValueError, match="softmix.*neither a module"):
        find_pairs(model, explicit=[("a", "softmix", "b")])


@pytest.mark.parametrize(("scale", "found"), [("constant", True), ("batch", False)])
def test_number_that_depends_on_the_batch_is_never_replayed(scale, found):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x):
            return self.b(torch.relu(self.a(x)) * (0.5 if scale == "constant" else 1 / len(x)))

    for report in (find_pairs(Net()), find_pairs(Net(), torch.randn(5, 3))):
        assert (_names(report) == {"a>b"}) == found
