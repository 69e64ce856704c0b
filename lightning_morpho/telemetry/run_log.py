"""What a run leaves for later eyes: ``morpho_metrics.jsonl``, one JSON object a line, read without any logger.

It lies beside ``morpho_events.jsonl``, which stays the source of truth for what seeds did. A resumed run appends to
it; a line that a kill cut off is skipped by :func:`read_lines`. Every line has ``kind``, ``time`` (Unix seconds),
``tick``, ``step`` (optimizer steps done) and ``epoch``. A number that was not measured is ``null``, never 0.

``"start"``, at each start of a fit
    ``format`` (1), ``resumed``, ``versions`` by package, ``config`` (the callback's arguments, nested), ``trainer``
    (``max_epochs``, ``max_steps``, ``total_steps``, ``world_size``, ``device``, ``precision``, ``strategy``),
    ``model`` (``class``, ``parameters``, ``trainable``, ``modules``; beds apart), ``eligibility`` (``budget`` and
    ``modules``: one object a module as in :class:`~lightning_morpho.eligibility.ModuleReport`; null for a model that
    was swapped before), ``layers`` by name: ``type``, ``features``, ``seeds``, ``beds``, ``bed_parameters``,
    ``blueprint``, ``producers``.
``"metrics"``, after each validation and each epoch
    ``values``: what the Trainer holds as ``callback_metrics``, by name, as far as it is new since the last such
    line. A name that is absent kept its value. Metrics of growth (``morpho/...``) are left to the ticks.
``"tick"``, after each decision tick
    ``loss`` (held-out, as Tamiyo saw it), ``run`` and ``layers.<name>.values``: figures by name, see
    :data:`~lightning_morpho.telemetry.figures.RUN_FIGURES` and ``LAYER_FIGURES``; ``layers.<name>.stages``: seeds by
    name of their stage, empty stages left out; ``layers.<name>.on``: false where the rollout has it switched off;
    ``live``: at most 32 live seeds, the youngest first, each with ``layer``, ``chunk`` and its figures
    (``SEED_FIGURES``); ``seeds.<name>``: maps of all seeds of a layer, see below, present only in lines in which
    the layer's map differs from the one before.
``"end"``
    ``outcome``: ``"finished"``, or what interrupted the fit; ``seeds``: at most 1000 records of seeds that left
    dormancy, as in :class:`~lightning_morpho.telemetry.SeedRecord`.

A map has one byte a seed, packed by :func:`pack`: ``stage`` (values of :class:`~lightning_morpho.Stage`), ``alpha``
(of 255), ``generation`` (at most 255).
"""

from __future__ import annotations

import base64
import dataclasses
import enum
import math
import time
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lightning_morpho.telemetry.events import LogFile, read_events

METRICS_FILE = "morpho_metrics.jsonl"
FORMAT = 1


def pack(values: np.ndarray) -> str:
    """Bytes as compressed base64 text.

    Args:
        values: uint8, ``(N,)``.

    Example:
        >>> text = pack(np.zeros(4096, dtype=np.uint8))
        >>> len(text), unpack(text).shape
        (36, (4096,))
    """
    return base64.b64encode(zlib.compress(np.ascontiguousarray(values, dtype=np.uint8).tobytes())).decode()


def unpack(text: str) -> np.ndarray:
    """Inverse of :func:`pack`: uint8, ``(N,)``."""
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype=np.uint8)


def plain(value: Any) -> Any:
    """A value as JSON can hold it: dataclasses as objects, enums by name, numbers that aren't finite as null.

    Example:
        >>> plain({"loss": float("nan"), "shape": (2, np.int64(3))})
        {'loss': None, 'shape': [2, 3]}
    """
    if type(value) is float:  # by far the most
        return value if math.isfinite(value) else None
    if isinstance(value, enum.Enum):
        return value.name
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, (np.integer, np.bool_)):
        return value.item()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset, np.ndarray)):
        return [plain(item) for item in (sorted(value) if isinstance(value, (set, frozenset)) else value)]
    return str(value)


class RunLog:
    """Writes the lines of one fit.

    Args:
        path: The file, None to write nothing.
    """

    def __init__(self, path: Path | None) -> None:
        self._file = None if path is None else LogFile(path)
        self._maps: dict[str, dict[str, bytes]] = {}
        self._values: dict[str, float] = {}

    @property
    def writes(self) -> bool:
        """Whether lines go anywhere."""
        return self._file is not None

    def write(self, kind: str, *, tick: int, step: int, epoch: int, **content: Any) -> None:
        """Add one line."""
        if self._file is None:
            return
        head = {"kind": kind, "time": round(time.time(), 3), "tick": tick, "step": step, "epoch": epoch}
        self._file.add(head | plain(content))

    def changed_maps(self, maps: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, dict[str, str]]:
        """The maps of those layers whose seeds changed since the last call, packed."""
        changed = {}
        for layer, arrays in maps.items():
            raw = {name: values.tobytes() for name, values in arrays.items()}
            if raw != self._maps.get(layer):
                self._maps[layer] = raw
                changed[layer] = {name: pack(values) for name, values in arrays.items()}
        return changed

    def changed_values(self, values: Mapping[str, float]) -> dict[str, float]:
        """The values that are new or others than at the last call."""
        changed = {n: v for n, v in values.items() if n not in self._values or not _same(v, self._values[n])}
        self._values |= changed
        return changed


def _same(one: float, other: float) -> bool:
    return one == other or (math.isnan(one) and math.isnan(other))


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a run in order, the maps of each tick completed: unpacked, and of every layer.

    A tick that a resumed run made again stands there twice; the last one counts.
    """
    maps: dict[str, dict[str, np.ndarray]] = {}
    for line in read_events(path):
        if line["kind"] == "tick":
            for layer, arrays in line["seeds"].items():
                maps[layer] = {name: unpack(text) for name, text in arrays.items()}
            line["seeds"] = dict(maps)
        yield line
