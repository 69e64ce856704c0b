"""How a tick's decisions come about: what the controller asks, and what answers it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

from lightning_morpho.layers import HybridKasminaLayer
from lightning_morpho.tamiyo import (
    Assess,
    Assessment,
    Decision,
    LayerView,
    Measure,
    Measurement,
    Observation,
    Resize,
    Resizing,
    Tamiyo,
    Tried,
    Try,
)
from lightning_morpho.tamiyo.observation import Group, SeedKey
from lightning_morpho.tamiyo.validity import checked
from lightning_morpho.telemetry.events import Finding, FindingKind
from lightning_morpho.telemetry.field_reports import TrialCost

Measurer = Callable[[Sequence[SeedKey], Sequence[Group]], list[Measurement]]
"""Measures what the held-out loss loses without each of some seeds, and without each of some groups."""

_ROUNDS = 6
"""Most times a tick that the controller may ask for measurements, each time knowing what came of the last."""


class Sizer(Protocol):
    """Answers what the sizing rule asks, on held-out data; None: not at this tick."""

    def assess(self) -> list[Assessment] | None:
        """What new hidden units would explain."""

    def resize(self, decision: Resize) -> list[Resizing] | None:
        """Remove hidden units, in place."""


class Trials(Protocol):
    """Tries growth out."""

    @property
    def refused(self) -> str | None:
        """Why nothing can be tried, None if it can."""

    def __call__(self, decision: Try) -> list[Tried]:
        """Grow in each place for a short time and put everything back."""


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What answers the questions of a tick; None where nothing does."""

    measure: Measurer | None
    sizer: Sizer | None
    trials: Trials | None


class Inquiry:
    """Asks the controller, and finds out what it wants to know, until it asks for nothing more.

    Args:
        layers: The hybrid layers by name.
        views: What the controller sees of the layers now.
        on_event: Receives what was found out.

    Attributes:
        assessments: What new hidden units would explain, each time it was asked; None before.
        resizings: What became of hidden layers; None before it was asked for.
        trials: What trials have cost, an entry for each tick that had some.
    """

    def __init__(
        self,
        layers: Mapping[str, HybridKasminaLayer],
        views: Callable[[], tuple[LayerView, ...]],
        on_event: Callable[[Finding], None],
    ) -> None:
        self.layers, self._views, self._on_event = layers, views, on_event
        self.assessments: tuple[Assessment, ...] | None = None
        self.resizings: tuple[Resizing, ...] | None = None
        self.trials: list[TrialCost] = []

    def decide(
        self, tamiyo: Tamiyo, observation: Observation, answers: Answers
    ) -> tuple[Observation, Sequence[Decision]]:
        """The decisions of a tick, and the observation, answers included, that they rest on.

        Raises:
            ValueError: If the controller gives a decision that can't be meant.
        """
        decisions = checked(tamiyo.decide(observation), observation, tamiyo)
        for _ in range(_ROUNDS):
            answered = self._answer(observation, decisions, answers)
            if answered is None:
                break
            observation = answered
            decisions = checked(tamiyo.decide(observation), observation, tamiyo)
        return observation, decisions

    def _answer(self, observation: Observation, decisions: Sequence[Decision], answers: Answers) -> Observation | None:
        """The observation with what the decisions ask for; None if they ask nothing new."""
        measures = [d for d in decisions if isinstance(d, Measure)]
        if measures and answers.measure is not None:
            return self._measure(observation, measures, answers.measure)
        if answers.sizer is not None and any(isinstance(d, Assess) for d in decisions):
            return self._assess(observation, answers.sizer)
        asked = [d for d in decisions if isinstance(d, Resize)]
        if answers.sizer is not None and self.resizings is None and asked:
            return self._resize(observation, asked[0], answers.sizer)
        wanted = [d for d in decisions if isinstance(d, Try)]
        if answers.trials is not None and observation.trials is None and wanted:
            return self._try(observation, wanted[0], answers.trials)
        return None

    def _measure(self, observation: Observation, asked: Sequence[Measure], measure: Measurer) -> Observation:
        seeds = [key for d in asked for key in d.seeds]
        together = [group for d in asked for group in d.together]
        results = tuple(measure(seeds, together))
        for result in results:
            for layer, chunk in result.seeds:
                self.layers[layer].morpho.stages.note_evidence(chunk, {"rise": result.rise, "lower": result.lower})
        done = {frozenset(m.seeds) for m in results} | {frozenset({key}) for m in results for key in m.seeds}
        unmeasured = [g for g in (*((key,) for key in seeds), *together) if frozenset(g) not in done]
        return replace(
            observation,
            measurements=observation.measurements + results,
            unmeasured=observation.unmeasured.union(unmeasured),
        )

    def _assess(self, observation: Observation, sizer: Sizer) -> Observation | None:
        answer = sizer.assess()
        if answer is None:
            return None
        found = tuple(replace(assessment, step=observation.step) for assessment in answer)
        self.assessments = (self.assessments or ()) + found
        for one in found:
            figures = {"share": one.share, "error": one.error, "own": one.own, "part": one.part}
            shares = f"{one.share:.2%} ± {one.error:.2%} of the residual, learning {one.own:.2%}"
            self._tell(observation, "assessed", one.layer, figures, f"32 new units would explain {shares}")
        return replace(observation, assessments=self.assessments)

    def _resize(self, observation: Observation, decision: Resize, sizer: Sizer) -> Observation | None:
        answer = sizer.resize(decision)
        if answer is None:
            return None
        self.resizings = tuple(answer)
        for done in self.resizings:
            figures = {k: v for k, v in asdict(done).items() if k != "layer"}
            text = (
                f"{done.kept} of {done.units} hidden units kept (held-out error {done.before:.4g} -> {done.after:.4g} "
                f"points, {done.seconds:.1f} s)"
            )
            self._tell(observation, "resized", done.layer, figures, text)
        return replace(observation, resizings=self.resizings, layers=self._views())

    def _try(self, observation: Observation, decision: Try, trials: Trials) -> Observation:
        """Try places out, and charge what it costs."""
        results = tuple(trials(decision))
        self.trials.append(_cost_of(observation.tick, results[:1] if decision.shared else results))
        for tried in results:
            figures = {"loss": tried.loss, "steps": tried.steps, "seconds": tried.seconds, "flops": tried.flops}
            text = f"held-out loss {tried.loss:.4g} after a trial of {tried.steps} steps ({tried.seconds:.1f} s)"
            if tried.rise is not None:
                figures["rise"] = tried.rise
                text = f"{text} shared by {len(results)} places, {tried.rise:+.4g} without this one"
            self._tell(observation, "tried", ", ".join(tried.place), figures, text)
        return replace(observation, trials=results)

    def _tell(self, now: Observation, kind: FindingKind, layer: str, figures: Mapping[str, float], text: str) -> None:
        self._on_event(Finding(tick=now.tick, step=now.step, kind=kind, layer=layer, figures=figures, text=text))

    def state_dict(self) -> dict[str, Any]:
        """The answers that hold for the rest of the run, as plain values."""
        return {
            "assessments": None if self.assessments is None else [asdict(a) for a in self.assessments],
            "resizings": None if self.resizings is None else [asdict(r) for r in self.resizings],
            "trials": [asdict(cost) for cost in self.trials],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave."""
        assessments, resizings = state.get("assessments"), state.get("resizings")
        self.assessments = None if assessments is None else tuple(Assessment(**a) for a in assessments)
        self.resizings = None if resizings is None else tuple(Resizing(**r) for r in resizings)
        self.trials = [TrialCost(**cost) for cost in state.get("trials", ())]


def _cost_of(tick: int, trials: Sequence[Tried]) -> TrialCost:
    return TrialCost(
        tick=tick,
        trials=len(trials),
        steps=sum(tried.steps for tried in trials),
        seconds=sum(tried.seconds for tried in trials),
        flops=sum(tried.flops for tried in trials),
    )
