"""Planted seeds, of which it is known what they are worth: what credit keeps, culls and puts off, and why."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_morpho import (
    BlueprintConfig,
    GrowthEngine,
    LayersConfig,
    LifecycleConfig,
    MorphoConfig,
    Never,
    Observation,
    OptimizerLink,
    Stage,
    WarmupConfig,
    hybrid_layers,
    morph_,
)
from lightning_morpho.credit import affordable, measure
from lightning_morpho.evidence import paired_bounds
from lightning_morpho.tamiyo import Cull, Defer, Keep, LayerView, Measure, Measurement, SeedView, judge


class Bench:
    """A model whose seeds are due at the first tick, with the ticks of a run and no training in between."""

    def __init__(self, model, data, loss, *, seeds, beds=1, limit=None):
        config = MorphoConfig(
            layers=LayersConfig(num_seeds=seeds, beds=beds),
            blueprint=BlueprintConfig(kind="neurons", hidden=4),
            warmup=WarmupConfig(steps=0, min_steps=0),
            lifecycle=LifecycleConfig(active_ticks=0, embargo_ticks=50, alpha_step=1.0),
        )
        morph_(model, config)
        self.model, self.data, self.loss, self.limit = model, data, loss, limit
        self.layers = hybrid_layers(model)
        link = OptimizerLink(self.layers, [torch.optim.SGD(model.parameters(), lr=0.1)])
        self.events = []
        self.engine = GrowthEngine(self.layers, Never(), link, self.events.append)
        self.passes = 0

    def measure(self, seeds, together):
        groups = [(key,) for key in seeds]
        if self.limit is not None:
            groups = affordable(groups, self.limit, least=1)
        groups += together
        self.passes += len(groups)
        return measure(self.model, self.layers, groups, self.data, self.loss, confidence=0.95, replicas=8)

    def tick(self, times=1):
        for _ in range(times):
            self.engine.tick(step=0, total_steps=None, loss=None, measure=self.measure)

    def stages(self):
        return {(r.layer, r.chunk): r.stage for r in self.engine.records}

    def value(self):
        with torch.no_grad():
            return sum(self.loss(batch).item() for batch in self.data) / len(self.data)


# ---------------------------------------------------------------- the planted problem
KINDS = ["useful", "useless", "harmful"]
SEEDS, WIDTH, BATCHES = 12, 2, 24


def planted(repetition: int) -> Bench:
    """Each seed adds a known function to its own two outputs.

    The targets hold all of what useful seeds add, half of what useless ones do (without them the error is exactly as
    large), and nothing of what harmful ones do.
    """
    g = torch.Generator().manual_seed(repetition)
    model = nn.Sequential(nn.Linear(6, SEEDS * WIDTH))
    share = torch.tensor([{"useful": 1.0, "useless": 0.5, "harmful": 0.0}[KINDS[i % 3]] for i in range(SEEDS)])
    w_in, b_in = torch.randn(4, 6, generator=g), torch.randn(4, generator=g)
    w_out = torch.randn(SEEDS * WIDTH, 4, generator=g)
    data = []
    for _ in range(BATCHES):
        x = torch.randn(32, 6, generator=g)
        added = F.relu(x @ w_in.T + b_in) @ w_out.T
        noise = 3 * torch.randn(32, SEEDS * WIDTH, generator=g)
        with torch.no_grad():
            data.append((x, model(x) + added * share.repeat_interleave(WIDTH) + noise))
    bench = Bench(model, data, lambda batch: F.mse_loss(model(batch[0]), batch[1]), seeds=SEEDS)
    model[0].request_germination()
    (bed,) = model[0].morpho.beds
    with torch.no_grad():
        for parameter, value in ((bed.w_in, w_in), (bed.b_in, b_in), (bed.w_out, w_out)):
            parameter.copy_(value)
    return bench


def run_planted(repetitions: int) -> dict[str, Counter]:
    outcome = {kind: Counter() for kind in KINDS}
    for repetition in range(repetitions):
        bench = planted(repetition)
        keys = [(("0", chunk),) for chunk in range(SEEDS)]
        for m in bench.measure([key for (key,) in keys], []):
            bounds = paired_bounds(m.differences, 0.95)
            error = torch.tensor(m.differences).std().item() / BATCHES**0.5
            if KINDS[m.seeds[0][1] % 3] != "useless":
                assert abs(bounds.mean) >= 4 * error, "the effect must be at least four standard errors"
        bench.tick(6)
        for (_, chunk), stage in bench.stages().items():
            outcome[KINDS[chunk % 3]][stage] += 1
    return outcome


def share_right(outcome: dict[str, Counter]) -> float:
    right = outcome["useful"]["FOSSILIZED"] + outcome["useless"]["CULLED"] + outcome["harmful"]["CULLED"]
    return right / sum(sum(counter.values()) for counter in outcome.values())


def test_credit_keeps_what_is_useful_and_culls_the_rest():
    outcome = run_planted(5)
    assert share_right(outcome) >= 0.95, outcome
    assert outcome["useful"] == {"FOSSILIZED": 20} and outcome["harmful"] == {"CULLED": 20}


@pytest.mark.exhaustive
def test_credit_is_right_for_95_percent_of_the_seeds_over_fifty_repetitions():
    outcome = run_planted(50)
    print(outcome, share_right(outcome))
    assert share_right(outcome) >= 0.95, outcome


# ---------------------------------------------------------------- what leave-one-out is blind for
def stacked() -> Bench:
    """The first layer's seed adds relu(x0) to the output, the second layer's takes it away again: net nothing."""
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 2, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.diag(torch.tensor([1.0, 1.0, 1.0, 0.0])))
        model[1].weight[:, 3] = torch.tensor([1.0, -1.0])
    data = []
    for _ in range(12):
        x = torch.randn(32, 4)
        data.append((x, model(x).detach() + 0.1 * torch.randn(32, 2)))
    bench = Bench(model, data, lambda batch: F.mse_loss(model(batch[0]), batch[1]), seeds=1)
    for layer in model:
        layer.request_germination()
        bed = layer.morpho.bed_at(0)
        with torch.no_grad():
            for parameter in bed.parameters():
                parameter.zero_()
            bed.w_in[0, 0] = 1
    with torch.no_grad():
        model[0].morpho.bed_at(0).w_out[3, 0] = 1
        model[1].morpho.bed_at(0).w_out[:, 0] = -model[1].weight[:, 3]
    return bench


def test_stacked_seeds_that_only_undo_each_other_are_judged_together_and_culled():
    """Left out one by one each looks needed: both would stay for ever."""
    bench = stacked()
    alone = bench.measure([("0", 0), ("1", 0)], [])
    assert all(m.lower > 0 for m in alone)
    bench.tick(2)
    assert set(bench.stages().values()) == {"CULLED"}
    for record in bench.engine.records:
        assert record.reason == "no proven gain of the group, judged with 0[0], 1[0]"
        assert record.figures["lower"] > 0 and record.figures["joint_lower"] <= 0
        assert record.figures["interaction"] == pytest.approx(-sum(m.rise for m in alone), rel=1e-3)
        assert record.figures["judged_with"] == 1


def test_a_useful_seed_is_kept_though_a_seed_before_it_harms():
    bench = stacked()
    model = bench.model
    with torch.no_grad():  # now the second layer's seed is what the targets ask for, the first only disturbs
        bench.data[:] = [(x, y + F.relu(x[:, :1]) * model[1].morpho.bed_at(0).w_out[:, 0]) for x, y in bench.data]
    bench.tick(4)
    assert bench.stages() == {("0", 0): "CULLED", ("1", 0): "FOSSILIZED"}


class Largest(nn.Module):
    """Two outputs of which the larger counts: two seeds that give the same can replace each other."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x):
        return self.layer(x).amax(1)


def test_of_seeds_that_replace_each_other_one_is_kept():
    """Left out one by one neither looks needed: both would go, and with them what they do."""
    model = Largest()
    nn.init.zeros_(model.layer.weight), nn.init.zeros_(model.layer.bias)
    data = [(torch.randn(16, 3), 1 + 0.1 * torch.randn(16)) for _ in range(12)]
    bench = Bench(model, data, lambda batch: F.mse_loss(model(batch[0]), batch[1]), seeds=2)
    model.layer.request_germination()
    bed = model.layer.morpho.bed_at(0)
    with torch.no_grad():
        bed.w_in.zero_(), bed.b_in.zero_(), bed.w_out.zero_()
        bed.b_in[0] = 1
        bed.w_out[:, 0] = 1
    before = bench.value()
    bench.tick(4)
    assert sorted(bench.stages().values()) == ["CULLED", "FOSSILIZED"]
    assert bench.value() == pytest.approx(before)
    deferred = [e for e in bench.events if getattr(e, "event", None) == "deferred"]
    assert len(deferred) == 1 and deferred[0].figures["joint_lower"] > 0


def leaning(shift: float) -> Bench:
    """A seed that adds a constant, and a host that has come to take it away again, at a worse loss than before."""
    model = nn.Sequential(nn.Linear(3, 2))
    data = [(torch.randn(16, 3), None) for _ in range(12)]
    data = [(x, model(x).detach() + 0.1 * torch.randn(16, 2)) for x, _ in data]
    bench = Bench(model, data, lambda batch: F.mse_loss(model(batch[0]), batch[1]), seeds=1)
    bench.engine.ticks = -1  # the tick that germinates is number 0
    bench.engine.tamiyo = _Germinates()
    bench.tick()
    bench.engine.tamiyo = Never()
    bed = model[0].morpho.bed_at(0)
    with torch.no_grad():
        bed.w_in.zero_(), bed.b_in.fill_(1)
        bed.w_out.fill_(0.25)
        model[0].bias -= 1 + shift
    return bench


class _Germinates(Never):
    def grow(self, observation):
        from lightning_morpho.tamiyo import Germinate

        return [Germinate(layer="0", reason="test", force=True)]


def test_a_host_that_leans_on_a_seed_which_did_it_no_good_is_recognised():
    bench = leaning(shift=0.2)
    (alone,) = bench.measure([("0", 0)], [])
    assert alone.lower > 0, "left out alone the seed looks needed"
    bench.tick()
    (notice,) = [e for e in bench.events if getattr(e, "event", None) == "deferred"]
    assert notice.reason.startswith("the host leans on it") and notice.figures["since_birth_lower"] > 0
    bench.tick(2)
    (record,) = bench.engine.records
    assert record.stage == "CULLED" and record.reason.startswith("the host leans on it")


def test_a_seed_is_kept_if_the_loss_is_not_proven_worse_than_at_its_birth():
    bench = leaning(shift=0.0)
    bench.tick()
    (record,) = bench.engine.records
    assert record.stage == "FOSSILIZED"
    assert record.figures["since_birth"] == pytest.approx(0, abs=1e-6)


def test_births_and_deferrals_survive_a_checkpoint():
    bench = leaning(shift=0.2)
    bench.tick()
    state = bench.engine.state_dict()
    assert state["deferred"] == [["0", 0, 1]] and len(state["births"][0][2]) == 12
    other = leaning(shift=0.2)
    other.engine.load_state_dict(state)
    assert other.engine.state_dict() == state


# ---------------------------------------------------------------- cost
def test_what_does_not_fit_into_a_tick_is_measured_later_and_the_log_says_so():
    bench = planted(0)
    bench.limit = 5
    bench.tick()
    deferred = [e for e in bench.events if getattr(e, "event", None) == "deferred"]
    assert [e.chunk for e in deferred if "not measured yet" in e.reason] == list(range(4, SEEDS))
    bench.tick()
    waiting = [e for e in bench.events if getattr(e, "event", None) == "deferred" and e.tick == 2]
    assert {e.chunk for e in waiting if "not measured yet" in e.reason} <= set(range(SEEDS)) - {4, 5, 6, 7}
    bench.tick(6)
    assert Counter(bench.stages().values())["ACTIVE"] == 0


# ---------------------------------------------------------------- the rules, on hand-made figures
def view(*keys):
    layers = {}
    for name, chunk in keys:
        seed = SeedView(chunk=chunk, generation=0, stage=Stage.ACTIVE, age=3, alpha=1.0, bed=0, fading=False, due=True)
        layers.setdefault(name, []).append(seed)
    views = [
        LayerView(name=n, features=8, bed_parameters=9, free_beds=0, germinations=1, dormant=(), seeds=tuple(s))
        for n, s in layers.items()
    ]
    return Observation(tick=1, step=0, total_steps=None, losses=(None,), layers=tuple(views))


def found(seeds, mean, spread=0.1, reaches=(), count=16):
    """A measurement whose differences alternate around their mean."""
    differences = tuple(mean + spread * (-1) ** i for i in range(count))
    bounds = paired_bounds(differences, 0.95)
    return Measurement(
        seeds=seeds,
        rise=bounds.mean,
        lower=bounds.lower,
        batches=count,
        differences=differences,
        reaches=frozenset(reaches),
    )


A, B, C = ("a", 0), ("b", 0), ("c", 0)


def observe(*measurements, keys=(A, B), **more):
    from dataclasses import replace

    return replace(view(*keys), measurements=measurements, **more)


def test_pairs_are_measured_only_where_one_feeds_the_other():
    fed = observe(found((A,), 1.0, reaches="b"), found((B,), 1.0))
    assert judge(fed) == [Measure(together=((A, B),))]
    apart = observe(found((A,), 1.0), found((B,), 1.0))
    assert [type(d) for d in judge(apart)] == [Keep, Keep]


@pytest.mark.parametrize(("both", "grouped"), [(2.0, False), (2.3, False), (1.0, True), (3.0, True)])
def test_only_an_interaction_that_matters_makes_a_group(both, grouped):
    seen = observe(found((A,), 1.0, reaches="b"), found((B,), 1.0), found((A, B), both))
    decisions = judge(seen)
    assert [type(d) for d in decisions] == [Keep, Keep]
    assert all(("interaction" in d.figures) == grouped for d in decisions)


def test_an_interaction_that_is_not_proven_makes_no_group():
    # One batch carries it all: the second difference is large and as uncertain.
    joint = found((A, B), 1.0)
    joint = Measurement(seeds=(A, B), rise=1.2, lower=0.1, batches=16, differences=(-20.0, *joint.differences[1:]))
    seen = observe(found((A,), 1.0, reaches="b"), found((B,), 1.0), joint)
    assert all("interaction" not in d.figures for d in judge(seen))


def test_a_chain_of_three_is_measured_as_a_whole_after_its_pairs():
    first = [found((A,), 1.0, reaches="bc"), found((B,), 1.0, reaches="c"), found((C,), 1.0)]
    pairs = judge(observe(*first, keys=(A, B, C)))
    assert pairs == [Measure(together=((A, B), (A, C), (B, C)))]
    second = [*first, *(found(group, 1.0) for group in pairs[0].together)]
    assert judge(observe(*second, keys=(A, B, C))) == [Measure(together=((A, B, C),))]
    third = [*second, found((A, B, C), 0.0)]
    assert [type(d) for d in judge(observe(*third, keys=(A, B, C)))] == [Cull] * 3


def test_in_a_group_that_pays_the_least_of_the_unproven_goes_first():
    first = [found((A,), 0.01, reaches="bc"), found((B,), -0.01, reaches="c"), found((C,), 0.02)]
    pairs = [found((A, B), 1.0), found((A, C), 1.0), found((B, C), 1.0)]
    decisions = judge(observe(*first, *pairs, found((A, B, C), 1.0), keys=(A, B, C)))
    assert {d.seed: type(d) for d in decisions} == {A: Defer, B: Cull, C: Defer}


def test_what_was_refused_is_put_off_and_not_asked_for_again():
    refused = observe(found((A,), 1.0), unmeasured=frozenset({(B,)}))
    assert {d.seed: type(d) for d in judge(refused)} == {A: Keep, B: Defer}


def test_the_longest_waiting_is_measured_first():
    assert judge(observe(deferred={B: 2})) == [Measure(seeds=(B, A))]


def test_pairs_that_could_not_be_measured_do_not_stop_the_judgement():
    seen = observe(found((A,), 1.0, reaches="b"), found((B,), 1.0), unmeasured=frozenset({(A, B)}))
    assert [type(d) for d in judge(seen)] == [Keep, Keep]


def test_seeds_with_a_proven_harm_do_not_hide_that_others_replace_each_other():
    seen = observe(found((A,), 0.0), found((B,), 0.0), found((C,), -9.0), keys=(A, B, C))
    assert judge(seen) == [Measure(together=((A, B),))]
    decisions = judge(observe(*seen.measurements, found((A, B), 1.0), keys=(A, B, C)))
    assert Counter(type(d) for d in decisions) == {Cull: 2, Defer: 1}


def test_figures_that_are_missing_cull_and_are_not_compared():
    seen = observe(found((A,), math.nan), found((B,), 1.0))
    assert {d.seed: type(d) for d in judge(seen)} == {A: Cull, B: Keep}
