"""The circle of one decision tick, for a model in any training loop."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from lightning_morpho.governor import Divergence, Governor
from lightning_morpho.layers import HybridKasminaLayer, Transition
from lightning_morpho.lifecycle import Stage
from lightning_morpho.optim import OptimizerLink
from lightning_morpho.tamiyo import (
    Assess,
    Assessment,
    Cull,
    Decision,
    Defer,
    Germinate,
    Keep,
    LayerView,
    Measure,
    Measurement,
    Observation,
    Penalize,
    Resize,
    Resizing,
    Tamiyo,
    Tried,
    Try,
)
from lightning_morpho.tamiyo.observation import Group, SeedKey
from lightning_morpho.telemetry.events import AnyEvent, Event, Finding, Notice, Refusal, Restored, SeedRecord
from lightning_morpho.telemetry.field_reports import FieldReport, TrialCost
from lightning_morpho.views import layer_view, outcomes_of, reports_of

log = logging.getLogger(__name__)

Measurer = Callable[[Sequence[SeedKey], Sequence[Group]], list[Measurement]]
"""Measures what the held-out loss loses without each of some seeds, and without each of some groups."""

_Helpers = tuple[Measurer | None, "Sizer | None", "Trials | None"]
"""What answers the questions of a tick."""

_ROUNDS = 6
"""Most times a tick that the controller may ask for measurements, each time knowing what came of the last."""


class Sizer(Protocol):
    """Answers what the sizing rule asks, on held-out data."""

    def assess(self) -> list[Assessment]:
        """What new hidden units would explain."""

    def resize(self, decision: Resize) -> list[Resizing]:
        """Remove hidden units, in place."""


class Trials(Protocol):
    """Tries growth out."""

    @property
    def refused(self) -> str | None:
        """Why nothing can be tried, None if it can."""

    def __call__(self, decision: Try) -> list[Tried]:
        """Grow in each place for a short time and put everything back."""


class GrowthEngine:
    """Brings layers, controller and optimizers together once a tick.

    Args:
        layers: The hybrid layers by name.
        tamiyo: The controller.
        optimizers: Link to the run's optimizers.
        on_event: Receives each event as it happens.
        governor: Takes a run that diverges back; None: nothing does.

    Attributes:
        on_decided: Receives what each tick's decisions rest on, and the decisions, before they are carried out.
        ticks: Decision ticks so far.
        losses: Validation loss at each of them, None where there was none.
        training_losses: Mean training loss before each of them, likewise.
        records: Everything known of each seed that has left dormancy, in order of germination.
        trials: What trials have cost, an entry for each tick that had some.
    """

    def __init__(
        self,
        layers: Mapping[str, HybridKasminaLayer],
        tamiyo: Tamiyo,
        optimizers: OptimizerLink,
        on_event: Callable[[AnyEvent], None] = lambda event: None,
        governor: Governor | None = None,
    ) -> None:
        self.layers = layers
        self.tamiyo = tamiyo
        self.optimizers = optimizers
        self.on_event = on_event
        self.governor = governor
        self.ticks = 0
        self.step = 0
        self._now = 0
        self._risky = False
        self._last_rollback = self._rollbacks_in_a_row = 0
        self.losses: list[float | None] = []
        self.training_losses: list[float | None] = []
        self.records: list[SeedRecord] = []
        self.trials: list[TrialCost] = []
        self.on_decided: Callable[[Observation, Sequence[Decision]], None] | None = None
        self._stop_patience: int | None = None
        self._last_round: int | None = None
        self._assessments: tuple[Assessment, ...] | None = None
        self._resizings: tuple[Resizing, ...] | None = None
        self._penalised = 0
        self._waited: set[str] = set()
        self._refused: set[str] = set()
        self._deferred: dict[SeedKey, int] = {}
        self._births: dict[SeedKey, tuple[float, ...]] = {}
        for layer in layers.values():
            layer.morpho.on_transition = self._record
        if governor is not None:
            governor.set_live(self._any_live())

    def close(self) -> None:
        """Let go of layers and optimizers."""
        self.optimizers.close()
        for layer in self.layers.values():
            layer.morpho.on_transition = None

    def begin(self, *, step: int, total_steps: int | None) -> None:
        """Before the first training step: what Tamiyo wants to grow from the start."""
        for decision in self.tamiyo.begin(self.observe(step, total_steps, False)):
            self._apply(decision)
        self.optimizers.drop_stale_state()
        self._settle(step)

    def tick(
        self,
        *,
        step: int,
        total_steps: int | None,
        loss: float | None,
        measure: Measurer | None,
        training_loss: float | None = None,
        stop_patience: int | None = None,
        sizer: Sizer | None = None,
        trials: Trials | None = None,
    ) -> None:
        """One decision tick: ages and alphas move, Tamiyo decides, the decisions are carried out.

        Args:
            step: Optimizer steps done.
            total_steps: Optimizer steps of the whole training, None if unknown.
            loss: Latest validation loss, equal on every rank; None if there is none.
            measure: Measures seeds on held-out data; None if no held-out loss can be had.
            training_loss: Mean training loss since the last tick, equal on every rank; None if there is none.
            stop_patience: Validations without progress after which training is stopped early, None if it is not.
            sizer: Sizes hidden layers by held-out data; None where that can't be done.
            trials: Tries growth out; None where that can't be done.
        """
        self.watch(None, step)
        self.ticks += 1
        self.step = step
        self.losses.append(loss)
        self.training_losses.append(training_loss)
        self._stop_patience = stop_patience
        self._waited |= self.layers.keys() - self.on.keys()
        for layer in self.on.values():
            layer.advance(self.losses)
        observation = replace(
            self.observe(step, total_steps, measure is not None),
            can_size=sizer is not None,
            no_trial="nothing was given to try it with" if trials is None else trials.refused,
        )
        decisions = self._decide(observation, (measure, sizer, trials))
        with ExitStack() as together:
            for layer in self.layers.values():
                together.enter_context(layer.morpho.together())
            for decision in decisions:
                self._apply(decision)
        self._note_births(measure)
        self._penalised = self._penalised + 1 if self.optimizers.penalty.strength else 0
        self.optimizers.drop_stale_state()
        self._settle(step)

    # ------------------------------------------------------------------ governor
    def watch(self, loss: Tensor | float | None, step: int, *, thoroughly: bool = False) -> bool:
        """Show the governor the loss of a training step; if the run has diverged, take it back.

        Args:
            loss: Loss of the step; None to look at what it was shown before, at once.
            step: Optimizer steps done.
            thoroughly: Whether to look at the weights too, which waits for the device.

        Returns:
            Whether the run was taken back.
        """
        self._now = step
        if self.governor is None:
            return False
        if self._risky:
            self._settle(step)
        found = self.governor.check() if loss is None else self.governor.observe(loss, step)
        if found is None and thoroughly and self.governor.watching:
            found = self.governor.check_weights()
        if found is not None:
            self._roll_back(self.governor, found)
        return found is not None

    def snapshot(self, step: int) -> None:
        """Hold host and fossils as they are now, unless the last losses speak against it; before a checkpoint."""
        if self.governor is not None and self.governor.watch.calm:
            self.governor.take(step)

    def _settle(self, step: int) -> None:
        """Tell the governor what lives, and let it hold the state before anything risky.

        That is a germination, a start of grafting, a fossilization: the host has not moved since before it. Or a
        resizing: the units that it removed are not to come back.
        """
        self._now = step
        if self.governor is None:
            return
        self.governor.set_live(self._any_live())
        if self._risky:
            self._take_snapshot(self.governor)

    def _take_snapshot(self, governor: Governor) -> None:
        self._risky = False
        if not governor.watching:
            return
        found = governor.check_weights()
        if found is None:
            governor.take(self._now)
        elif governor.snapshot is not None:
            self._roll_back(governor, found)

    def _roll_back(self, governor: Governor, found: Divergence) -> None:
        """End the live seeds, put host and fossils back, and say so."""
        for layer in self.layers.values():
            layer.morpho.roll_back(figures=found.figures)
        self.optimizers.drop_stale_state()
        snapshot = governor.restore()
        again = governor.rollbacks > 1 and self._now - self._last_rollback < governor.config.window
        self._rollbacks_in_a_row = self._rollbacks_in_a_row + 1 if again else 1
        self._last_rollback = self._now
        self.on_event(
            Restored(
                tick=self.ticks,
                step=self._now,
                snapshot_step=None if snapshot is None else snapshot.step,
                reason=found.reason,
                figures=found.figures,
            )
        )
        if self._rollbacks_in_a_row >= governor.config.max_rollbacks:
            governor.stand_down()
        self._risky = False
        governor.set_live(False)

    def _any_live(self) -> bool:
        return any(_live(layer) for layer in self.layers.values())

    # ------------------------------------------------------------------ decisions
    def _decide(self, observation: Observation, helpers: _Helpers) -> Sequence[Decision]:
        """Ask the controller, and find out what it asks for, until it asks for nothing more."""
        decisions = self.tamiyo.decide(observation)
        for _ in range(_ROUNDS):
            answered = self._answer(observation, decisions, helpers)
            if answered is None:
                break
            observation = answered
            decisions = self.tamiyo.decide(observation)
        if self.on_decided is not None:
            self.on_decided(observation, decisions)
        return decisions

    def _measured(self, observation: Observation, asked: Sequence[Measure], measure: Measurer) -> Observation:
        seeds = [key for d in asked for key in d.seeds]
        together = [group for d in asked for group in d.together]
        results = tuple(measure(seeds, together))
        self._note_evidence(results)
        done = {frozenset(m.seeds) for m in results} | {frozenset({key}) for m in results for key in m.seeds}
        unmeasured = [g for g in (*((key,) for key in seeds), *together) if frozenset(g) not in done]
        return replace(
            observation,
            measurements=observation.measurements + results,
            unmeasured=observation.unmeasured.union(unmeasured),
        )

    def _note_births(self, measure: Measurer | None) -> None:
        """Measure the held-out loss where something germinated: what it did is judged by what was before."""
        live = {(name, chunk) for name, layer in self.layers.items() for chunk in _live(layer)}
        self._deferred = {key: count for key, count in self._deferred.items() if key in live}
        self._births = {key: losses for key, losses in self._births.items() if key in live}
        born = [(r.layer, r.chunk) for r in self.records if r.born_tick == self.ticks and (r.layer, r.chunk) in live]
        if born and measure is not None:
            for measurement in measure((), ((),)):
                self._births.update(dict.fromkeys(born, measurement.losses))

    def _answer(self, observation: Observation, decisions: Sequence[Decision], helpers: _Helpers) -> Observation | None:
        """The observation with what the decisions ask for; None if they ask nothing new."""
        measure, sizer, trials = helpers
        measures = [d for d in decisions if isinstance(d, Measure)]
        if measures and measure is not None:
            return self._measured(observation, measures, measure)
        if sizer is not None and self._assessments is None and any(isinstance(d, Assess) for d in decisions):
            self._assessments = tuple(sizer.assess())
            for found in self._assessments:
                text = f"32 new units would explain {found.share:.1%} of what is left to explain"
                self._tell("assessed", found.layer, {"share": found.share}, text)
            return replace(observation, assessments=self._assessments)
        asked = [d for d in decisions if isinstance(d, Resize)]
        if sizer is not None and self._resizings is None and asked:
            return self._resize(observation, asked[0], sizer)
        wanted = [d for d in decisions if isinstance(d, Try)]
        if trials is not None and observation.trials is None and wanted:
            return replace(observation, trials=self._try(wanted[0], trials))
        return None

    def _try(self, decision: Try, trials: Trials) -> tuple[Tried, ...]:
        """Try places out, and charge what it costs."""
        results = tuple(trials(decision))
        self.trials.append(_cost_of(self.ticks, results))
        for tried in results:
            figures = {"loss": tried.loss, "steps": tried.steps, "seconds": tried.seconds, "flops": tried.flops}
            place = ", ".join(tried.place)
            text = f"held-out loss {tried.loss:.4g} after a trial of {tried.steps} steps ({tried.seconds:.1f} s)"
            self._tell("tried", place, figures, text)
        return results

    def _resize(self, observation: Observation, decision: Resize, sizer: Sizer) -> Observation:
        self._resizings = tuple(sizer.resize(decision))
        self.optimizers.note_dead_units()
        self._risky = True
        for done in self._resizings:
            figures = {k: v for k, v in asdict(done).items() if k != "layer"}
            text = (
                f"{done.kept} of {done.units} hidden units kept (held-out error {done.before:.4g} -> {done.after:.4g} "
                f"points, {done.seconds:.1f} s)"
            )
            self._tell("resized", done.layer, figures, text)
        return replace(observation, resizings=self._resizings, layers=self._views())

    def _tell(self, kind: str, layer: str, figures: Mapping[str, float], text: str) -> None:
        self.on_event(Finding(tick=self.ticks, step=self.step, kind=kind, layer=layer, figures=figures, text=text))

    def _note_evidence(self, measurements: Sequence[Measurement]) -> None:
        for result in measurements:
            for layer, chunk in result.seeds:
                self.layers[layer].morpho.stages.note_evidence(chunk, {"rise": result.rise, "lower": result.lower})

    def _apply(self, decision: Decision) -> None:
        if isinstance(decision, Germinate):
            self._germinate(decision)
        elif isinstance(decision, Penalize):
            self.optimizers.penalty.set(decision.strength, host=decision.host, grown=decision.grown)
        elif isinstance(decision, (Keep, Cull)):
            layer, chunk = decision.seed
            seeds = self.layers[layer].morpho
            act = seeds.keep if isinstance(decision, Keep) else seeds.cull
            act([chunk], reason=decision.reason, figures=decision.figures)
        elif isinstance(decision, Defer):
            self._defer(decision)

    def _defer(self, decision: Defer) -> None:
        layer, chunk = decision.seed
        self._deferred[decision.seed] = self._deferred.get(decision.seed, 0) + 1
        self.on_event(
            Notice(
                event="deferred",
                tick=self.ticks,
                step=self.step,
                layer=layer,
                chunk=chunk,
                reason=decision.reason,
                figures=decision.figures,
            )
        )

    def _germinate(self, decision: Germinate) -> None:
        """Grow, unless the learning rate has decayed so far that newborns would hardly learn."""
        name, seeds = decision.layer, self.layers[decision.layer].morpho
        share, least = self.optimizers.rate_share(name), seeds.config.warmup.min_rate
        if share >= least or decision.force:
            self._refused.discard(name)
            seeds.renew()  # where a seed was kept at this tick the next one may grow at once
            seeds.germinate(decision.chunks, reason=decision.reason)
        elif name not in self._refused:
            self._refused.add(name)
            reason = (
                f"the learning rate has decayed to {share:.0%} of its peak, newborns would learn too little: grow "
                f"earlier, or lower `warmup.min_rate` ({least:g})"
            )
            self.on_event(Refusal(tick=self.ticks, step=self.step, layer=name, reason=reason))

    def observe(self, step: int, total_steps: int | None, can_measure: bool) -> Observation:
        """What Tamiyo is to see."""
        return Observation(
            tick=self.ticks,
            step=step,
            total_steps=total_steps,
            losses=tuple(self.losses),
            training_losses=tuple(self.training_losses),
            last_round=self._last_round,
            stop_patience=self._stop_patience,
            outcomes=outcomes_of(self.reports().values()),
            layers=self._views(),
            can_measure=can_measure,
            deferred=dict(self._deferred),
            births=dict(self._births),
            assessments=self._assessments,
            resizings=self._resizings,
            penalised=self._penalised,
        )

    def reports(self) -> dict[tuple[str, int, int], FieldReport]:
        """Field reports of the seeds that have ended, by layer, chunk and generation."""
        return reports_of(self.records, self.losses, self.layers, self.step, self.trials)

    def _views(self) -> tuple[LayerView, ...]:
        places = enumerate(self.layers.items())
        return tuple(
            layer_view(name, layer, position, waited=name in self._waited)
            for position, (name, layer) in places
            if not layer.morpho.off
        )

    @property
    def on(self) -> dict[str, HybridKasminaLayer]:
        """The layers that are switched on; in the others all seeds stand still, and Tamiyo does not see them."""
        return {name: layer for name, layer in self.layers.items() if not layer.morpho.off}

    @property
    def live_parameters(self) -> int:
        """Parameters that growth has added and not taken back."""
        return sum(layer.morpho.live_parameters for layer in self.layers.values())

    def counts(self) -> dict[Stage, int]:
        """Number of seeds in each stage, over all layers."""
        growing = [layer.morpho for layer in self.layers.values() if len(layer.morpho.beds)]
        stages = np.concatenate([seeds.state.stage for seeds in growing])
        numbers = np.bincount(stages, minlength=len(Stage))
        return {stage: int(numbers[stage]) for stage in Stage}

    def _record(self, transition: Transition) -> None:
        event = Event(tick=self.ticks, step=self._now, transition=transition)
        self._risky |= transition.source is Stage.DORMANT or transition.target in (Stage.GRAFTING, Stage.FOSSILIZED)
        if transition.source is Stage.DORMANT:
            self.records.append(SeedRecord.born(event))
            self._last_round = self.ticks
        else:
            key = (transition.layer, transition.chunk, transition.generation)
            for i in range(len(self.records) - 1, -1, -1):
                if self.records[i].key == key:
                    self.records[i] = self.records[i].updated(event)
                    break
        self.on_event(event)

    def state_dict(self) -> dict[str, Any]:
        """Counters and records as plain values."""
        return {
            "ticks": self.ticks,
            "step": self.step,
            "losses": list(self.losses),
            "training_losses": list(self.training_losses),
            "records": [asdict(record) for record in self.records],
            "trials": [asdict(cost) for cost in self.trials],
            "waited": sorted(self._waited),
            "deferred": [[*key, count] for key, count in self._deferred.items()],
            "rollbacks": [self._last_rollback, self._rollbacks_in_a_row],
            "governor": None if self.governor is None else self.governor.state_dict(),
            "births": [[*key, list(losses)] for key, losses in self._births.items()],
            "peak_rates": self.optimizers.peak_rates,
            "assessments": None if self._assessments is None else [asdict(a) for a in self._assessments],
            "resizings": None if self._resizings is None else [asdict(r) for r in self._resizings],
            "penalised": self._penalised,
            "penalty": self.optimizers.penalty.state_dict(),
            "faults": {name: layer.morpho.faults.state_dict() for name, layer in self.layers.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave."""
        self.ticks, self.step = state["ticks"], state["step"]
        self.losses = list(state["losses"])
        self.training_losses = list(state["training_losses"])
        self.optimizers.peak_rates = [list(rates) for rates in state["peak_rates"]]
        self.records = [SeedRecord(**record) for record in state["records"]]
        self.trials = [TrialCost(**cost) for cost in state.get("trials", ())]
        self._last_round = max((record.born_tick for record in self.records), default=None)
        self._waited = set(state.get("waited", ()))
        self._deferred = {(layer, chunk): count for layer, chunk, count in state.get("deferred", ())}
        self._now = self.step
        self._last_rollback, self._rollbacks_in_a_row = state.get("rollbacks", (0, 0))
        if self.governor is not None and state.get("governor") is not None:
            self.governor.set_live(self._any_live())  # a sharded model is restored after the engine is made
            self.governor.load_state_dict(state["governor"])
        self._births = {(layer, chunk): tuple(losses) for layer, chunk, losses in state.get("births", ())}
        assessments, resizings = state.get("assessments"), state.get("resizings")
        self._assessments = None if assessments is None else tuple(Assessment(**a) for a in assessments)
        self._resizings = None if resizings is None else tuple(Resizing(**r) for r in resizings)
        self._penalised = state.get("penalised", 0)
        self.optimizers.penalty.set(**state.get("penalty", self.optimizers.penalty.state_dict()))
        self.optimizers.note_dead_units()
        for name, faults in state.get("faults", {}).items():
            if name in self.layers:
                self.layers[name].morpho.faults.load_state_dict(faults)


def _live(layer: HybridKasminaLayer) -> list[int]:
    """Chunks whose seeds are neither dormant, nor kept, nor gone."""
    seeds = layer.morpho
    return [int(chunk) for chunk in seeds.state.where(*seeds.lifecycle_table.live)]


def _cost_of(tick: int, trials: Sequence[Tried]) -> TrialCost:
    return TrialCost(
        tick=tick,
        trials=len(trials),
        steps=sum(tried.steps for tried in trials),
        seconds=sum(tried.seconds for tried in trials),
        flops=sum(tried.flops for tried in trials),
    )
