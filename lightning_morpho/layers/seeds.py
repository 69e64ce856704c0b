"""All seeds of one layer: their beds, their stages, and what they add to the layer's output."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightning_morpho.blueprints import Blueprint, Span
from lightning_morpho.config import MorphoConfig
from lightning_morpho.layers.beds import Bed, GrownParameters
from lightning_morpho.layers.captured import drop_captured_graphs
from lightning_morpho.layers.faults import FaultWatch, count_faults_
from lightning_morpho.layers.germination import germinate_
from lightning_morpho.layers.graft import GraftPlan
from lightning_morpho.layers.incubation import Nursery, Scale
from lightning_morpho.layers.links import LinkTable
from lightning_morpho.layers.planning import lend_beds_, plan_, settle_beds_
from lightning_morpho.layers.signals import SignalTracker
from lightning_morpho.layers.span import SpanPlan, close_links_
from lightning_morpho.layers.stages import StageMachine
from lightning_morpho.layers.starvation import StarvationWatch, could_starve
from lightning_morpho.layers.taps import Hidden, Tap
from lightning_morpho.layers.topology import check_topology, load_topology_, topology_of
from lightning_morpho.layers.transitions import Tenancy, Transition
from lightning_morpho.lifecycle import Lifecycle, Stage
from lightning_morpho.state import LogicalSeed, StateTensor


class SeedBeds(nn.Module):
    """The seeds of one layer: their stages, their beds with the parameters, and the plan of what is applied.

    Args:
        name: Name of the layer in the model.
        blueprint: Kind of network and geometry of the layer.
        beds: Germination events that the layer can hold at a time.
        like: The base layer's weight, for device and dtype.
        config: Lifecycle, grafting, warm-up and random seed.

    Attributes:
        kind: Name of the blueprint in the registry.
        inlets: Taps of the producers whose inputs spans read here.
        outlet: Tap that hands this layer's input to the consumer behind it.
        links: What the beds' units read of the new units of the layer before.
        confirmed: Whether seeds may germinate: False while a span's pair was only proposed.
        refused: Why they never will, None if nothing speaks against it.
        host_alive: Which of the host's own hidden units between the producers and this layer are not dead.
        steps: Optimizer steps done so far, counted by :class:`~lightning_morpho.optim.OptimizerLink`.
        stages: Stages of the seeds, and what may follow them.
        signals: What the gates of rising alphas look at.
        faults: Which seeds erred since the last tick.
        starvation: What is seen of the gradients and outputs of live seeds.
        health: Statistics by name, one value a chunk, as last sampled; empty before.
        plan: What the live beds add to the output, None while none does.
        nursery: Those that incubate, None while none does; spans do it in their plan.
        incubating: Whether a seed incubates.
        loss_scale: What the loss is multiplied by before its backward pass.
        bucketed: Whether plans hold 1, 2, 4, 8, ... beds, so that a compiled model is compiled again only that
            often, however many germinate.
        off: Whether the base implementation runs, and all seeds stand still.
        features: Further features of the layer by the name of their flag.
        objection: Says why the layer may not take a germination now, None if it may; a budget of the run.
    """

    def __init__(self, name: str, blueprint: Blueprint, beds: int, like: Tensor, config: MorphoConfig) -> None:
        super().__init__()
        self.name = name
        self.blueprint = blueprint
        self.config = config
        self.kind = blueprint.kind
        self.steps = 0
        self.beds = nn.ModuleList(Bed(blueprint, like) for _ in range(beds))
        self.stages = StageMachine(name, self.kind, blueprint.site.chunks, config.lifecycle, config.grafting)
        self.signals = SignalTracker(config.grafting)
        self.faults = FaultWatch(blueprint)
        self.starvation = StarvationWatch(blueprint, config.starvation)
        self.health: dict[str, Tensor] = {}
        self.events = 0
        self.plan: GraftPlan | SpanPlan | None = None
        self.nursery: Nursery | None = None
        self.incubating = False
        self.loss_scale: Scale = 1.0
        self.off = False
        self.bucketed = False
        self.features: dict[str, bool] = {}
        self.links = LinkTable()
        self.inlets: tuple[Tap, ...] = ()
        self.outlet: Tap | None = None
        self.confirmed = blueprint.source != "producer"
        self.refused: str | None = None
        self.host_alive = np.ones(blueprint.route.producers[0].out_features if isinstance(blueprint, Span) else 0, bool)
        self._muted: frozenset[int] = frozenset()
        self._built: tuple[object, ...] = (False,)
        self._together = 0
        self._outdated = False
        self._forget_links()
        self.register_load_state_dict_pre_hook(_complete_plain_checkpoint)

    # ------------------------------------------------------------------ links to the outside
    def _forget_links(self) -> None:
        self.observer: Callable[[Tensor], None] | None = None
        self.on_change: Callable[[], None] | None = None
        self.objection: Callable[[], str | None] | None = None

    def __getstate__(self) -> dict[str, Any]:
        # These point at the run; a copy has none. `on_change` points at the layer, and is copied with it.
        return self.__dict__ | {"observer": None, "objection": None}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SeedBeds:
        # Moved to another device: what the plan holds there goes with the parameters.
        super()._apply(fn, recurse)
        if self.plan is not None or self.nursery is not None:
            self.refresh()
        return self

    @property
    def state(self) -> StateTensor:
        """State of the current seed of each chunk."""
        return self.stages.state

    @property
    def lifecycle_table(self) -> Lifecycle:
        """Stages that the seeds pass, and in what order."""
        return self.stages.table

    @property
    def on_transition(self) -> Callable[[Transition], None] | None:
        """Receives each transition as it happens."""
        return self.stages.on_transition

    @on_transition.setter
    def on_transition(self, receiver: Callable[[Transition], None] | None) -> None:
        self.stages.on_transition = receiver

    def observe(self, observer: Callable[[Tensor], None] | None) -> None:
        """Show each output of the layer, features last and detached, to ``observer``; None stops it."""
        if observer is not self.observer:
            self.__dict__["observer"] = observer  # a module takes long to set an attribute, and this is once a sample
            self._changed()

    def switch(self, on: bool) -> None:
        """Let the seeds work or stand still; without a gradient no optimizer moves a bed."""
        self.off = not on
        for index in range(len(self.beds)):
            self.bed_at(index).pause(self.off)
        self.refresh()

    @property
    def idle(self) -> bool:
        """Whether a forward pass has nothing to do but the base layer."""
        tapped = self.outlet is not None and self.outlet.open
        nothing = self.plan is None and self.nursery is None and self.observer is None
        return not tapped and (self.off or nothing)

    def _changed(self) -> None:
        if self.on_change is not None:
            self.on_change()

    # ------------------------------------------------------------------ forward
    def _look_for_faults(self, x: Tensor, y: Tensor) -> None:
        """At the first training batch after a tick; compiled code never does."""
        self.faults.looked = True
        if isinstance(self.plan, GraftPlan):
            self.plan.look(x.detach(), y.detach(), self._look_at_output)

    def _look_at_output(self, index: int, y: Tensor, delta: Tensor) -> None:
        if index in could_starve(self) and not self.bed_at(index).newborn:
            self.starvation.note_output(index, y, delta)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Add what the seeds give to the base layer's output.

        Args:
            x: The layer's input.
            y: The base layer's output.

        Returns:
            Same shape as ``y``.
        """
        out, hidden = (y, {}) if self.off else self._act(x, y)
        if self.outlet is not None and self.outlet.open:
            self.outlet.put(x, hidden)
        if self.observer is not None and not self.off:
            self.observer(self.blueprint.site.to_columns(out.detach()))
        return out

    def _act(self, x: Tensor, y: Tensor) -> tuple[Tensor, Hidden]:
        if self.training and not torch.compiler.is_compiling() and not self.faults.looked:
            self._look_for_faults(x, y)
        if isinstance(self.plan, SpanPlan):
            return self.plan(y, self.loss_scale)
        if self.nursery is None or not torch.is_grad_enabled():
            return y if self.plan is None else self.plan(x, y), {}
        deltas = self.nursery.deltas(x, y)
        out = y if self.plan is None else self.plan(x, y)
        return self.nursery(out, deltas, self.loss_scale), {}

    def row_alpha(self, index: int) -> np.ndarray:
        """Blend weight of each chunk of a bed, float32 ``(N,)``; 0 where it holds no seed."""
        bed = self.bed_at(index)
        alpha: np.ndarray = self.state.alpha * (self.state.bed == index)
        if np.count_nonzero(bed.kept):
            np.copyto(alpha, bed.kept_alpha, where=bed.kept)
        return alpha

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Bring the execution plan in line once, after all that is done inside."""
        self._together += 1
        try:
            yield
        finally:
            self._together -= 1
            if self._outdated and not self._together:
                self.refresh()

    def refresh(self) -> None:
        """Bring the execution plan in line with the state."""
        # A module takes longer to set an attribute than to plan: only what changes is set.
        if self._outdated != (self._together > 0):
            self._outdated = self._together > 0
        if self._outdated:
            return
        self.starvation.watched = None
        acting = settle_beds_(self)
        if self.bucketed:
            acting |= {index: self.row_alpha(index) for index in lend_beds_(self, acting)}
        for index, rows in acting.items() if self._muted else ():
            rows[[c for c in self._muted if self.state.bed[c] == index]] = 0
        plan_(self, acting)
        parts = ((index, self.bed_at(index).resting, alpha.any()) for index, alpha in acting.items())
        built = (self.incubating, *parts)
        if self._built != built:
            self._built = built
            drop_captured_graphs()
        for tap in self.inlets:
            tap.open = not self.off and self.plan is not None
            tap.producer._changed()  # type: ignore[operator]
        self._changed()

    def mute(self, chunks: Iterable[int]) -> None:
        """Take the current seeds of these chunks out of the output without touching their state.

        For measurements: ``mute(())`` brings all of them back. Fossils of earlier seeds stay.
        """
        self._muted = frozenset(chunks)
        self.refresh()

    def live_beds(self) -> dict[int, Bed]:
        """Beds that a germination has taken, by their index."""
        return {index: bed for index, bed in enumerate(self.beds) if isinstance(bed, Bed) and not bed.free}

    def bed_at(self, index: int) -> Bed:
        """A bed by its index."""
        return self.beds[index]  # type: ignore[return-value]

    def grown(self) -> list[GrownParameters]:
        """All that optimizers must know of: beds and links."""
        return [*(self.bed_at(i) for i in range(len(self.beds))), *self.links.all_links()]

    def wake(self) -> None:
        """A sharded checkpoint is loaded as a whole: its newborns train on."""
        for parameters in self.grown():
            parameters.wake()

    def decide_pair(self, refused: str | None) -> None:
        """Say whether the layer's pair was confirmed, or why it was refused; live spans are not asked again."""
        if self.dormant:
            self.confirmed, self.refused = refused is None, refused

    # ------------------------------------------------------------------ requests
    def germinate(self, chunks: Iterable[int] | None = None, *, reason: str = "requested") -> list[int]:
        """Grow the blueprint in these chunks, in the next free bed. The output does not change.

        Args:
            chunks: Chunks, None for every dormant one.
            reason: Why, for the event log.

        Returns:
            The chunks that germinated.

        Raises:
            ValueError: For a chunk out of range or named twice.
            LifecycleError: If a seed is not dormant, the layer's pair is not confirmed, no bed is free, or a budget of
                the run is spent.
        """
        return germinate_(self, chunks, reason)

    def cull(self, chunks: Iterable[int], *, reason: str, figures: Mapping[str, float] | None = None) -> None:
        """Let live seeds fade out: alpha falls by ``alpha_step`` a tick, at 0 they are culled.

        Raises:
            ValueError: For a chunk out of range.
            LifecycleError: If a seed is not live, or fading already.
        """
        self.stages.fade(chunks, "culled", reason, figures or {}, Stage.CULLED, Stage.CANCELLED)

    def cancel(self, chunks: Iterable[int]) -> None:
        """Take live seeds back: they fade out like culled ones, with the reason ``cancelled``.

        Raises:
            ValueError: For a chunk out of range.
            LifecycleError: If a seed is not live, or fading already.
        """
        self.stages.fade(chunks, "cancelled", "cancelled", {}, Stage.CANCELLED, Stage.CULLED)

    def keep(self, chunks: Iterable[int], *, reason: str, figures: Mapping[str, float] | None = None) -> None:
        """Keep judged seeds: as fossils they stay applied at their present alpha. The output does not change.

        Raises:
            ValueError: For a chunk out of range.
            LifecycleError: If a seed is not in the stage in which seeds are judged, or is fading.
        """
        self._keep(self.stages.keep(chunks, reason, figures or {}))
        self.refresh()

    def roll_back(self, *, reason: str = "rollback", figures: Mapping[str, float] | None = None) -> list[int]:
        """End all live seeds at once, as a rollback does: alpha 0, their beds free, an embargo on their chunks.

        Returns:
            Their chunks.
        """
        live = self.state.where(*self.lifecycle_table.live).tolist()
        wanted = (Stage.ROLLED_BACK, Stage.CULLED, Stage.CANCELLED)
        self._release(self.stages.end(live, reason, figures or {}, *wanted))
        self.refresh()
        return live

    def record_errors(self, chunks: Iterable[int], *, reason: str, figures: Mapping[str, float] | None = None) -> None:
        """Count one contained error of the live seeds among some chunks.

        Their alpha is 0 at once and rises again by ``alpha_step`` a tick; a seed with ``max_errors`` of them ends
        in ERROR_RECOVERY instead.

        Raises:
            ValueError: For a chunk out of range or named twice.
        """
        self._release(self.stages.strike(chunks, reason, figures or {}))
        self.refresh()

    # ------------------------------------------------------------------ time
    def advance(self, losses: Sequence[float | None] = (), weight: Tensor | None = None) -> None:
        """One decision tick: ages rise, stages advance, blend weights move.

        Args:
            losses: Validation loss at each tick so far, for the gates that look at it.
            weight: The base layer's weight, for the gates that look at its drift.
        """
        if self.stages.asleep:
            return
        count_faults_(self)
        beds, signals = self.state.bed, self.signals.read(losses, weight)
        moves = self.stages.advance(
            lambda chunk: self.bed_at(int(beds[chunk])).newborn, lambda chunk: signals(int(beds[chunk]))
        )
        self._release(moves.ended)
        self._keep(moves.kept)
        self.renew()
        self.refresh()

    def renew(self) -> None:
        """Put new dormant seeds where seeds were kept, while there is a bed for them."""
        if self.free_bed() is not None:
            self.stages.renew()

    def note_gradients(self, weight: Tensor | None) -> None:
        """Look at the gradients for gates and for seeds that starve; called before each optimizer step.

        Args:
            weight: The base layer's weight, None if it is not a parameter.
        """
        if self.stages.climbing:
            self.signals.note_gradients(self.live_beds())
        for index in could_starve(self):
            bed = self.bed_at(index)
            if self.starvation.due(bed):
                self.starvation.note_gradient(index, bed, weight)

    def _release(self, left: Iterable[Tenancy]) -> None:
        for tenancy in left:
            bed = self.bed_at(tenancy.bed)
            bed.release(tenancy.chunk, self.config.lifecycle.train_fossils)
            if bed.free:
                close_links_(self, tenancy.bed)

    def _keep(self, kept: Iterable[Tenancy]) -> None:
        for tenancy in kept:
            bed = self.bed_at(tenancy.bed)
            bed.keep(tenancy.chunk, tenancy.alpha, self.config.lifecycle.train_fossils)

    # ------------------------------------------------------------------ views
    def seed_at(self, chunk: int) -> LogicalSeed:
        """View of the current seed of a chunk."""
        health = {name: float(values[chunk]) for name, values in self.health.items()}
        return LogicalSeed(self.state, chunk, self.kind, health, self.germinate)

    def free_bed(self) -> int | None:
        """Index of the next free bed, None if all are taken or the layer's pair is not confirmed."""
        if not self.confirmed:
            return None
        return next((i for i in range(len(self.beds)) if self.bed_at(i).free), None)

    @property
    def free_beds(self) -> int:
        """Germinations that the layer can still take."""
        return sum(self.bed_at(i).free for i in range(len(self.beds))) if self.confirmed else 0

    @property
    def live_parameters(self) -> int:
        """Parameters of the beds and links in use."""
        return sum(parameters.numel for parameters in self.grown() if not parameters.free)

    @property
    def topologies(self) -> int:
        """Plans that a compiled model can meet, besides none, if :attr:`bucketed`."""
        plans = len(self.beds).bit_length()
        incubating = 0 if self.config.lifecycle.incubation == "none" else len(self.beds)
        return plans + incubating * (plans + 1)

    @property
    def dormant(self) -> bool:
        """Whether all beds are free."""
        return all(self.bed_at(i).free for i in range(len(self.beds)))

    # ------------------------------------------------------------------ persistence
    def get_extra_state(self) -> str:
        """Topology and stages as JSON; saved in the layer's ``state_dict``.

        One string: a sharded checkpoint takes mappings apart and loads those keys alone that a fresh model has.
        """
        return json.dumps(topology_of(self))

    def set_extra_state(self, saved_state: str) -> None:
        """Restore what :meth:`get_extra_state` gave."""
        load_topology_(self, json.loads(saved_state))

    def check_extra_state(self, saved_state: str) -> None:
        """Refuse the state of a layer that was configured otherwise.

        Raises:
            ValueError: With both values.
        """
        check_topology(self, json.loads(saved_state))


def _complete_plain_checkpoint(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: object) -> None:
    """A checkpoint made without growth has no keys of ours: its layers stay as they are, strictly."""
    assert isinstance(module, SeedBeds)
    saved = state_dict.get(f"{prefix}_extra_state")
    if saved is not None:
        module.check_extra_state(saved)
        return
    state_dict.update({prefix + key: value for key, value in module.state_dict().items()})
