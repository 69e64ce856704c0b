"""Policies on hand-made observations: no model in sight."""

import math
from dataclasses import replace

import pytest
from torch import nn, optim

from hosts import Host, events, linear_net, loaders, make_trainer, quick
from lightning_morpho import (
    AllAtStart,
    BlueprintConfig,
    GrowthEngine,
    LayersConfig,
    LifecycleConfig,
    MorphoConfig,
    Never,
    Observation,
    OptimizerLink,
    Periodic,
    Scripted,
    Stage,
    Tamiyo,
    Uniform,
    WarmupConfig,
    hybrid_layers,
    morph_,
)
from lightning_morpho.tamiyo import Cull, Germinate, Keep, LayerView, Measure, Measurement, SeedView, judge


def seed(chunk=0, *, due=False, bed=0, stage=Stage.ACTIVE, fading=False):
    return SeedView(chunk=chunk, generation=0, stage=stage, age=3, alpha=1.0, bed=bed, fading=fading, due=due)


def layer(name, *, free_beds=1, germinations=0, dormant=(0, 1), seeds=()):
    return LayerView(
        name=name,
        features=8,
        bed_parameters=10,
        free_beds=free_beds,
        germinations=germinations,
        dormant=dormant,
        seeds=seeds,
    )


def observation(*layers, **values):
    plain = {"tick": 1, "step": 0, "total_steps": 100, "losses": (None,)}
    return Observation(layers=layers, **(plain | values))


def places(decisions):
    return [(d.layer, d.chunks) for d in decisions if isinstance(d, Germinate)]


# ---- judgement
KEYS = (("a", 0), ("b", 1))
DUE = observation(layer("a", seeds=(seed(0, due=True),)), layer("b", seeds=(seed(1, due=True), seed(0))))


def measured(lower, rise=0.5, batches=8, keys=KEYS):
    return tuple(Measurement(seeds=(key,), rise=rise, lower=lower, batches=batches) for key in keys)


def test_seeds_that_are_due_are_measured_first():
    assert judge(DUE) == [Measure(seeds=KEYS)]


def test_only_what_has_not_been_measured_is_asked_for():
    assert judge(replace(DUE, measurements=measured(0.1, keys=KEYS[:1]))) == [Measure(seeds=KEYS[1:])]


def test_nothing_is_judged_that_is_not_due():
    assert judge(observation(layer("a", seeds=(seed(0), seed(1, fading=True))))) == []


@pytest.mark.parametrize("lower", [1e-9, 0.4])
def test_seed_with_a_proven_gain_is_kept(lower):
    decisions = judge(replace(DUE, measurements=measured(lower)))
    assert [(type(d), d.seed) for d in decisions] == [(Keep, key) for key in KEYS]
    assert all(
        d.figures == {"rise": 0.5, "lower": lower, "batches": 8, "confidence": 0.95, "judged_with": 0}
        for d in decisions
    )
    assert all(d.reason.startswith("proven gain") for d in decisions)


@pytest.mark.parametrize("lower", [0.0, -0.1, math.nan])
def test_seed_without_a_proven_gain_is_culled(lower):
    decisions = judge(replace(DUE, measurements=measured(lower)))
    assert [(type(d), d.seed) for d in decisions] == [(Cull, key) for key in KEYS]
    assert all(d.reason.startswith("no proven gain") for d in decisions)


def test_each_seed_is_judged_by_its_own_measurement():
    both = (*measured(0.2, keys=KEYS[:1]), *measured(-0.2, keys=KEYS[1:]))
    assert [type(d) for d in judge(replace(DUE, measurements=both))] == [Keep, Cull]


def test_seeds_measured_together_share_the_verdict_and_say_so():
    together = (Measurement(seeds=KEYS, rise=0.5, lower=0.1, batches=8),)
    decisions = judge(replace(DUE, measurements=together))
    assert [(type(d), d.figures["judged_with"]) for d in decisions] == [(Keep, 1)] * 2


def test_seed_is_kept_unjudged_where_nothing_can_be_measured():
    decisions = judge(replace(DUE, can_measure=False))
    assert [(type(d), d.seed) for d in decisions] == [(Keep, key) for key in KEYS]
    assert all(d.reason.startswith("unjudged") and not d.figures for d in decisions)


@pytest.mark.parametrize("batches", [0, 1])
def test_seed_is_kept_unjudged_with_fewer_than_two_batches(batches):
    decisions = judge(replace(DUE, measurements=measured(math.nan, batches=batches)))
    assert all(isinstance(d, Keep) and d.reason.startswith("unjudged") for d in decisions)
    assert len(decisions) == 2


def test_every_policy_judges_before_it_grows():
    class Greedy(Tamiyo):
        def grow(self, observation):
            return [Germinate(layer="a", reason="always")]

    assert [type(d) for d in Greedy().decide(DUE)] == [Measure, Germinate]


# ---- never
def test_never_grows_nothing():
    assert Never().decide(observation(layer("a"), step=99)) == []


# ---- one round
@pytest.mark.parametrize(("step", "grows"), [(0, False), (14, False), (15, True), (80, True)])
def test_one_round_starts_at_its_share_of_the_training(step, grows):
    decisions = Uniform().decide(observation(layer("a"), layer("b"), step=step))
    assert places(decisions) == ([("a", None), ("b", None)] if grows else [])


def test_one_round_happens_once():
    assert Uniform().decide(observation(layer("a", germinations=1), step=50)) == []


def test_one_round_passes_over_layers_that_have_no_bed_or_no_dormant_seed():
    seen = observation(layer("a", free_beds=0), layer("b", dormant=()), layer("c"), step=50)
    assert places(Uniform().decide(seen)) == [("c", None)]


@pytest.mark.parametrize(
    ("losses", "grows"),
    [
        ((1.0, 0.99, 0.985), False),  # three ticks back lies before the first
        ((1.0, 0.9, 0.8, 0.7), False),
        ((1.0, 0.9, 0.8, 0.97), False),  # fell by 3 %
        ((1.0, 0.5, 0.5, 0.985), True),  # fell by 1.5 %
        ((9.0, 1.0, 0.9, 0.9, 1.2), True),  # rose; the first no longer counts
        ((-1.0, -1.0, -1.0, -1.01), True),  # a negative loss fell by 1 % of its size
        ((-1.0, -1.0, -1.0, -1.5), False),
        ((None, 1.0, 1.0, 1.0), False),  # not measured is no plateau
        ((1.0, 1.0, 1.0, None), False),
        ((1.0, None, None, 1.0), True),
        ((math.nan, 1.0, 1.0, 1.0), False),
    ],
)
def test_without_a_known_length_one_round_waits_for_a_plateau(losses, grows):
    decisions = Uniform().decide(observation(layer("a"), total_steps=None, losses=losses, step=10**6))
    assert places(decisions) == ([("a", None)] if grows else [])


# ---- periodic
def test_periodic_grows_at_its_ticks():
    policy = Periodic(start=3, every=4)
    ticks = [t for t in range(1, 16) if policy.decide(observation(layer("a"), tick=t))]
    assert ticks == [3, 7, 11, 15]


def test_periodic_prefers_the_layer_with_the_fewest_germinations_and_passes_over_full_ones():
    seen = observation(
        layer("a", germinations=2),
        layer("b", free_beds=0),
        layer("c", germinations=1, seeds=(seed(0, bed=None, stage=Stage.CULLED),)),
        layer("d"),
    )
    assert places(Periodic().decide(seen)) == [("d", None)]
    assert places(Periodic(events=3).decide(seen)) == [("d", None), ("c", None), ("a", None)]
    assert places(Periodic(events=9).decide(seen)) == [("d", None), ("c", None), ("a", None)]


def turns(verdict: float, **policy) -> list[str]:
    """Layers in the order in which Periodic lets them germinate, where each seed gets this verdict."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    morph_(
        model,
        MorphoConfig(
            layers=LayersConfig(num_seeds=1, beds=3),
            blueprint=BlueprintConfig(kind="neurons"),
            warmup=WarmupConfig(steps=0),
            lifecycle=LifecycleConfig(active_ticks=0, embargo_ticks=0, alpha_step=1.0),
        ),
    )
    layers = hybrid_layers(model)
    link = OptimizerLink(layers, [optim.SGD(model.parameters(), 0.1)])
    engine = GrowthEngine(layers, Periodic(**policy), link)
    for tick in range(1, 22):
        engine.tick(
            step=tick,
            total_steps=None,
            loss=None,
            measure=lambda keys, together: [
                Measurement(seeds=(k,), rise=verdict, lower=verdict, batches=4) for k in keys
            ],
        )
    return [record.layer for record in engine.records]


def test_periodic_takes_turns_over_layers_whose_seeds_live():
    # Every tick: nothing is culled or renewed between two germinations.
    assert turns(1.0, every=1)[:4] == ["0", "1", "0", "1"]


@pytest.mark.parametrize("verdict", [-1.0, 1.0], ids=["culled", "kept"])
def test_periodic_takes_turns_over_layers_whose_seeds_have_ended(verdict):
    assert turns(verdict, every=7)[:3] == ["0", "1", "0"]


# ---- scripted
def test_script_is_followed():
    policy = Scripted(
        events=[
            {"tick": 2, "layer": "b", "chunks": [1, 0]},
            {"tick": 2, "layer": "a"},
            {"tick": 5, "layer": "a", "chunks": None},
        ]
    )
    seen = observation(layer("a"), layer("b"))
    played = {t: places(policy.decide(replace(seen, tick=t))) for t in range(1, 7)}
    assert played == {1: [], 2: [("b", (1, 0)), ("a", None)], 3: [], 4: [], 5: [("a", None)], 6: []}


@pytest.mark.parametrize("event", [{"tick": 1}, {"layer": "a"}, {"tick": 1, "layer": "a", "chunk": 0}, {}])
def test_misspelt_script_is_refused_when_it_is_made(event):
    with pytest.raises(ValueError, match=r"`tamiyo.events`.*`tick`, `layer`.*got"):
        Scripted(events=[event])


def test_script_that_names_an_unknown_layer_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match=r"\['z'\]; the hybrid layers are \['a', 'b'\]"):
        Scripted(events=[{"tick": 1, "layer": "z"}]).decide(observation(layer("a"), layer("b")))


# ---- all of them
@pytest.mark.parametrize(
    ("policy", "values", "named"),
    [
        (Uniform, {"at": 1.1}, "`tamiyo.at`.*got 1.1"),
        (Uniform, {"at": math.nan}, "`tamiyo.at`.*got nan"),
        (Uniform, {"patience": 0}, "`tamiyo.patience`.*got 0"),
        (Uniform, {"min_delta": -0.1}, "`tamiyo.min_delta`.*got -0.1"),
        (Uniform, {"min_delta": math.nan}, "`tamiyo.min_delta`.*got nan"),
        (Periodic, {"start": 0}, "`tamiyo.start`.*got 0"),
        (Periodic, {"every": 0}, "`tamiyo.every`.*got 0"),
        (Periodic, {"events": -1}, "`tamiyo.events`.*got -1"),
    ],
)
def test_bad_policy_value_is_refused_by_name(policy, values, named):
    with pytest.raises(ValueError, match=named):
        policy(**values)


@pytest.mark.parametrize(
    "policy", [Never(), Uniform(), Periodic(), Scripted(events=[{"tick": 1, "layer": "a"}])], ids=repr
)
def test_same_observation_gives_the_same_answer_whatever_was_seen_between(policy):
    seen = replace(DUE, measurements=measured(0.1), step=50)
    first = list(policy.decide(seen))
    policy.decide(observation(layer("a"), tick=7, step=99, losses=(1.0, 1.0, 1.0, 1.0), total_steps=None))
    assert list(policy.decide(seen)) == first
    assert len(first) >= 2


# ---- all at the start
def test_all_at_start_grows_before_the_first_step_and_then_only_where_it_could_not():
    before = observation(layer("a"), layer("b", free_beds=0), tick=0)
    assert places(AllAtStart().begin(before)) == [("a", None)]
    # `b` waited for its pair to be confirmed; `a` was culled in the meantime
    assert places(AllAtStart().decide(observation(layer("a", germinations=1), layer("b")))) == [("b", None)]


def test_all_at_start_in_a_run_grows_at_step_0(tmp_path):
    make_trainer(tmp_path, quick(tamiyo=AllAtStart()), max_epochs=1).fit(Host(linear_net()), **loaders())
    born = [(e["step"], e["layer"]) for e in events(tmp_path) if e["from"] == "DORMANT"]
    assert born == [(0, "net.0"), (0, "net.2")]
