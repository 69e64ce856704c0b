"""Recorded runs: what was seen and decided at each tick, and what another policy would have decided."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lightning_morpho.tamiyo.base import Tamiyo
from lightning_morpho.tamiyo.observation import Cull, Decision, Germinate, Keep, Observation
from lightning_morpho.tamiyo.plain import (
    decisions_from_plain,
    decisions_to_plain,
    observation_from_plain,
    observation_to_plain,
    pack,
    to_plain,
    unpack,
)
from lightning_morpho.telemetry import EVENTS_FILE, read_events


def tick_entry(observation: Observation, decisions: Sequence[Decision], *, whole: bool) -> dict[str, Any]:
    """What the event log keeps of a tick.

    Args:
        observation: What the decisions rest on, measurements included.
        decisions: The decisions.
        whole: Whether to keep the losses and assessments of all ticks so far; else those of this one.
    """
    if not whole:  # an observation repeats what all ticks before have found; the log holds it once
        found = observation.assessments
        observation = replace(
            observation,
            losses=observation.losses[-1:],
            training_losses=observation.training_losses[-1:],
            assessments=found and tuple(entry for entry in found if entry.step == observation.step),
        )
    return {
        "event": "decided",
        "whole": whole,
        "observation": observation_to_plain(observation),
        "decisions": pack(decisions_to_plain(decisions)),
    }


@dataclass(frozen=True, kw_only=True)
class Tick:
    """What was seen and decided at one tick.

    Attributes:
        observation: What the decisions rest on.
        decisions: The decisions.
    """

    observation: Observation
    decisions: tuple[Decision, ...]


def read_ticks(run: Path) -> Iterator[Tick]:
    """The ticks of a run, in order; of a tick that a resumed run repeated, all are given.

    Args:
        run: An event log, or the folder that holds one.

    Raises:
        ValueError: If a line was written by another version.
        FileNotFoundError: If there is no log.
    """
    before = None
    for entry in read_events(event_log(run)):
        if entry["event"] != "decided":
            continue
        observation = observation_from_plain(entry["observation"])
        if before is not None and not entry["whole"]:
            observation = _with_history(observation, before)
        before = observation
        yield Tick(observation=observation, decisions=tuple(decisions_from_plain(unpack(entry["decisions"]))))


def _with_history(observation: Observation, before: Observation) -> Observation:
    """An observation with the losses and assessments of the ticks before."""
    so_far, found = observation.tick - 1, observation.assessments
    earlier = tuple(entry for entry in before.assessments or () if entry.step < observation.step)
    return replace(
        observation,
        assessments=found if found is None else earlier + found,
        losses=before.losses[:so_far] + observation.losses,
        training_losses=before.training_losses[:so_far] + observation.training_losses,
    )


def event_log(run: Path) -> Path:
    """The event log of a run.

    Raises:
        FileNotFoundError: If there is none.
    """
    path = run / EVENTS_FILE if run.is_dir() else run
    if not path.is_file():
        raise FileNotFoundError(f"`{run}` must be an event log or a folder that holds {EVENTS_FILE}; there is none.")
    return path


def recorded_policy(run: Path) -> Mapping[str, Any] | None:
    """The policy that a run was last started with, as :func:`describe_policy` gave it; None if it is not known."""
    found = [entry.get("tamiyo") for entry in read_events(event_log(run)) if entry["event"] == "fit_start"]
    return found[-1] if found else None


def describe_policy(policy: Tamiyo) -> dict[str, Any] | None:
    """A policy as a node that Hydra builds again, by the fields of its dataclass; None if they are not plain values.

    Example:
        >>> from lightning_morpho import Periodic
        >>> describe_policy(Periodic(every=3))
        {'_target_': 'lightning_morpho.tamiyo.periodic.Periodic', 'start': 1, 'every': 3, 'events': 1}
    """
    known: tuple[dataclasses.Field[Any], ...] = dataclasses.fields(policy) if dataclasses.is_dataclass(policy) else ()
    values = {item.name: getattr(policy, item.name) for item in known if item.init}
    try:
        plain = json.loads(json.dumps(values))
    except TypeError:
        return None
    return {"_target_": f"{type(policy).__module__}.{type(policy).__qualname__}", **plain}


@dataclass(frozen=True, kw_only=True)
class Redecided:
    """A recorded tick, decided again.

    Attributes:
        tick: Number of the tick.
        step: Optimizer steps done.
        recorded: What was decided.
        replayed: What the other policy decides.
    """

    tick: int
    step: int
    recorded: tuple[Decision, ...]
    replayed: tuple[Decision, ...]

    @property
    def same(self) -> bool:
        """Whether both decide the same, in any order."""
        return _as_set(self.recorded) == _as_set(self.replayed)


def _as_set(decisions: Sequence[Decision]) -> Counter[str]:
    return Counter(json.dumps([type(d).__name__, to_plain(d)], sort_keys=True) for d in decisions)


def redecide(ticks: Iterator[Tick], policy: Tamiyo) -> Iterator[Redecided]:
    """Let a policy decide on recorded ticks.

    Each tick is seen as the recorded run saw it: from the first other decision on, a run under ``policy`` would
    have seen something else.
    """
    for tick in ticks:
        yield Redecided(
            tick=tick.observation.tick,
            step=tick.observation.step,
            recorded=tick.decisions,
            replayed=tuple(policy.decide(tick.observation)),
        )


def in_words(decisions: Sequence[Decision]) -> str:
    """Decisions on one line, the reasons of germinations included.

    Example:
        >>> in_words([Germinate(layer="net.0", reason="early"), Keep(seed=("net.2", 1), reason="proven gain")])
        'germinate net.0 (early); keep net.2[1]'
        >>> in_words([])
        'nothing'
    """
    words = []
    for decision in decisions:
        if isinstance(decision, Germinate):
            chunks = "" if decision.chunks is None else str(list(decision.chunks))
            words.append(f"germinate {decision.layer}{chunks} ({decision.reason})")
        elif isinstance(decision, (Keep, Cull)):
            verb = type(decision).__name__.lower()
            words.append(f"{verb} {decision.seed[0]}[{decision.seed[1]}]")
        else:
            words.append(type(decision).__name__.lower())
    return "; ".join(words) or "nothing"
