"""The circle of one decision tick, for a model in any training loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor

from lightning_morpho.flops import FlopBudget
from lightning_morpho.governor import Governor
from lightning_morpho.inquiry import Answers, Inquiry, Measurer, Sizer, Trials
from lightning_morpho.layers import HybridKasminaLayer, Transition
from lightning_morpho.lifecycle import Stage
from lightning_morpho.newborns import relieve_starved
from lightning_morpho.optim import OptimizerLink
from lightning_morpho.recovery import Recovery
from lightning_morpho.tamiyo import Cull, Decision, Defer, Germinate, Keep, LayerView, Observation, Penalize, Tamiyo
from lightning_morpho.tamiyo.observation import SeedKey
from lightning_morpho.tamiyo.validity import checked
from lightning_morpho.telemetry.events import AnyEvent, Event, Notice, Refusal, SeedRecord
from lightning_morpho.telemetry.field_reports import FieldReport
from lightning_morpho.views import layer_view, live_chunks, outcomes_of, reports_of


class GrowthEngine:
    """Brings layers, controller and optimizers together once a tick.

    Args:
        layers: The hybrid layers by name.
        tamiyo: The controller.
        optimizers: Link to the run's optimizers.
        on_event: Receives each event as it happens.
        governor: Takes a run that diverges back; None: nothing does.
        flops: Most operations that growth may add to a forward pass, as a share of those of the layers; None: no limit.
            Positions are to be counted first, see ``budget``.

    Attributes:
        budget: What a forward pass costs, see :class:`~lightning_morpho.flops.FlopBudget`.
        on_decided: Receives what each tick's decisions rest on, and the decisions, before they are carried out.
        ticks: Decision ticks so far.
        losses: Validation loss at each of them, None where there was none.
        training_losses: Mean training loss before each of them, likewise.
        records: Everything known of each seed that has left dormancy, in order of germination.
        inquiry: How decisions come about.
        recovery: How the run is taken back.
    """

    def __init__(
        self,
        layers: Mapping[str, HybridKasminaLayer],
        tamiyo: Tamiyo,
        optimizers: OptimizerLink,
        on_event: Callable[[AnyEvent], None] = lambda event: None,
        governor: Governor | None = None,
        flops: float | None = None,
    ) -> None:
        self.layers = layers
        self.tamiyo = tamiyo
        self.optimizers = optimizers
        self.on_event = on_event
        self.ticks = 0
        self.step = 0
        self.losses: list[float | None] = []
        self.training_losses: list[float | None] = []
        self.records: list[SeedRecord] = []
        self.on_decided: Callable[[Observation, Sequence[Decision]], None] | None = None
        self._stop_patience: int | None = None
        self._last_round: int | None = None
        self._penalised = 0
        self._waited: set[str] = set()
        self._refused: set[str] = set()
        self._deferred: dict[SeedKey, int] = {}
        self._births: dict[SeedKey, tuple[float, ...]] = {}
        self.budget = FlopBudget(layers, flops)
        for name, layer in layers.items():
            layer.morpho.on_transition = self._record
            layer.morpho.objection = partial(self.budget.problem, name)
        self.inquiry = Inquiry(layers, self._views, lambda event: self.on_event(event))
        self.recovery = Recovery(layers, optimizers, governor, lambda event: self.on_event(event))

    def close(self) -> None:
        """Let go of layers and optimizers."""
        self.optimizers.close()
        for layer in self.layers.values():
            layer.morpho.on_transition = layer.morpho.objection = None

    def begin(self, *, step: int, total_steps: int | None) -> None:
        """Before the first training step: what Tamiyo wants to grow from the start."""
        observation = self.observe(step, total_steps, False)
        for decision in checked(self.tamiyo.begin(observation), observation, self.tamiyo):
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
        validates_later: bool = False,
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
            validates_later: Whether the first validation is still to come.
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
        self._relieve_starved()
        observation = replace(
            self.observe(step, total_steps, measure is not None),
            can_size=sizer is not None,
            validates_later=validates_later,
            no_trial="nothing was given to try it with" if trials is None else trials.refused,
        )
        decisions = self._decide(observation, Answers(measure=measure, sizer=sizer, trials=trials))
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
        self.recovery.step, self.recovery.tick = step, self.ticks
        return self.recovery.watch(loss, thoroughly=thoroughly)

    def snapshot(self, step: int) -> None:
        """Hold host and fossils as they are now, unless the last losses speak against it; before a checkpoint."""
        self.recovery.snapshot(step)

    def _settle(self, step: int) -> None:
        self.recovery.step, self.recovery.tick = step, self.ticks
        self.recovery.settle()

    # ------------------------------------------------------------------ decisions
    def _decide(self, observation: Observation, answers: Answers) -> Sequence[Decision]:
        """Ask the controller; what was resized on the way is not to come back."""
        resized = self.inquiry.resizings
        observation, decisions = self.inquiry.decide(self.tamiyo, observation, answers)
        if self.inquiry.resizings is not resized:
            self.optimizers.note_dead_units()
            self.recovery.risky = True
        if self.on_decided is not None:
            self.on_decided(observation, decisions)
        return decisions

    def _note_births(self, measure: Measurer | None) -> None:
        """Measure the held-out loss where something germinated: what it did is judged by what was before."""
        live = {(name, chunk) for name, layer in self.layers.items() for chunk in live_chunks(layer)}
        self._deferred = {key: count for key, count in self._deferred.items() if key in live}
        self._births = {key: losses for key, losses in self._births.items() if key in live}
        born = [(r.layer, r.chunk) for r in self.records if r.born_tick == self.ticks and (r.layer, r.chunk) in live]
        if born and measure is not None:
            for measurement in measure((), ((),)):
                self._births.update(dict.fromkeys(born, measurement.losses))

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

    def _relieve_starved(self) -> None:
        for starved in relieve_starved(self.on):
            for chunk in starved.chunks:
                self.on_event(
                    Notice(
                        event="starved",
                        tick=self.ticks,
                        step=self.step,
                        layer=starved.layer,
                        chunk=chunk,
                        reason=starved.reason,
                        figures=starved.figures,
                    )
                )

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
        """Grow, unless a budget is spent or the learning rate has decayed so far that newborns would hardly learn."""
        name, seeds = decision.layer, self.layers[decision.layer].morpho
        reason = self.budget.problem(name) or (None if decision.force else self._decayed(name))
        if reason is not None:
            self._refuse(name, reason)
            return
        self._refused.discard(name)
        seeds.renew()  # where a seed was kept at this tick the next one may grow at once
        seeds.germinate(decision.chunks, reason=decision.reason)

    def _decayed(self, name: str) -> str | None:
        """Why the learning rate of a layer's beds speaks against newborns, None if it does not."""
        share, least = self.optimizers.rate_share(name), self.layers[name].morpho.config.warmup.min_rate
        if share >= least:
            return None
        return (
            f"the learning rate has decayed to {share:.0%} of its peak, newborns would learn too little: grow "
            f"earlier, or lower `warmup.min_rate` ({least:g})"
        )

    def _refuse(self, name: str, reason: str) -> None:
        """Say once why a layer does not grow, until it grows again."""
        if name not in self._refused:
            self._refused.add(name)
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
            assessments=self.inquiry.assessments,
            resizings=self.inquiry.resizings,
            penalised=self._penalised,
        )

    def reports(self) -> dict[tuple[str, int, int], FieldReport]:
        """Field reports of the seeds that have ended, by layer, chunk and generation."""
        return reports_of(self.records, self.losses, self.layers, self.step, self.inquiry.trials)

    def _views(self) -> tuple[LayerView, ...]:
        """The layers as they are to be seen: a budget that is spent leaves no bed."""
        views = [
            layer_view(name, layer, position, waited=name in self._waited)
            for position, (name, layer) in enumerate(self.layers.items())
            if not layer.morpho.off
        ]
        problems = self.budget.problems(view.name for view in views if view.growable)
        if self.budget.positions is not None:
            for name, problem in problems.items():
                self._refuse(name, problem)
        return tuple(replace(view, free_beds=0) if view.name in problems else view for view in views)

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
        event = Event(tick=self.ticks, step=self.recovery.step, transition=transition)
        self.recovery.risky |= transition.source is Stage.DORMANT or transition.target in (
            Stage.GRAFTING,
            Stage.FOSSILIZED,
        )
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
        """Counters and records as plain values, and what this process alone has seen."""
        return self.common_state() | {"unread": self.unread()}

    def common_state(self) -> dict[str, Any]:
        """Counters and records as plain values, equal on all ranks."""
        return {
            "ticks": self.ticks,
            "step": self.step,
            "losses": list(self.losses),
            "training_losses": list(self.training_losses),
            "records": [asdict(record) for record in self.records],
            "waited": sorted(self._waited),
            "deferred": [[*key, count] for key, count in self._deferred.items()],
            "births": [[*key, list(losses)] for key, losses in self._births.items()],
            "peak_rates": self.optimizers.peak_rates,
            "penalised": self._penalised,
            "penalty": self.optimizers.penalty.state_dict(),
            "positions": self.budget.positions,
            **self.inquiry.state_dict(),
            **self.recovery.state_dict(),
        }

    def unread(self) -> dict[str, Any]:
        """What this process alone has seen since the last exchange of the ranks; waits for the device."""
        return {
            "losses": self.recovery.waiting,
            "faults": {name: layer.morpho.faults.state_dict() for name, layer in self.layers.items()},
            "starvation": {name: layer.morpho.starvation.state_dict() for name, layer in self.layers.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave."""
        self.ticks, self.step = state["ticks"], state["step"]
        self.losses = list(state["losses"])
        self.training_losses = list(state["training_losses"])
        self.optimizers.peak_rates = [list(rates) for rates in state["peak_rates"]]
        self.records = [SeedRecord(**record) for record in state["records"]]
        self._last_round = max((record.born_tick for record in self.records), default=None)
        self._waited = set(state.get("waited", ()))
        self.budget.positions = state.get("positions")
        self._deferred = {(layer, chunk): count for layer, chunk, count in state.get("deferred", ())}
        self.recovery.step = self.step
        self.recovery.load_state_dict(state)
        self.inquiry.load_state_dict(state)
        self._births = {(layer, chunk): tuple(losses) for layer, chunk, losses in state.get("births", ())}
        self._penalised = state.get("penalised", 0)
        self.optimizers.penalty.set(**state.get("penalty", self.optimizers.penalty.state_dict()))
        self.optimizers.note_dead_units()
        if "unread" in state:
            self.load_unread(state["unread"])

    def load_unread(self, seen: Mapping[str, Any]) -> None:
        """Restore what :meth:`unread` gave."""
        self.recovery.waiting = seen["losses"]
        for name in self.layers.keys() & seen["faults"].keys():
            self.layers[name].morpho.faults.load_state_dict(seen["faults"][name])
        for name in self.layers.keys() & seen["starvation"].keys():
            self.layers[name].morpho.starvation.load_state_dict(seen["starvation"][name])
