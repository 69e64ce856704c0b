"""State of all seeds of a layer: one structure of arrays on the host, and a view of a single seed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lightning_morpho.lifecycle import LifecycleError, Stage

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

NO_BED = -1

_FIELDS: dict[str, tuple[type[np.generic], int | float]] = {
    "stage": (np.uint8, Stage.DORMANT),
    "fading": (np.bool_, False),
    "bed": (np.int16, NO_BED),
    "errors": (np.uint16, 0),
    "generation": (np.int32, 0),
    "age": (np.int32, 0),
    "alpha": (np.float32, 0.0),
}


class StateTensor:
    """State of the seeds of one layer as a structure of arrays, 18 bytes a seed.

    It lies on the host and is authoritative there: the original design kept it on the GPU, where each
    look at a stage stalls the device. What the device needs (alpha) is written to it when it changes.

    Args:
        num_seeds: Seeds of the layer, ``>= 1``.

    Attributes:
        stage: :class:`~lightning_morpho.lifecycle.Stage` of each seed.
        fading: Whether its alpha is falling to 0 before it is culled.
        bed: Index of the bed that it occupies, -1 for none.
        errors: Errors contained so far.
        generation: How many seeds this chunk had before.
        age: Decision ticks in the current stage.
        alpha: Blend weight in [0, 1].
        version: Counts the updates.
    """

    stage: np.ndarray
    fading: np.ndarray
    bed: np.ndarray
    errors: np.ndarray
    generation: np.ndarray
    age: np.ndarray
    alpha: np.ndarray

    def __init__(self, num_seeds: int) -> None:
        if num_seeds < 1:
            raise ValueError(f"`num_seeds` must be at least 1, got {num_seeds}.")
        for name, (dtype, default) in _FIELDS.items():
            setattr(self, name, np.full(num_seeds, default, dtype=dtype))
        self.version = 0

    def __len__(self) -> int:
        return len(self.stage)

    @property
    def nbytes(self) -> int:
        """Memory of the arrays, in bytes."""
        return sum(getattr(self, name).nbytes for name in _FIELDS)

    def where(self, *stages: Stage) -> np.ndarray:
        """Indices of the seeds in one of the stages."""
        if not stages:
            return np.empty(0, dtype=np.int64)
        found = self.stage == np.uint8(stages[0])  # an IntEnum would be compared as int64
        for stage in stages[1:]:
            found |= self.stage == np.uint8(stage)
        return np.flatnonzero(found)

    def update(self, seeds: Any, **values: Any) -> None:
        """Set fields of several seeds at once: all of it or, if anything is wrong, nothing.

        Args:
            seeds: Indices of seeds, an integer or a sequence of them; not a mask.
            **values: New values by field name: one for all, or one a seed.

        Raises:
            TypeError: If ``seeds`` holds no integers.
            ValueError: For a seed out of range, an unknown field, an alpha outside [0, 1] or a value that
                the field can't hold.
        """
        indices = np.atleast_1d(np.asarray(seeds))
        if indices.size and indices.dtype.kind not in "iu":
            raise TypeError(f"`seeds` must be integer indices, got {indices.dtype.name}.")
        indices = indices.astype(np.int64, copy=False)
        if indices.size and not (indices.min() >= 0 and indices.max() < len(self)):
            bad = indices[(indices < 0) | (indices >= len(self))]
            raise ValueError(f"`seeds` must lie in [0, {len(self) - 1}], got {bad.tolist()}.")
        unknown = values.keys() - _FIELDS.keys()
        if unknown:
            raise ValueError(f"Unknown state field {sorted(unknown)}; the fields are {sorted(_FIELDS)}.")
        arrays = {name: _checked(name, value, indices.shape) for name, value in values.items()}
        for name, array in arrays.items():
            getattr(self, name)[indices] = array
        self.version += 1

    def to_dict(self) -> dict[str, list[Any]]:
        """All arrays as plain lists, safe to load with ``weights_only=True``."""
        return {name: getattr(self, name).tolist() for name in _FIELDS}

    def load_dict(self, state: Mapping[str, list[Any]]) -> None:
        """Restore what :meth:`to_dict` gave.

        Raises:
            KeyError: If a field is missing; then nothing is loaded.
            ValueError: If the number of seeds is another one.
        """
        if len(state["stage"]) != len(self):
            raise ValueError(f"The state of {len(self)} seeds was expected, got {len(state['stage'])}.")
        arrays = {name: np.asarray(state[name], dtype=dtype) for name, (dtype, _) in _FIELDS.items()}
        for name, array in arrays.items():
            setattr(self, name, array)
        self.version += 1


def _checked(name: str, value: Any, shape: tuple[int, ...]) -> np.ndarray:
    """New values of a field, in its dtype; refused if it can't hold them."""
    dtype = _FIELDS[name][0]
    given = np.asarray(value)
    array = given.astype(dtype)
    if name == "alpha" and not np.all((array >= 0) & (array <= 1)):
        raise ValueError(f"`alpha` must lie in [0, 1], got {given.tolist()}.")
    if name != "alpha" and not np.array_equal(array, given):
        raise ValueError(f"`{name}` holds values of {np.dtype(dtype).name}, got {given.tolist()}.")
    return array if array.ndim == 0 else np.broadcast_to(array, shape)


class LogicalSeed:
    """View of one seed of a layer: always current, owns nothing.

    Args:
        state: State of the layer's seeds.
        index: Chunk that the seed belongs to.
        blueprint: Kind of network that it grows.
        health: Statistics of its chunk as last sampled, empty if none were.
        germinate: How its layer germinates the seeds of some chunks; None for a state without a layer.
    """

    def __init__(
        self,
        state: StateTensor,
        index: int,
        blueprint: str,
        health: Mapping[str, float],
        germinate: Callable[[list[int]], list[int]] | None = None,
    ) -> None:
        self._state = state
        self._germinate = germinate
        self.index = index
        self.blueprint = blueprint
        self.health = health

    @property
    def stage(self) -> Stage:
        """Current stage."""
        return Stage(int(self._state.stage[self.index]))

    @property
    def alpha(self) -> float:
        """Blend weight in [0, 1]."""
        return float(self._state.alpha[self.index])

    @property
    def generation(self) -> int:
        """How many seeds this chunk had before."""
        return int(self._state.generation[self.index])

    @property
    def age(self) -> int:
        """Decision ticks in the current stage."""
        return int(self._state.age[self.index])

    @property
    def bed(self) -> int | None:
        """Bed that it occupies, None while it has none."""
        bed = int(self._state.bed[self.index])
        return None if bed == NO_BED else bed

    @property
    def errors(self) -> int:
        """Errors contained so far, those of the chunk's earlier seeds included."""
        return int(self._state.errors[self.index])

    @property
    def recovering(self) -> bool:
        """Whether errors ended it, and it waits ``lifecycle.recovery_ticks`` until its chunk may germinate again."""
        return self.stage is Stage.ERROR_RECOVERY

    def request_germination(self) -> None:
        """Ask for adaptation in this chunk: its blueprint grows at once. The layer's output does not change.

        Whether a chunk needs it is for a policy to say, which sees the whole model; ``health`` alone does not tell.

        Raises:
            LifecycleError: If the seed is not dormant, no bed is free, or the view belongs to no layer.

        Example:
            >>> from torch import nn
            >>> from lightning_morpho import HybridKasminaLayer
            >>> seed = HybridKasminaLayer(nn.Linear(8, 6)).seed(0)
            >>> seed.request_germination()
            >>> seed.stage.name, seed.recovering
            ('LOADING', False)
        """
        if self._germinate is None:
            raise LifecycleError(
                f"Seed {self.index} is a view of a state without a layer, and nothing can grow there: "
                "take it from `layer.seed(chunk)`."
            )
        self._germinate([self.index])

    def __repr__(self) -> str:
        return (
            f"LogicalSeed(chunk={self.index}, generation={self.generation}, stage={self.stage.name}, "
            f"alpha={self.alpha:g}, age={self.age}, blueprint={self.blueprint!r})"
        )
