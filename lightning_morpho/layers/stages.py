"""The stages of a layer's seeds: who may go where and when. Host-side numbers alone, no tensor in sight."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from lightning_morpho.chunks import ChunkManager
from lightning_morpho.config import GraftingConfig, LifecycleConfig
from lightning_morpho.grafting import Ramp, Signals, climb
from lightning_morpho.layers.transitions import Moves, Tenancy, Transition, Verdict
from lightning_morpho.lifecycle import LIFECYCLES, LifecycleError, Stage
from lightning_morpho.state import NO_BED, StateTensor

log = logging.getLogger(__name__)


class StageMachine:
    """Stages, ages and blend weights of the seeds of one layer, driven by a transition table.

    It knows nothing of parameters: what becomes of beds is returned to :class:`SeedBeds`.

    Args:
        name: Name of the layer.
        kind: Name of the blueprint.
        chunks: Layout of its chunks.
        config: Which stages; ages, timeouts, embargo, alpha's step, errors.
        grafting: How alpha rises.

    Attributes:
        table: The transition table.
        state: :class:`~lightning_morpho.StateTensor` of the current seed of each chunk.
        on_transition: Receives each transition as it happens.
    """

    def __init__(
        self, name: str, kind: str, chunks: ChunkManager, config: LifecycleConfig, grafting: GraftingConfig
    ) -> None:
        self.name = name
        self.kind = kind
        self.config = config
        self.grafting = grafting
        self.table = LIFECYCLES[config.kind]
        self.state = StateTensor(chunks.num_chunks)
        self.on_transition: Callable[[Transition], None] | None = None
        self._chunks = chunks
        self._verdicts: dict[int, Verdict] = {}
        self._strikes: dict[int, int] = {}
        self._ramps: dict[int, Ramp] = {}
        self._evidence: dict[int, Mapping[str, float]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"on_transition": None}  # it points at the run; a copy has none

    # ------------------------------------------------------------------ checks
    def check_distinct(self, chunks: Iterable[int]) -> list[int]:
        """Chunks as plain integers.

        Raises:
            ValueError: For a chunk out of range or named twice.
        """
        given = list(chunks)
        for chunk in given:
            self._chunks.check_index(chunk)
        wanted = [int(chunk) for chunk in given]
        if len(set(wanted)) != len(wanted):
            raise ValueError(f"`chunks` must name each chunk once, got {wanted}.")
        return wanted

    def check_dormant(self, chunks: Iterable[int] | None) -> list[int]:
        """Chunks whose seeds may germinate; None for every dormant one.

        Raises:
            ValueError: For a chunk out of range or named twice.
            LifecycleError: If a seed is not dormant, or none is.
        """
        wanted = self.check_distinct(self.state.where(Stage.DORMANT).tolist() if chunks is None else chunks)
        busy = {c: self.stage(c).name for c in wanted if self.stage(c) is not Stage.DORMANT}
        if busy or not wanted:
            raise LifecycleError(
                f"Layer `{self.name}`: only DORMANT seeds can germinate, got {busy or 'no dormant seed'}."
            )
        return wanted

    def check_live(self, chunks: Iterable[int], verb: str) -> list[int]:
        """Chunks whose seeds are live and not on their way out.

        Raises:
            ValueError: For a chunk out of range or named twice.
            LifecycleError: If a seed is another one; ``verb`` says what was to be done with it.
        """
        wanted = self.check_distinct(chunks)
        for chunk in wanted:
            if self.stage(chunk) not in self.table.live or self.state.fading[chunk]:
                what = "fading out already" if self.state.fading[chunk] else self.stage(chunk).name
                stages = ", ".join(sorted(s.name for s in self.table.live))
                raise LifecycleError(
                    f"Layer `{self.name}`, chunk {chunk}: only a seed in {stages} can be {verb}, it is {what}."
                )
        return wanted

    def stage(self, chunk: int) -> Stage:
        """Stage of a chunk's current seed."""
        return Stage(int(self.state.stage[chunk]))

    def due(self, chunk: int) -> bool:
        """Whether a chunk's seed may be judged now."""
        state = self.state
        waiting = state.fading[chunk] or chunk in self._ramps
        return self.stage(chunk) is self.table.judged and not waiting and state.age[chunk] >= self.config.active_ticks

    # ------------------------------------------------------------------ requests
    def germinate(self, chunks: list[int], bed: int, reason: str) -> None:
        """Let dormant seeds take a bed. They start at alpha 1 if they need no ramp: their output is zero yet."""
        self.state.update(chunks, bed=bed, alpha=0.0 if self.ramped else 1.0)
        for chunk in chunks:
            self._enter(chunk, self.table.path[1], reason)

    @property
    def ramped(self) -> bool:
        """Whether alpha rises from 0 at first."""
        return bool(self.table.silent) or self.grafting.ramp or self.grafting.blend == "lerp"

    @property
    def climbing(self) -> bool:
        """Whether the alpha of a seed is about to rise."""
        return bool(self._ramps)

    def note_evidence(self, chunk: int, figures: Mapping[str, float]) -> None:
        """Remember what a live seed was last found to be worth, for the case that nobody decides on it.

        Args:
            chunk: Its chunk.
            figures: ``lower``, the lower bound of the rise in loss without it, among others.
        """
        if self.stage(chunk) in self.table.live:
            self._evidence[chunk] = dict(figures)

    def fade(self, chunks: Iterable[int], verb: str, reason: str, figures: Mapping[str, float], *wanted: Stage) -> None:
        """Let live seeds fade out, and enter the first of the wanted stages that the table allows.

        Raises:
            ValueError: For a chunk out of range.
            LifecycleError: If a seed is not live, or fading already.
        """
        chunks = self.check_live(chunks, verb)
        for chunk in chunks:
            target = self.table.ending(self.stage(chunk), *wanted)
            self._verdicts[chunk] = Verdict(target.name, reason, dict(figures))
        self.state.update(chunks, fading=True)

    def keep(self, chunks: Iterable[int], reason: str, figures: Mapping[str, float]) -> list[Tenancy]:
        """Let judged seeds go on along the path, where they are kept.

        Returns:
            Those that are fossils now.

        Raises:
            ValueError: For a chunk out of range.
            LifecycleError: If a seed is not in the stage in which seeds are judged, or is fading.
        """
        chunks = self.check_live(chunks, "kept")
        following = self.table.following(self.table.judged)
        for chunk in chunks:
            self.table.check(self.stage(chunk), following)
        for chunk in chunks:
            self._enter(chunk, following, reason, figures)
            self._verdicts[chunk] = Verdict(self.table.path[-1].name, reason, dict(figures))
        return [self._settle(chunk) for chunk in chunks if self.stage(chunk) is self.table.path[-1]]

    def end(self, chunks: Iterable[int], reason: str, figures: Mapping[str, float], *wanted: Stage) -> list[Tenancy]:
        """End live seeds at once, alpha 0; they enter the first of the wanted stages that the table allows."""
        left = []
        for chunk in chunks:
            left.append(self._tenancy(chunk))
            target = self.table.ending(self.stage(chunk), *wanted)
            self.state.update(chunk, alpha=0.0, bed=NO_BED, fading=False)
            self._forget(chunk)
            self._enter(chunk, target, reason, figures)
        return left

    def _forget(self, chunk: int) -> None:
        for memory in (self._verdicts, self._strikes, self._ramps, self._evidence):
            memory.pop(chunk, None)

    def _settle(self, chunk: int) -> Tenancy:
        """Forget what a fossil went through."""
        self._forget(chunk)
        return self._tenancy(chunk)

    def strike(self, chunks: Iterable[int], reason: str, figures: Mapping[str, float]) -> list[Tenancy]:
        """Count one error of live seeds: alpha is 0 at once, and rises again until there were too many.

        Returns:
            Those that ended.
        """
        live = [c for c in self.check_distinct(chunks) if self.stage(c) in self.table.live]
        left = []
        for chunk in live:
            self.state.update(chunk, alpha=0.0, errors=self.state.errors[chunk] + 1)
            self._strikes[chunk] = self._strikes.get(chunk, 0) + 1
            if self.stage(chunk) not in self.table.silent:
                self._ramps[chunk] = Ramp()
            if self._strikes[chunk] >= self.config.max_errors:
                left += self.end([chunk], reason, figures, Stage.ERROR_RECOVERY, Stage.CANCELLED)
        return left

    # ------------------------------------------------------------------ time
    @property
    def asleep(self) -> bool:
        """Whether all seeds are dormant, so that time does not matter."""
        return not self.state.stage.any()

    def advance(self, newborn: Callable[[int], bool], signals: Callable[[int], Signals]) -> Moves:
        """One decision tick: ages rise, blend weights move, stages advance by one at most.

        Args:
            newborn: Whether the warm-up of a chunk's seed still runs.
            signals: What the gate of a chunk's seed looks at.
        """
        state, moves = self.state, Moves()
        awake = np.flatnonzero(state.stage != Stage.DORMANT)
        state.update(awake, age=state.age[awake] + 1)
        waiting, live = state.where(*self.table.recovery).tolist(), state.where(*self.table.live).tolist()
        for chunk in waiting:
            if state.age[chunk] > self._wait(chunk):
                self._enter(chunk, Stage.DORMANT, "embargo over")
                state.update(chunk, generation=state.generation[chunk] + 1)
        for chunk in live:
            if state.fading[chunk]:
                self._fade(chunk, moves)
                continue
            if chunk in self._ramps:
                self._rise(chunk, signals(chunk))
            if self.stage(chunk) is self.table.judged:
                self._decide(chunk, moves)
            else:
                self._go_on(chunk, newborn, moves)
        return moves

    def _wait(self, chunk: int) -> int:
        erred = self.stage(chunk) is Stage.ERROR_RECOVERY
        return self.config.recovery_ticks if erred else self.config.embargo_ticks

    def _rise(self, chunk: int, signals: Signals) -> None:
        before = float(self.state.alpha[chunk])
        ramp, alpha = climb(self._ramps[chunk], before, signals, self.grafting, self.config.alpha_step)
        arrived = ramp.progress == 1 and alpha > 1 - 1e-6
        self.state.update(chunk, alpha=1.0 if arrived else alpha)
        self._ramps[chunk] = ramp
        if arrived:
            del self._ramps[chunk]

    def _go_on(self, chunk: int, newborn: Callable[[int], bool], moves: Moves) -> None:
        """To the next stage of the path, if this one has done its work or lasted too long."""
        stage, age = self.stage(chunk), int(self.state.age[chunk])
        reason = None if chunk in self._ramps else self._done(stage, age, newborn(chunk))
        if reason is None and age >= self.config.timeout(stage):
            reason = "timeout"
            self._ramps.pop(chunk, None)
        if reason is None:
            return
        verdict = self._verdicts.get(chunk) if stage is self.table.path[-2] else None
        if verdict is None:
            self._enter(chunk, self.table.following(stage), reason)
        else:
            self._enter(chunk, Stage[verdict.target], verdict.reason, verdict.figures)
            moves.kept.append(self._settle(chunk))

    def _done(self, stage: Stage, age: int, newborn: bool) -> str | None:
        """Why a stage has done its work, None if it has not; alpha stands where it is to stand."""
        config = self.config
        if stage is Stage.GERMINATED and age >= config.germinated_ticks:
            return "in its bed"
        if stage is Stage.TRAINING and age >= config.training_ticks:
            return "no incubation" if config.incubation == "none" else "incubated"
        if stage is Stage.GRAFTING:
            return "alpha has risen"
        if stage is Stage.LOADING and not newborn:
            return "warm-up over"
        if stage is Stage.STABILIZATION and not newborn and age >= config.stabilization_ticks:
            return "warm-up over"
        if stage is Stage.FINE_TUNING and age >= config.fine_tuning_ticks:
            return "fine-tuned"
        return None

    def _decide(self, chunk: int, moves: Moves) -> None:
        """Where nobody has judged a seed in time: by the evidence at hand, without any it is kept."""
        if self.state.age[chunk] <= self.config.timeout(self.table.judged):
            return
        figures = self._evidence.get(chunk, {})
        lower = figures.get("lower", math.nan)
        if lower <= 0:
            self.fade([chunk], "culled", "timeout: no proven gain", figures, Stage.CULLED)
        else:
            reason = "timeout: proven gain" if lower > 0 else "unjudged: timeout"
            moves.kept += self.keep([chunk], reason, figures)

    def _fade(self, chunk: int, moves: Moves) -> None:
        alpha = float(self.state.alpha[chunk]) - self.config.alpha_step
        alpha = alpha if alpha > 1e-6 else 0.0  # float32 may leave a rest below its resolution at 1
        self.state.update(chunk, alpha=alpha)
        if alpha == 0:
            verdict = self._verdicts[chunk]
            moves.ended += self.end([chunk], verdict.reason, verdict.figures, Stage[verdict.target])

    def renew(self) -> None:
        """Put a new dormant seed where one was kept."""
        kept = self.state.where(Stage.FOSSILIZED)
        if kept.size:
            successors = self.state.generation[kept] + 1
            self.state.update(kept, stage=Stage.DORMANT, generation=successors, bed=NO_BED, alpha=0.0, age=0)

    def _tenancy(self, chunk: int) -> Tenancy:
        return Tenancy(chunk, int(self.state.bed[chunk]), float(self.state.alpha[chunk]))

    def _enter(self, chunk: int, target: Stage, reason: str, figures: Mapping[str, float] | None = None) -> None:
        source = self.stage(chunk)
        self.table.check(source, target)
        transition = Transition(
            layer=self.name,
            chunk=chunk,
            generation=int(self.state.generation[chunk]),
            blueprint=self.kind,
            source=source,
            target=target,
            reason=reason,
            figures=dict(figures or {}),
        )
        self.state.update(chunk, stage=target, age=0)
        if target is self.table.rising and self.ramped:
            self._ramps[chunk] = Ramp()
        log.debug("%s[%d] %s -> %s: %s", self.name, chunk, source.name, target.name, reason)
        if self.on_transition is not None:
            self.on_transition(transition)

    # ------------------------------------------------------------------ persistence
    def to_dict(self) -> dict[str, Any]:
        """All of it as plain values."""
        return {
            "state": self.state.to_dict(),
            "verdicts": {chunk: asdict(verdict) for chunk, verdict in self._verdicts.items()},
            "strikes": dict(self._strikes),
            "ramps": {chunk: asdict(ramp) for chunk, ramp in self._ramps.items()},
            "evidence": {chunk: dict(figures) for chunk, figures in self._evidence.items()},
        }

    def load_dict(self, saved: Mapping[str, Any]) -> None:
        """Restore what :meth:`to_dict` gave."""
        self.state.load_dict(saved["state"])
        self._verdicts = {int(chunk): Verdict(**verdict) for chunk, verdict in saved.get("verdicts", {}).items()}
        self._strikes = {int(chunk): count for chunk, count in saved.get("strikes", {}).items()}
        self._ramps = {int(chunk): Ramp(**ramp) for chunk, ramp in saved.get("ramps", {}).items()}
        self._evidence = {int(chunk): dict(figures) for chunk, figures in saved.get("evidence", {}).items()}
