"""Events as lines for the terminal, few however many seeds change at a tick."""

from __future__ import annotations

from collections.abc import Iterable

from lightning_morpho.telemetry.events import AnyEvent, Event, Finding, Notice, Refusal, Restored
from lightning_morpho.wording import plural

MOST_LINES = 12


def event_lines(events: Iterable[AnyEvent], most: int = MOST_LINES) -> list[str]:
    """One line for all events of a layer that are alike; one for all layers if there would be more than ``most``.

    Args:
        events: Events of one moment.
        most: Lines from which on layers are taken together.
    """
    alike: dict[str, dict[str, int]] = {}
    lines = []
    for event in events:
        if isinstance(event, Restored):
            lines.append(str(event))
            continue
        layer, what = _words(event)
        layers = alike.setdefault(what, {})
        layers[layer] = layers.get(layer, 0) + 1
    apart = sum(map(len, alike.values())) <= most
    for what, layers in _bounded(alike, most).items():
        groups = [{name: count} for name, count in layers.items()] if apart else [layers]
        lines += [f"{_who(group)}: {_counted(what, sum(group.values()))}" for group in groups]
    return lines


def _words(event: Event | Finding | Notice | Refusal) -> tuple[str, str]:
    """Layer and what happened there; ``{seeds}`` stands for the number of seeds."""
    if isinstance(event, Refusal):
        return event.layer, f"not grown ({event.reason})"
    if isinstance(event, Finding):
        return event.layer, event.text
    if isinstance(event, Notice):
        return event.layer, f"{{seeds}} {event.event} ({event.reason})"
    t = event.transition
    return t.layer, f"{{seeds}} {t.source.name} -> {t.target.name} ({t.reason})"


def _counted(what: str, count: int) -> str:
    return what.replace("{seeds}", plural(count, "seed"), 1)


def _who(layers: dict[str, int]) -> str:
    first, *others = layers
    return f"{len(layers)} layers, {first} ... {others[-1]}" if others else first


def _bounded(alike: dict[str, dict[str, int]], most: int) -> dict[str, dict[str, int]]:
    """The first kinds of events, and one for the rest."""
    if len(alike) <= most:
        return alike
    first, rest = list(alike.items())[: most - 1], list(alike.items())[most - 1 :]
    others: dict[str, int] = {}
    for _, layers in rest:
        for layer, count in layers.items():
            others[layer] = others.get(layer, 0) + count
    return dict(first) | {f"{len(rest)} more kinds of events, see the event log": others}
