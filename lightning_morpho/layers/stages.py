"""The stages of a layer's seeds: who may go where and when. Host-side numbers alone, no tensor in sight."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from lightning_morpho.chunks import ChunkManager
from lightning_morpho.config import LifecycleConfig
from lightning_morpho.lifecycle import PHASE1, LifecycleError, Stage
from lightning_morpho.state import NO_BED, StateTensor

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
class Verdict:
    """Why a seed is on its way out.

    Attributes:
        target: Name of the stage that it enters at alpha 0.
        reason: Why, in words.
        figures: The numbers that decided it.
    """

    target: str
    reason: str
    figures: Mapping[str, float]


@dataclass(frozen=True)
class Tenancy:
    """A seed that left its bed, or is to stay there for good.

    Attributes:
        chunk: Its chunk.
        bed: Index of the bed.
        alpha: Its blend weight.
    """

    chunk: int
    bed: int
    alpha: float


@dataclass
class Moves:
    """What one tick did to the tenancy of beds.

    Attributes:
        ended: Seeds whose place is free now.
        kept: Seeds that became fossils.
    """

    ended: list[Tenancy] = field(default_factory=list)
    kept: list[Tenancy] = field(default_factory=list)


class StageMachine:
    """Stages, ages and blend weights of the seeds of one layer, driven by a transition table.

    It knows nothing of parameters: what becomes of beds is returned to :class:`SeedBeds`.

    Args:
        name: Name of the layer.
        kind: Name of the blueprint.
        chunks: Layout of its chunks.
        config: Ages, timeouts, embargo, alpha's step, errors.

    Attributes:
        table: The transition table.
        state: :class:`~lightning_morpho.StateTensor` of the current seed of each chunk.
        on_transition: Receives each transition as it happens.
    """

    def __init__(self, name: str, kind: str, chunks: ChunkManager, config: LifecycleConfig) -> None:
        self.name = name
        self.kind = kind
        self.config = config
        self.table = PHASE1
        self.state = StateTensor(chunks.num_chunks)
        self.on_transition: Callable[[Transition], None] | None = None
        self._chunks = chunks
        self._verdicts: dict[int, Verdict] = {}
        self._strikes: dict[int, int] = {}
        self._rising: set[int] = set()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"on_transition": None}  # it points at the run; a copy has none

    # ------------------------------------------------------------------ checks
    def check_distinct(self, chunks: Iterable[int]) -> list[int]:
        """Chunks as plain integers.

        Raises:
            ValueError: For a chunk out of range or named twice.
        """
        wanted = [int(chunk) for chunk in chunks]
        for chunk in wanted:
            self._chunks.check_index(chunk)
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
        waiting = state.fading[chunk] or chunk in self._rising
        return self.stage(chunk) is self.table.judged and not waiting and state.age[chunk] >= self.config.active_ticks

    # ------------------------------------------------------------------ requests
    def germinate(self, chunks: list[int], bed: int, reason: str) -> None:
        """Let dormant seeds take a bed."""
        self.state.update(chunks, bed=bed, alpha=1.0)
        for chunk in chunks:
            self._move(chunk, self.table.path[1], reason)

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
            self._move(chunk, following, reason, figures)
        return [self._tenancy(chunk) for chunk in chunks]

    def end(self, chunks: Iterable[int], reason: str, figures: Mapping[str, float], *wanted: Stage) -> list[Tenancy]:
        """End live seeds at once, alpha 0; they enter the first of the wanted stages that the table allows."""
        left = []
        for chunk in chunks:
            left.append(self._tenancy(chunk))
            target = self.table.ending(self.stage(chunk), *wanted)
            self.state.update(chunk, alpha=0.0, bed=NO_BED, fading=False)
            self._verdicts.pop(chunk, None)
            self._strikes.pop(chunk, None)
            self._rising.discard(chunk)
            self._move(chunk, target, reason, figures)
        return left

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
            self._rising.add(chunk)
            if self._strikes[chunk] >= self.config.max_errors:
                left += self.end([chunk], reason, figures, Stage.ERROR_RECOVERY, Stage.CANCELLED)
        return left

    # ------------------------------------------------------------------ time
    @property
    def asleep(self) -> bool:
        """Whether all seeds are dormant, so that time does not matter."""
        return not self.state.stage.any()

    def advance(self, newborn: Callable[[int], bool]) -> Moves:
        """One decision tick: ages rise, blend weights move, stages advance.

        Args:
            newborn: Whether the warm-up of a chunk's bed still runs.
        """
        state, moves = self.state, Moves()
        awake = np.flatnonzero(state.stage != Stage.DORMANT)
        state.update(awake, age=state.age[awake] + 1)
        for chunk in sorted(self._rising - self._verdicts.keys()):
            self._rise(chunk)
        for chunk in np.flatnonzero(state.fading).tolist():
            self._fade(chunk, moves)
        for chunk in state.where(*self.table.recovery).tolist():
            if state.age[chunk] > self._wait(chunk):
                self._move(chunk, Stage.DORMANT, "embargo over")
                state.update(chunk, generation=state.generation[chunk] + 1)
        for chunk in state.where(Stage.LOADING).tolist():
            timeout = state.age[chunk] >= self.config.timeout_ticks
            if not state.fading[chunk] and (timeout or not newborn(chunk)):
                self._move(chunk, Stage.ACTIVE, "timeout" if timeout else "warm-up over")
        return moves

    def _wait(self, chunk: int) -> int:
        erred = self.stage(chunk) is Stage.ERROR_RECOVERY
        return self.config.recovery_ticks if erred else self.config.embargo_ticks

    def _rise(self, chunk: int) -> None:
        alpha = min(1.0, float(self.state.alpha[chunk]) + self.config.alpha_step)
        self.state.update(chunk, alpha=alpha)
        if alpha == 1:
            self._rising.discard(chunk)

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

    def _move(self, chunk: int, target: Stage, reason: str, figures: Mapping[str, float] | None = None) -> None:
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
            "rising": sorted(self._rising),
        }

    def load_dict(self, saved: Mapping[str, Any]) -> None:
        """Restore what :meth:`to_dict` gave."""
        self.state.load_dict(saved["state"])
        self._verdicts = {int(chunk): Verdict(**verdict) for chunk, verdict in saved.get("verdicts", {}).items()}
        self._strikes = {int(chunk): count for chunk, count in saved.get("strikes", {}).items()}
        self._rising = set(saved.get("rising", ()))
