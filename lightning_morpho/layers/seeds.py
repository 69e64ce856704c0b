"""All seeds of one layer: their beds, their stages, and what they add to the layer's output."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from torch import Tensor, nn

from lightning_morpho.blueprints import Blueprint
from lightning_morpho.config import MorphoConfig
from lightning_morpho.layers.beds import Bed, derived_generator
from lightning_morpho.layers.graft import GraftPlan
from lightning_morpho.lifecycle import PHASE1, LifecycleError, Stage
from lightning_morpho.state import NO_BED, LogicalSeed, StateTensor

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Transition:
    """One seed changed its stage.

    Attributes:
        layer: Name of the layer.
        chunk: Chunk of the seed.
        generation: Generation of the seed.
        blueprint: Kind of network.
        source: Stage that it left.
        target: Stage that it entered.
        reason: Why, in words.
        figures: The numbers that decided it.
    """

    layer: str
    chunk: int
    generation: int
    blueprint: str
    source: Stage
    target: Stage
    reason: str
    figures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class _Sentence:
    """Why a seed is fading out."""

    reason: str
    figures: Mapping[str, float]


class SeedBeds(nn.Module):
    """The seeds of one layer: host-side state, beds with their parameters, and the rules of their stages.

    Args:
        name: Name of the layer in the model.
        blueprint: Kind of network and geometry of the layer.
        beds: Germination events that the layer can hold at a time.
        like: The base layer's weight, for device and dtype.
        config: Lifecycle, warm-up and random seed.

    Attributes:
        kind: Name of the blueprint in the registry.
        steps: Optimizer steps done so far, counted by :class:`~lightning_morpho.optim.OptimizerLink`.
        state: :class:`~lightning_morpho.StateTensor` of the current seed of each chunk.
        health: Statistics by name, one value a chunk, as last sampled; empty before.
        plan: What the live beds add to the output, None while all are free.
    """

    lifecycle_table = PHASE1

    def __init__(self, name: str, blueprint: Blueprint, beds: int, like: Tensor, config: MorphoConfig) -> None:
        super().__init__()
        self.name = name
        self.blueprint = blueprint
        self.config = config
        self.kind = config.blueprint.kind
        self.steps = 0
        self.beds = nn.ModuleList(Bed(blueprint, like) for _ in range(beds))
        self.state = StateTensor(blueprint.site.chunks.num_chunks)
        self.health: dict[str, Tensor] = {}
        self.events = 0
        self.plan: GraftPlan | None = None
        self._muted: frozenset[int] = frozenset()
        self._sentences: dict[int, _Sentence] = {}
        self._forget_links()
        self.register_load_state_dict_pre_hook(_complete_plain_checkpoint)

    # ------------------------------------------------------------------ links to the outside
    def _forget_links(self) -> None:
        self.observer: Callable[[Tensor], None] | None = None
        self.on_transition: Callable[[Transition], None] | None = None
        self.on_change: Callable[[], None] | None = None

    def __getstate__(self) -> dict[str, Any]:
        # Callables point at the layer's owner and at the run; a copy gets its own.
        return self.__dict__ | {"observer": None, "on_transition": None, "on_change": None}

    def observe(self, observer: Callable[[Tensor], None] | None) -> None:
        """Show each output of the layer, features last and detached, to ``observer``; None stops it."""
        if observer is not self.observer:
            self.observer = observer
            self._changed()

    @property
    def idle(self) -> bool:
        """Whether a forward pass has nothing to do but the base layer."""
        return self.plan is None and self.observer is None

    def _changed(self) -> None:
        if self.on_change is not None:
            self.on_change()

    # ------------------------------------------------------------------ forward
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Add what the seeds give to the base layer's output.

        Args:
            x: The layer's input.
            y: The base layer's output.

        Returns:
            Same shape as ``y``.
        """
        out = y if self.plan is None else self.plan(x, y)
        if self.observer is not None:
            self.observer(self.blueprint.site.to_columns(out.detach()))
        return out

    def row_alpha(self, index: int) -> np.ndarray:
        """Blend weight of each chunk of a bed, float32 ``(N,)``; 0 where it holds no seed."""
        bed = self._bed(index)
        current = np.where(self.state.bed == index, self.state.alpha, 0)
        return np.where(bed.kept, bed.kept_alpha, current).astype(np.float32)

    def refresh(self) -> None:
        """Bring the execution plan in line with the state."""
        live = [i for i in range(len(self.beds)) if not self._bed(i).free]
        alphas = [self.row_alpha(i) for i in live]
        for index, rows in zip(live, alphas, strict=True):
            muted = [c for c in self._muted if self.state.bed[c] == index]
            rows[muted] = 0
        self.plan = GraftPlan(self.blueprint, [self._bed(i) for i in live], alphas, self.plan) if live else None
        self._changed()

    def mute(self, chunks: Iterable[int]) -> None:
        """Take the current seeds of these chunks out of the output without touching their state.

        For measurements: ``mute(())`` brings all of them back. Fossils of earlier seeds stay.
        """
        self._muted = frozenset(chunks)
        self.refresh()

    def _bed(self, index: int) -> Bed:
        return self.beds[index]  # type: ignore[return-value]

    # ------------------------------------------------------------------ requests
    def check_germination(self, chunks: Iterable[int] | None = None) -> list[int]:
        """Which chunks a germination would take.

        Args:
            chunks: Chunks, None for every dormant one.

        Raises:
            ValueError: For a chunk out of range or named twice.
            LifecycleError: If a seed is not dormant or no bed is free.
        """
        wanted = self.state.where(Stage.DORMANT).tolist() if chunks is None else [int(c) for c in chunks]
        for chunk in wanted:
            self.blueprint.site.chunks.check_index(chunk)
        if len(set(wanted)) != len(wanted):
            raise ValueError(f"`chunks` must name each chunk once, got {wanted}.")
        busy = {c: self.seed_at(c).stage.name for c in wanted if self.seed_at(c).stage is not Stage.DORMANT}
        if busy or not wanted:
            raise LifecycleError(
                f"Layer `{self.name}`: only DORMANT seeds can germinate, got {busy or 'no dormant seed'}."
            )
        if self.free_bed() is None:
            raise LifecycleError(
                f"Layer `{self.name}`: all {len(self.beds)} beds are taken. Raise `layers.beds` "
                "(and `budget.parameters`), or cull a seed first."
            )
        return wanted

    def germinate(self, chunks: Iterable[int] | None = None, *, reason: str = "requested") -> list[int]:
        """Grow the blueprint in these chunks, in the next free bed. The output does not change.

        Args:
            chunks: Chunks, None for every dormant one.
            reason: Why, for the event log.

        Returns:
            The chunks that germinated.

        Raises:
            ValueError: For a chunk out of range or named twice.
            LifecycleError: If a seed is not dormant or no bed is free.
        """
        wanted = self.check_germination(chunks)
        index = self.free_bed()
        assert index is not None
        generations = self.state.generation[wanted].tolist()
        generator = derived_generator(self.config.seed, self.name, tuple(wanted), self.events)
        warmup = self.config.warmup.length(self.steps)
        self._bed(index).open(self.blueprint, wanted, generations, self.events, warmup, generator)
        self.events += 1
        self.state.update(wanted, bed=index, alpha=1.0)
        for chunk in wanted:
            self._move(chunk, self.lifecycle_table.path[1], reason)
        self.refresh()
        return wanted

    def cull(self, chunks: Iterable[int], *, reason: str, figures: Mapping[str, float] | None = None) -> None:
        """Let live seeds fade out: alpha falls by ``alpha_step`` a tick, at 0 they are culled.

        Raises:
            ValueError: For a chunk out of range.
            LifecycleError: If a seed is not live, or fading already.
        """
        chunks = list(chunks)
        for chunk in chunks:
            self._check_live(chunk, "culled")
        for chunk in chunks:
            self._sentences[chunk] = _Sentence(reason, dict(figures or {}))
        self.state.update(chunks, fading=True)

    def keep(self, chunks: Iterable[int], *, reason: str, figures: Mapping[str, float] | None = None) -> None:
        """Fossilize live seeds: they stay applied at their present alpha. The output does not change.

        Raises:
            ValueError: For a chunk out of range.
            LifecycleError: If a seed is not in the last stage before FOSSILIZED, or is fading.
        """
        chunks = list(chunks)
        for chunk in chunks:
            self._check_live(chunk, "kept")
            self.lifecycle_table.check(self.seed_at(chunk).stage, Stage.FOSSILIZED)
        for chunk in chunks:
            bed = self._bed(int(self.state.bed[chunk]))
            bed.keep(chunk, float(self.state.alpha[chunk]), self.config.lifecycle.train_fossils)
            self._move(chunk, Stage.FOSSILIZED, reason, figures)
        self.refresh()

    def _check_live(self, chunk: int, verb: str) -> None:
        self.blueprint.site.chunks.check_index(chunk)
        seed = self.seed_at(chunk)
        if seed.stage not in self.lifecycle_table.live or self.state.fading[chunk]:
            what = "fading out already" if self.state.fading[chunk] else seed.stage.name
            stages = ", ".join(sorted(s.name for s in self.lifecycle_table.live))
            raise LifecycleError(
                f"Layer `{self.name}`, chunk {chunk}: only a seed in {stages} can be {verb}, it is {what}."
            )

    # ------------------------------------------------------------------ time
    def advance(self) -> None:
        """One decision tick: ages rise, stages advance, fading seeds fade."""
        state, table = self.state, self.lifecycle_table
        awake = np.flatnonzero(state.stage != Stage.DORMANT)
        if not awake.size:
            return
        state.update(awake, age=state.age[awake] + 1)
        for chunk in np.flatnonzero(state.fading).tolist():
            self._fade(chunk)
        for chunk in state.where(*table.recovery).tolist():
            if state.age[chunk] > self.config.lifecycle.embargo_ticks:
                self._move(chunk, Stage.DORMANT, "embargo over")
                state.update(chunk, generation=state.generation[chunk] + 1)
        for chunk in state.where(Stage.LOADING).tolist():
            timeout = state.age[chunk] >= self.config.lifecycle.timeout_ticks
            if not state.fading[chunk] and (timeout or not self._bed(int(state.bed[chunk])).newborn):
                self._move(chunk, Stage.ACTIVE, "timeout" if timeout else "warm-up over")
        self._renew()
        self.refresh()

    def _fade(self, chunk: int) -> None:
        alpha = max(0.0, float(self.state.alpha[chunk]) - self.config.lifecycle.alpha_step)
        self.state.update(chunk, alpha=alpha)
        if alpha > 0:
            return
        sentence = self._sentences.pop(chunk)
        self._bed(int(self.state.bed[chunk])).release(chunk)
        self.state.update(chunk, bed=NO_BED, fading=False)
        self._move(chunk, Stage.CULLED, sentence.reason, sentence.figures)

    def _renew(self) -> None:
        """Put a new dormant seed where one was kept, while there is a bed for it."""
        kept = self.state.where(Stage.FOSSILIZED)
        if kept.size and self.free_bed() is not None:
            successors = self.state.generation[kept] + 1
            self.state.update(kept, stage=Stage.DORMANT, generation=successors, bed=NO_BED, alpha=0.0, age=0)

    def _move(self, chunk: int, target: Stage, reason: str, figures: Mapping[str, float] | None = None) -> None:
        seed = self.seed_at(chunk)
        self.lifecycle_table.check(seed.stage, target)
        transition = Transition(
            layer=self.name,
            chunk=chunk,
            generation=seed.generation,
            blueprint=self.kind,
            source=seed.stage,
            target=target,
            reason=reason,
            figures=dict(figures or {}),
        )
        self.state.update(chunk, stage=target, age=0)
        log.debug("%s[%d] %s -> %s: %s", self.name, chunk, seed.stage.name, target.name, reason)
        if self.on_transition is not None:
            self.on_transition(transition)

    # ------------------------------------------------------------------ views
    def seed_at(self, chunk: int) -> LogicalSeed:
        """View of the current seed of a chunk."""
        health = {name: float(values[chunk]) for name, values in self.health.items()}
        return LogicalSeed(self.state, chunk, self.kind, health)

    def free_bed(self) -> int | None:
        """Index of the next free bed, None if all are taken."""
        return next((i for i in range(len(self.beds)) if self._bed(i).free), None)

    @property
    def free_beds(self) -> int:
        """Germinations that the layer can still take."""
        return sum(self._bed(i).free for i in range(len(self.beds)))

    @property
    def live_parameters(self) -> int:
        """Parameters of the beds in use."""
        return sum(self._bed(i).numel for i in range(len(self.beds)) if not self._bed(i).free)

    @property
    def dormant(self) -> bool:
        """Whether all beds are free."""
        return self.free_beds == len(self.beds)

    # ------------------------------------------------------------------ persistence
    def get_extra_state(self) -> dict[str, Any]:
        """Topology and stages as plain values; saved in the layer's ``state_dict``."""
        site = self.blueprint.site
        return {
            "num_seeds": site.chunks.num_chunks,
            "blueprint": self.kind,
            "events": self.events,
            "steps": self.steps,
            "state": self.state.to_dict(),
            "beds": [self._bed(i).to_dict() for i in range(len(self.beds))],
            "sentences": {chunk: asdict(s) for chunk, s in self._sentences.items()},
        }

    def set_extra_state(self, extra: Any) -> None:
        """Restore what :meth:`get_extra_state` gave."""
        self.events, self.steps = extra["events"], extra["steps"]
        self.state.load_dict(extra["state"])
        for index, bed in enumerate(extra["beds"]):
            self._bed(index).load_dict(bed)
        self._sentences = {int(chunk): _Sentence(**s) for chunk, s in extra["sentences"].items()}
        self.refresh()

    def check_extra_state(self, extra: Mapping[str, Any]) -> None:
        """Refuse the state of a layer that was configured otherwise.

        Raises:
            ValueError: With both values.
        """
        own = {
            "num_seeds": self.blueprint.site.chunks.num_chunks,
            "blueprint": self.kind,
            "beds": len(self.beds),
        }
        saved = {key: len(extra[key]) if key == "beds" else extra[key] for key in own}
        if saved != own:
            raise ValueError(
                f"Layer `{self.name}`: the checkpoint was made with {saved}, but this run is configured "
                f"with {own}. Use the checkpoint's values in `layers`, `blueprint` and `budget`."
            )


def _complete_plain_checkpoint(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: object) -> None:
    """A checkpoint made without growth has no keys of ours: its layers stay as they are, strictly."""
    assert isinstance(module, SeedBeds)
    saved = state_dict.get(f"{prefix}_extra_state")
    if saved is not None:
        module.check_extra_state(saved)
        return
    state_dict.update({prefix + key: value for key, value in module.state_dict().items()})
