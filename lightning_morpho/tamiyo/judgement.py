"""The judgement that all controllers share: which of the seeds that are due are kept. A pure function."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

from lightning_morpho.evidence import Bounds, paired_bounds
from lightning_morpho.tamiyo.observation import (
    Cull,
    Decision,
    Defer,
    Group,
    Keep,
    Measure,
    Measurement,
    Observation,
    SeedKey,
)
from lightning_morpho.wording import JUDGED_WITH

MATTERS = 0.5
"""An interaction matters if it is proven and larger than this share of the smaller of the two seeds' own effects."""


def judge(observation: Observation) -> list[Decision]:
    """Decide on the seeds that are due, by their contribution to the held-out loss.

    A seed is kept if the lower confidence bound of the rise in loss without it is above 0, else culled. Four things
    that such leave-one-out figures are blind for are looked after:

    * *Seeds that lean on each other.* Where one seed's layer feeds another's, the pair is left out together too. If
      the second difference is proven and large, both belong to a group that is judged by the rise without all of
      it: a group without a proven gain is culled even if each of its seeds is needed by the others.
    * *Seeds that replace each other.* Before several seeds without a proven gain are culled, they are left out
      together; if that would cost something, only the least of them goes, and the others are judged again.
    * *A host that leans on a seed which did it no good.* A seed is needed now, yet the loss with it is proven to be
      above the loss of the same batches at its germination. The first time the decision is put off, the second time
      the seed is culled, slowly, so that the host can adapt.
    * *Cost.* What did not fit into the passes of one tick is put off, the longest waiting first next time.

    Where nothing can be measured a seed is kept, with the reason ``unjudged``. Each bound holds with its own
    confidence; there is no correction for the number of seeds, so of many useless ones about ``1 - confidence`` are
    kept.
    """
    due = [(layer.name, seed.chunk) for layer in observation.layers for seed in layer.seeds if seed.due]
    due.sort(key=lambda key: -observation.deferred.get(key, 0))
    if not observation.can_measure:
        return [Keep(seed=key, reason="unjudged: no held-out loss") for key in due]
    evidence = Evidence(observation)
    missing = tuple(key for key in due if evidence.unit_of(key) is None and not evidence.refused((key,)))
    if missing:
        return [Measure(seeds=missing)]
    verdicts = _Verdicts(evidence, due)
    wanted = verdicts.wanted()
    return [Measure(together=wanted)] if wanted else verdicts.decisions()


class Evidence:
    """What the measurements of a tick say.

    Args:
        observation: The observation that holds them.
    """

    def __init__(self, observation: Observation) -> None:
        self.observation = observation
        self._by_seeds = {frozenset(m.seeds): m for m in observation.measurements}
        self._refused = {frozenset(group) for group in observation.unmeasured}
        self._units: dict[SeedKey, Measurement] = {}
        for m in sorted(observation.measurements, key=lambda m: -len(m.seeds)):
            self._units.update(dict.fromkeys(m.seeds, m))

    def unit_of(self, key: SeedKey) -> Measurement | None:
        """The measurement of the fewest seeds that holds this one."""
        return self._units.get(key)

    def refused(self, seeds: Iterable[SeedKey]) -> bool:
        """Whether it was asked for and did not fit into the tick's passes."""
        return frozenset(seeds) in self._refused

    def joint(self, seeds: Iterable[SeedKey]) -> Measurement | None:
        """The measurement that left out exactly these seeds."""
        return self._by_seeds.get(frozenset(seeds))

    def open(self, seeds: Iterable[SeedKey]) -> bool:
        """Whether it could still be measured at this tick."""
        return self.joint(seeds) is None and not self.refused(seeds)

    def interaction(self, one: Measurement, other: Measurement) -> Bounds | None:
        """Second difference of two units: above 0 they replace each other, below they lean on each other."""
        both = self.joint(one.seeds + other.seeds)
        if both is None or not both.differences:
            return None
        rows = zip(both.differences, one.differences, other.differences, strict=True)
        return paired_bounds([b - u - v for b, u, v in rows], both.confidence)

    def since_birth(self, unit: Measurement) -> Bounds | None:
        """Change of the loss since the germination of the seeds, on the same batches; None if not comparable."""
        before = self.observation.births.get(unit.seeds[0], ())
        if not before or len(before) != len(unit.losses):
            return None
        changes = [now - then for now, then in zip(unit.losses, before, strict=True)]
        return paired_bounds(changes, unit.confidence)


@dataclass
class _Group:
    """Units that are judged together; most often one alone."""

    units: list[Measurement]
    interactions: list[Bounds] = field(default_factory=list)

    @property
    def seeds(self) -> Group:
        return tuple(key for unit in self.units for key in unit.seeds)


class _Verdicts:
    """The judgement of one tick, as far as its measurements have come."""

    def __init__(self, evidence: Evidence, due: Sequence[SeedKey]) -> None:
        self.evidence = evidence
        self.waiting = [key for key in due if evidence.unit_of(key) is None]
        found = [evidence.unit_of(key) for key in due]
        self.units = list({m.seeds: m for m in found if m is not None}.values())
        self.groups = self._groups()

    # ---------------------------------------------------------------- what belongs together
    def _stacked(self) -> list[tuple[Measurement, Measurement]]:
        """Pairs of which one feeds the other, the largest effects first; as many as there are units."""
        pairs = [(u, v) for u, v in combinations(self.units, 2) if _feeds(u, v) or _feeds(v, u)]
        pairs.sort(key=lambda pair: -sum(abs(u.rise) for u in pair if not math.isnan(u.rise)))
        return pairs[: len(self.units)]

    def _groups(self) -> list[_Group]:
        """Units joined by interactions that matter."""
        groups = {unit.seeds: _Group([unit]) for unit in self.units}
        for u, v in self._stacked():
            found = self.evidence.interaction(u, v)
            if found is None or not _matters(found, u, v):
                continue
            one, other = groups[u.seeds], groups[v.seeds]
            if one is not other:
                one.units += other.units
                one.interactions += other.interactions
                groups.update({unit.seeds: one for unit in other.units})
            one.interactions.append(found)
        return list({id(group): group for group in groups.values()}.values())

    # ---------------------------------------------------------------- what is still to be measured
    def wanted(self) -> tuple[Group, ...]:
        """Groups to leave out before all can be decided; pairs first, then what they join, then what would go."""
        pairs = [u.seeds + v.seeds for u, v in self._stacked()]
        for candidates in (pairs, [g.seeds for g in self.groups if len(g.units) > 1], [self._doomed_seeds()]):
            wanted = tuple(seeds for seeds in candidates if seeds and self.evidence.open(seeds))
            if wanted:
                return wanted
        return ()

    def _doomed(self) -> list[Measurement]:
        """Single units without a proven gain, those with a proven harm left aside."""
        alone = [group.units[0] for group in self.groups if len(group.units) == 1]
        return [u for u in alone if not u.lower > 0 and u.bounds.upper >= 0]

    def _doomed_seeds(self) -> Group:
        doomed = self._doomed()
        return tuple(key for unit in doomed for key in unit.seeds) if len(doomed) > 1 else ()

    # ---------------------------------------------------------------- decisions
    def decisions(self) -> list[Decision]:
        """One for each seed that is due."""
        decisions: list[Decision] = [
            Defer(seed=key, reason="not measured yet: the tick's passes or its time are used up")
            for key in self.waiting
        ]
        doomed = self._doomed()
        together = self.evidence.joint(self._doomed_seeds())
        spared = {u.seeds for u in doomed} if together is not None and together.lower > 0 else set()
        if spared:
            spared.discard(min(doomed, key=lambda u: u.rise).seeds)
        for group in self.groups:
            if len(group.units) > 1:
                decisions += self._together(group)
            else:
                decisions += self._alone(group.units[0], together if group.units[0].seeds in spared else None)
        return decisions

    def _alone(self, unit: Measurement, replaced: Measurement | None) -> list[Decision]:
        figures = _figures(unit)
        if replaced is not None:
            figures |= {"joint": replaced.rise, "joint_lower": replaced.lower}
            return _all(Defer, unit, "others may replace it: judged again without the least of them", figures)
        if math.isnan(unit.lower) and unit.batches < 2:
            return _all(Keep, unit, "unjudged: fewer than two validation batches", figures)
        if unit.lower > 0:
            return self._keep(unit, "proven gain", figures)
        return _all(Cull, unit, "proven harm" if unit.bounds.upper < 0 else "no proven gain", figures)

    def _keep(self, unit: Measurement, reason: str, figures: Mapping[str, float]) -> list[Decision]:
        """Keep, unless the host only came to lean on what did it no good."""
        since = self.evidence.since_birth(unit)
        if since is not None:
            figures = {**figures, "since_birth": since.mean, "since_birth_lower": since.lower}
        if since is None or not since.lower > 0:
            return _all(Keep, unit, reason, figures)
        leans = "the host leans on it, yet the loss is above that at its germination"
        if self.evidence.observation.deferred.get(unit.seeds[0], 0):
            return _all(Cull, unit, leans, figures)
        return _all(Defer, unit, leans, figures)

    def _together(self, group: _Group) -> list[Decision]:
        joint = self.evidence.joint(group.seeds)
        who = f"{JUDGED_WITH} {_names(group.seeds)}"
        if joint is None:
            return [d for u in group.units for d in _all(Defer, u, f"not measured together yet, {who}", _figures(u))]
        strongest = max(group.interactions, key=lambda b: abs(b.mean)).mean
        shared = {"joint": joint.rise, "joint_lower": joint.lower, "interaction": strongest}
        own = {u.seeds: _figures(u) | shared | {"judged_with": len(group.seeds) - 1} for u in group.units}
        proven = [u for u in group.units if u.lower > 0]
        if joint.lower > 0:
            return list(self._proven_group(group, own, who))
        unneeded = [u for u in group.units if not u.rise > 0]
        decisions: list[Decision] = []
        for u in group.units:
            if proven and unneeded and u not in unneeded:
                decisions += _all(Defer, u, f"judged again when the others have gone, {who}", own[u.seeds])
            else:
                decisions += _all(Cull, u, f"no proven gain of the group, {who}", own[u.seeds])
        return decisions

    def _proven_group(
        self, group: _Group, figures: Mapping[Group, Mapping[str, float]], who: str
    ) -> Iterator[Decision]:
        """The group pays: what it does without goes, the least of that first."""
        unproven = [u for u in group.units if not u.lower > 0]
        least = min(unproven, key=lambda u: u.rise, default=None)
        for u in group.units:
            if u.lower > 0:
                yield from self._keep(u, f"proven gain of the group, {who}", figures[u.seeds])
            elif u is least or u.bounds.upper < 0:
                yield from _all(Cull, u, f"the group does without it, {who}", figures[u.seeds])
            else:
                yield from _all(Defer, u, f"judged again when the least has gone, {who}", figures[u.seeds])


def _names(seeds: Sequence[SeedKey], most: int = 4) -> str:
    """The first of some seeds by name, and how many more there are."""
    more = [f"{len(seeds) - most} more"] if len(seeds) > most else []
    return ", ".join([*(f"{layer}[{chunk}]" for layer, chunk in seeds[:most]), *more])


def _feeds(one: Measurement, other: Measurement) -> bool:
    return any(layer in one.reaches for layer, _ in other.seeds)


def _matters(interaction: Bounds, one: Measurement, other: Measurement) -> bool:
    proven = interaction.lower > 0 or interaction.upper < 0
    return proven and abs(interaction.mean) > MATTERS * min(abs(one.rise), abs(other.rise))


def _figures(unit: Measurement) -> dict[str, float]:
    figures = {"rise": unit.rise, "lower": unit.lower, "batches": unit.batches, "confidence": unit.confidence}
    upper = {} if math.isnan(unit.bounds.upper) else {"upper": unit.bounds.upper}
    return figures | upper | {"judged_with": len(unit.seeds) - 1}


def _all(
    decision: type[Keep | Cull | Defer], unit: Measurement, reason: str, figures: Mapping[str, float]
) -> list[Decision]:
    return [decision(seed=key, reason=reason, figures=figures) for key in unit.seeds]
