"""How a budget of parameters is spent: how many beds each layer gets, and how wide they are."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from lightning_morpho.blueprints import Blueprint, Span
from lightning_morpho.layers.links import linkable
from lightning_morpho.pairs import Pair


def allocate(plans: Mapping[str, Blueprint], pairs: Mapping[str, Pair], beds: int, budget: int) -> dict[str, int]:
    """Beds of each layer: one each, narrowest layers first, then a second one, until the budget is spent.

    Args:
        plans: What grows in each layer.
        pairs: Pair of each consumer.
        beds: Most beds of a layer.
        budget: In parameters, links included.
    """
    counts = dict.fromkeys(plans, 0)
    order = sorted(plans, key=lambda n: plans[n].site.out_features)
    left = budget
    for _ in range(beds):
        for name in order:
            cost = plans[name].numel() + _link_cost(name, plans, pairs, counts)
            if cost <= left:
                counts[name] += 1
                left -= cost
    return counts


def _link_cost(name: str, plans: Mapping[str, Blueprint], pairs: Mapping[str, Pair], counts: Mapping[str, int]) -> int:
    """Parameters of the links that one more bed of a layer needs, to those of the layers before and behind it."""
    total = 0
    for consumer, pair in pairs.items():
        producer = pair.producers[0]
        if name in (consumer, producer) and producer in pairs and linkable(plans[producer], plans[consumer]):
            before, behind = plans[producer], plans[consumer]
            assert isinstance(before, Span) and isinstance(behind, Span)
            other = producer if name == consumer else consumer
            total += counts[other] * math.prod(behind.link_shape(before.columns))
    return total


def fill_budget(
    plans: Mapping[str, Blueprint], pairs: Mapping[str, Pair], beds: int, budget: int
) -> dict[str, Blueprint]:
    """Spans as wide as the budget allows, each hidden layer by the same factor.

    Args:
        plans: Spans of the pairs' consumers.
        pairs: Their pairs.
        beds: Beds that each layer is to get.
        budget: In parameters, links included.

    Returns:
        The plans with their number of hidden units; one unit a bed where the budget does not suffice for more.
    """
    low, high = 0.0, 1.0
    while _cost(_wider(plans, high, beds), pairs, beds) <= budget:
        low, high = high, 2 * high
    for _ in range(20):  # to a millionth of the last doubling
        middle = (low + high) / 2
        if _cost(_wider(plans, middle, beds), pairs, beds) <= budget:
            low = middle
        else:
            high = middle
    return _wider(plans, low, beds)


def _wider(plans: Mapping[str, Blueprint], factor: float, beds: int) -> dict[str, Blueprint]:
    made: dict[str, Blueprint] = {}
    for name, plan in plans.items():
        assert isinstance(plan, Span)
        hidden = max(1, int(factor * plan.route.producers[0].out_features / beds))
        made[name] = Span(plan.site, replace(plan.config, hidden=hidden), plan.route)
    return made


def _cost(plans: Mapping[str, Blueprint], pairs: Mapping[str, Pair], beds: int) -> int:
    """Parameters of all beds and links."""
    counts = dict.fromkeys(plans, 0)
    total = 0
    for name, plan in plans.items():
        total += beds * (plan.numel() + _link_cost(name, plans, pairs, counts))
        counts[name] = beds
    return total
