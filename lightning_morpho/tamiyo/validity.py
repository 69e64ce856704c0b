"""Decisions that can't be meant: refused before any of a tick's decisions is carried out."""

from __future__ import annotations

import typing
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from lightning_morpho.checks import is_count, is_number
from lightning_morpho.tamiyo.observation import (
    Decision,
    Germinate,
    Measure,
    Observation,
    Penalize,
    Resize,
    SeedDecision,
    Try,
)

_KINDS: tuple[type[Decision], ...] = typing.get_args(Decision)


def checked(decisions: object, observation: Observation, policy: object) -> tuple[Decision, ...]:
    """The decisions of a policy, all of them looked at.

    What a budget or a decayed learning rate stands against is no error. Seeds in the wrong stage are left to the
    layers, which know more of them.

    Args:
        decisions: What the policy gave; a generator will do.
        observation: What it was given.
        policy: The policy, for the message.

    Raises:
        ValueError: If a decision can't be carried out, with the decision and what was expected.

    Example:
        >>> from lightning_morpho.tamiyo import Never
        >>> seen = Observation(tick=1, step=8, total_steps=None, losses=(None,), layers=())
        >>> checked(None, seen, Never())
        Traceback (most recent call last):
            ...
        ValueError: `Never` must give a sequence of decisions, an empty one for none, got None.
    """
    name = type(policy).__name__
    if not isinstance(decisions, Iterable) or isinstance(decisions, (str, Mapping)):
        raise ValueError(f"`{name}` must give a sequence of decisions, an empty one for none, got {decisions!r}.")
    given = tuple(decisions)
    if not given:  # as at most ticks: the chunks of all layers need not be gathered
        return given
    known = {layer.name: {*layer.dormant, *(seed.chunk for seed in layer.seeds)} for layer in observation.layers}
    can_grow = {layer.name for layer in observation.layers if layer.growable}
    for decision in given:
        problem = _problem(decision, known, can_grow)
        if problem:
            raise ValueError(f"`{name}` gave {decision!r}: {problem}.")
    _check_once(given, name)
    return given


Chunks = Mapping[str, set[int]]
"""Chunks of each layer."""


def _problem(decision: object, known: Chunks, can_grow: set[str]) -> str | None:
    if not isinstance(decision, _KINDS):
        return f"a decision must be one of {', '.join(kind.__name__ for kind in _KINDS)}"
    if isinstance(decision, Germinate):
        return _germination(decision, known)
    if isinstance(decision, SeedDecision):
        return _seeds([decision.seed], known)
    if isinstance(decision, Measure):
        return _seeds([*decision.seeds, *(key for group in decision.together for key in group)], known)
    if isinstance(decision, Penalize):
        return _number(decision.strength, "strength")
    if isinstance(decision, Resize):
        point = 1.0 if decision.point == "auto" else decision.point
        return _number(decision.tolerance, "tolerance") or _number(point, "point")
    return _trial(decision, can_grow) if isinstance(decision, Try) else None


def _number(value: object, field: str) -> str | None:
    return None if is_number(value) and value >= 0 else f"`{field}` must be a number of at least 0"  # type: ignore


def _layer(name: object, known: Chunks) -> str | None:
    if isinstance(name, str) and name in known:
        return None
    return f"`layer` must be one of those in the observation ({list(known)}), got {name!r}"


def _germination(decision: Germinate, known: Chunks) -> str | None:
    problem = _layer(decision.layer, known)
    if problem or decision.chunks is None:
        return problem
    chunks = decision.chunks
    whole = isinstance(chunks, Sequence) and all(is_count(c, 0) and c in known[decision.layer] for c in chunks)
    if not whole or not chunks or len({*chunks}) < len(chunks):
        return f"`chunks` must name chunks of the layer, each once, {_range(known[decision.layer])}; None for all"
    return None


def _range(chunks: set[int]) -> str:
    return f"from 0 to {max(chunks, default=-1)}"


def _seeds(keys: Iterable[object], known: Chunks) -> str | None:
    for key in keys:
        if not (isinstance(key, tuple) and len(key) == 2):
            return f"a seed must be named by its layer and its chunk, got {key!r}"
        layer, chunk = key
        problem = _layer(layer, known)
        if problem:
            return problem
        if not is_count(chunk, 0) or chunk not in known[layer]:
            return f"the chunks of `{layer}` go {_range(known[layer])}, got {chunk!r}"
    return None


def _trial(decision: Try, can_grow: set[str]) -> str | None:
    if not is_count(decision.steps):
        return "`steps` must be at least 1"
    places = decision.places
    if not places or not all(isinstance(place, tuple) and place and can_grow.issuperset(place) for place in places):
        return f"`places` must be tuples of layers that can grow ({sorted(can_grow)}), at least one"
    return None


def _check_once(decisions: Sequence[Decision], name: str) -> None:
    """Refuse two decisions on one seed, and two germinations of one chunk."""
    ends: list[tuple[str, int | None]] = [d.seed for d in decisions if isinstance(d, SeedDecision)]
    grown = [(d.layer, c) for d in decisions if isinstance(d, Germinate) for c in d.chunks or (None,)]
    for keys, what in ((ends, "one decision on"), (grown, "one germination of")):
        twice = [key for key, count in Counter(keys).items() if count > 1]
        if twice:
            layer, chunk = twice[0]
            seed = f"`{layer}`" if chunk is None else f"`{layer}`[{chunk}]"
            raise ValueError(f"`{name}` must give at most {what} {seed} at a tick, it gave several.")
