"""What happened in a run, in the words of the terminal: events that belong together are one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from lightning_morpho.telemetry.saved_run import Entry, kind_of
from lightning_morpho.wording import plural


@dataclass(frozen=True)
class Happening:
    """Events of one moment, layer, kind and reason.

    Attributes:
        step: Optimizer steps done.
        kind: Stage entered, or in capitals what else it was: ``REFUSED``, ``ROLLOUT``, ``RESUMED``, ``DEFERRED`` ...
        layer: The layer; empty where it concerns the run.
        what: What happened.
        why: Why.
        count: How many seeds it happened to.
    """

    step: int
    kind: str
    layer: str
    what: str
    why: str
    count: int

    def __str__(self) -> str:
        """One line."""
        if not self.layer:
            return f"step {self.step:,}: {self.what} ({self.why})"
        seeds = f"{plural(self.count, 'seed')} " if " -> " in self.what else ""
        return f"step {self.step:,}: {self.layer}: {seeds}{self.what}" + (f" ({self.why})" if self.why else "")


def happenings(entries: Iterable[Entry]) -> list[Happening]:
    """What the lines of an event log tell, in order.

    Example:
        >>> born = {"event": "transition", "step": 600, "layer": "net.2", "chunk": 0, "generation": 0,
        ...         "from": "DORMANT", "to": "LOADING", "reason": "a plateau"}
        >>> [str(happening) for happening in happenings([born, born | {"chunk": 1}])]
        ['step 600: net.2: 2 seeds DORMANT -> LOADING (a plateau)']
    """
    together: Counter[tuple[int, str, str, str, str]] = Counter()
    for entry in entries:
        step, kind = entry["step"], kind_of(entry)
        layer, why = entry.get("layer", ""), entry.get("reason") or entry.get("text") or ""
        if kind == "transition":
            together[step, entry["to"], layer, f"{entry['from']} -> {entry['to']}", why] += 1
        elif kind == "refused":
            together[step, "REFUSED", layer, "not grown", why] += 1
        elif kind == "rollout":
            together[step, "ROLLOUT", "", f"rollout, {entry['cause']}", why] += 1
        elif kind == "fit_start":
            if step:
                together[step, "RESUMED", "", "resumed", "from a checkpoint"] += 1
        elif "event" in entry and layer:  # a finding or a notice; what else there is, is for programs
            together[step, kind.upper(), layer, kind.replace("_", " "), why] += 1
    return [Happening(*told, count) for told, count in together.items()]
