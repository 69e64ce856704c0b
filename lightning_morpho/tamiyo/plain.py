"""Observations and decisions as JSON, both ways and without loss."""

from __future__ import annotations

import base64
import dataclasses
import functools
import json
import math
import types
import typing
import zlib
from collections.abc import Hashable, Mapping, Sequence
from enum import Enum
from typing import Any, TypeVar

from lightning_morpho.tamiyo.observation import Decision, Observation

T = TypeVar("T")
Plain = Any
"""What ``json`` writes: None, a bool, a number, a string, a list or a dict with string keys."""

_PACK_ABOVE = 2048
"""Characters of JSON above which text is compressed: below, readable text is worth more than its size."""

DECISIONS: Mapping[str, type[Any]] = {kind.__name__: kind for kind in typing.get_args(Decision)}
"""The kinds of decisions by name."""


def to_plain(value: Any) -> Plain:
    """A frozen dataclass of ours, or a value in one, as JSON can hold it; fields at their default are left out.

    Numbers that JSON does not know become the strings ``"nan"``, ``"inf"`` and ``"-inf"``; a mapping whose keys are
    no strings becomes a list of pairs, a set a sorted list.

    Example:
        >>> from lightning_morpho.tamiyo import Measurement
        >>> to_plain(Measurement(seeds=(("net.0", 1),), rise=0.25, lower=math.nan, batches=1))
        {'seeds': [['net.0', 1]], 'rise': 0.25, 'lower': 'nan', 'batches': 1}
    """
    if value is None or isinstance(value, (str, bool)):
        return value
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, (int, float)):
        return value
    if dataclasses.is_dataclass(value):
        present = ((item, getattr(value, item.name)) for item in dataclasses.fields(value))
        return {item.name: to_plain(v) for item, v in present if not _is_default(item, v)}
    if isinstance(value, Mapping):
        if all(isinstance(key, str) for key in value):
            return {key: to_plain(item) for key, item in value.items()}
        return [[to_plain(key), to_plain(item)] for key, item in value.items()]
    if isinstance(value, (set, frozenset)):
        return sorted((to_plain(item) for item in value), key=json.dumps)
    if isinstance(value, (tuple, list)):
        return [to_plain(item) for item in value]
    raise TypeError(f"`value` must be plain or a dataclass of plain values, got {type(value).__name__}.")


def _is_default(item: dataclasses.Field[Any], value: Any) -> bool:
    if item.default is not dataclasses.MISSING:
        return type(value) is type(item.default) and value == item.default
    return item.default_factory is not dataclasses.MISSING and value == item.default_factory()


def from_plain(kind: Any, plain: Plain) -> Any:
    """What :func:`to_plain` was given.

    Args:
        kind: Its type, as an annotation.
        plain: What :func:`to_plain` gave.

    Raises:
        ValueError: If a field is missing, or there is one that the type does not have.

    Example:
        >>> from lightning_morpho.tamiyo import Measurement
        >>> plain = {"seeds": [["net.0", 1]], "rise": 0.25, "lower": "nan", "batches": 1}
        >>> measurement = from_plain(Measurement, plain)
        >>> measurement.seeds, measurement.rise, measurement.lower
        ((('net.0', 1),), 0.25, nan)
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        return _dataclass(typing.cast("type[Any]", kind), plain)
    if origin in (typing.Union, types.UnionType):
        return _union(arguments, plain)
    if origin is tuple and arguments[-1:] == (...,):
        return tuple(from_plain(arguments[0], item) for item in plain)
    if origin is tuple:
        return tuple(from_plain(part, item) for part, item in zip(arguments, plain, strict=True))
    if origin is frozenset:
        return frozenset(from_plain(arguments[0], item) for item in plain)
    if origin is not None and isinstance(origin, type) and issubclass(origin, Mapping):
        pairs = plain.items() if isinstance(plain, dict) else plain
        return {from_plain(arguments[0], key): from_plain(arguments[1], item) for key, item in pairs}
    if isinstance(kind, type) and issubclass(kind, Enum):
        return kind(plain)
    return float(plain) if kind is float and isinstance(plain, str) else plain


def _union(kinds: Sequence[Any], plain: Plain) -> Any:
    """One of several types: None, a literal, or the one that is not None."""
    if plain is None:
        return None
    others = [kind for kind in kinds if kind is not type(None)]
    literals = [kind for kind in others if typing.get_origin(kind) is typing.Literal]
    if any(plain in typing.get_args(kind) for kind in literals):
        return plain
    rest = [kind for kind in others if kind not in literals]
    return from_plain(rest[0], plain) if len(rest) == 1 else plain


_hints = functools.lru_cache(typing.get_type_hints)


def _dataclass(kind: type[Any], plain: Plain) -> Any:
    hints: dict[str, Any] = _hints(typing.cast("Hashable", kind))
    unknown = sorted(set(plain) - {item.name for item in dataclasses.fields(kind)})
    if unknown:
        raise ValueError(
            f"A recorded {kind.__name__} has the fields {unknown}, which this version does not know: "
            "replay it with the version that wrote it."
        )
    try:
        return kind(**{name: from_plain(hints[name], value) for name, value in plain.items()})
    except TypeError as error:
        raise ValueError(f"A recorded {kind.__name__} lacks fields of this version: {error}.") from error


def decisions_to_plain(decisions: Sequence[Decision]) -> Plain:
    """Decisions as JSON can hold them, each with its kind."""
    return [{"kind": type(decision).__name__, **to_plain(decision)} for decision in decisions]


def decisions_from_plain(plain: Plain) -> list[Decision]:
    """What :func:`decisions_to_plain` was given."""
    return [from_plain(DECISIONS[item["kind"]], {k: v for k, v in item.items() if k != "kind"}) for item in plain]


def pack(plain: Plain) -> Plain:
    """Large plain values as one compressed string, small ones as they are.

    A layer of 1,000 dormant seeds is a line of numbers that repeat; as text it would make an event log of
    megabytes.
    """
    text = json.dumps(plain, separators=(",", ":"))
    if len(text) <= _PACK_ABOVE:
        return plain
    return base64.b85encode(zlib.compress(text.encode(), 6)).decode()


def unpack(packed: Plain) -> Plain:
    """What :func:`pack` was given.

    Example:
        >>> unpack(pack(list(range(5000))))[-1]
        4999
    """
    return json.loads(zlib.decompress(base64.b85decode(packed))) if isinstance(packed, str) else packed


def observation_to_plain(observation: Observation) -> Plain:
    """An observation as JSON can hold it, packed if it is large."""
    return pack(to_plain(observation))


def observation_from_plain(plain: Plain) -> Observation:
    """What :func:`observation_to_plain` was given."""
    observation: Observation = from_plain(Observation, unpack(plain))
    return observation
