"""What holds for every shipped policy on any observation."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import numpy as np
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from observations import observations, shipped_policies

from lightning_morpho import Observation
from lightning_morpho.tamiyo import Germinate, Keep
from lightning_morpho.tamiyo.plain import (
    decisions_from_plain,
    decisions_to_plain,
    observation_from_plain,
    observation_to_plain,
    to_plain,
)

POLICIES = shipped_policies()
many = settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))


def plain(decisions):
    return sorted(json.dumps(item, sort_keys=True) for item in decisions_to_plain(decisions))


def germinations(policy, observation):
    return [d for d in policy.decide(observation) if isinstance(d, Germinate)]


def through_json(value):
    return json.loads(json.dumps(value, allow_nan=False))


@given(observation=observations())
@many
def test_observation_survives_json_without_loss(observation: Observation) -> None:
    back = observation_from_plain(through_json(observation_to_plain(observation)))
    assert to_plain(back) == to_plain(observation)  # plain values: NaN is not equal to itself
    assert hash(back.layers[0].name) == hash(observation.layers[0].name)
    assert isinstance(back.layers, tuple) and isinstance(back.layers[0].dormant, tuple)


@given(observation=observations())
@many
def test_recorded_observation_is_decided_alike(observation: Observation) -> None:
    """Else `morpho replay` would show differences that there are not, or hide some."""
    back = observation_from_plain(through_json(observation_to_plain(observation)))
    for name, policy in POLICIES.items():
        decisions = policy.decide(observation)
        assert plain(policy.decide(back)) == plain(decisions), name
        assert plain(decisions_from_plain(through_json(decisions_to_plain(decisions)))) == plain(decisions), name


@given(observation=observations(), other=observations(), seed=st.integers(0, 100))
@many
def test_policy_is_a_pure_function_of_the_observation(observation: Observation, other: Observation, seed: int) -> None:
    """Else ranks would grow apart, and a resumed run would not go on as it would have."""
    first = {name: plain(policy.decide(observation)) for name, policy in POLICIES.items()}
    for generator in (random.seed, np.random.seed, torch.manual_seed):
        generator(seed)
    state = random.getstate(), torch.get_rng_state()
    for name, policy in POLICIES.items():
        policy.decide(other)
        assert plain(policy.decide(observation)) == first[name], name
    assert random.getstate() == state[0] and torch.equal(torch.get_rng_state(), state[1])


@given(observation=observations(), shuffle=st.randoms(use_true_random=False))
@many
def test_order_in_which_layers_and_losses_are_listed_does_not_matter(
    observation: Observation, shuffle: random.Random
) -> None:
    layers, measurements = list(observation.layers), list(observation.measurements)
    shuffle.shuffle(layers)
    shuffle.shuffle(measurements)
    shuffled = replace(observation, layers=tuple(layers), measurements=tuple(measurements))
    for name, policy in POLICIES.items():
        assert plain(germinations(policy, shuffled)) == plain(germinations(policy, observation)), name


@given(observation=observations())
@many
def test_only_what_can_germinate_is_asked_to(observation: Observation) -> None:
    """A request that the layer has to refuse would end the run."""
    layers = {layer.name: layer for layer in observation.layers}
    for name, policy in POLICIES.items():
        grown = germinations(policy, observation)
        kept = {decision.seed for decision in policy.decide(observation) if isinstance(decision, Keep)}
        assert all(layers[d.layer].free_beds for d in grown), name
        assert all(layers[d.layer].dormant for d in grown if d.chunks is None), name
        wanted = {(d.layer, c) for d in grown for c in d.chunks or () if c not in layers[d.layer].dormant}
        assert wanted <= kept, name  # a kept seed makes room for the next one
        assert len({d.layer for d in grown}) == len(grown), name
