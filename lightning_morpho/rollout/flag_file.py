"""The flag file: flags that change while a fit runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import yaml

from lightning_morpho.checks import suggest
from lightning_morpho.rollout.flags import CHUNKED_LAYERS
from lightning_morpho.rollout_config import FLAGS, FlagConfig, RolloutConfig

Overlay = Mapping[str, Mapping[str, Any]]
"""For each flag the keys that a file sets, checked."""

_FLAG_KEYS = tuple(item.name for item in fields(FlagConfig))
_ROLLOUT_KEYS = (*(item.name for item in fields(RolloutConfig)), "_target_", "defaults")


class FlagFileError(ValueError):
    """A flag file can't be understood; the message names the key, the value and the way out."""


def parse_flags(text: str, source: str = "flag file") -> Overlay:
    """Read the flags of a YAML text: a rollout's keys at the top, under ``rollout`` or ``morpho.rollout``.

    Only the flags themselves are taken (``enabled``, ``percentage``, ``unit``, the lists, ``salt`` and
    ``flags``); ramps and the flag file's own settings hold as the run was started with.

    Args:
        text: The YAML text; empty sets nothing.
        source: What to call it in messages.

    Raises:
        FlagFileError: If it is no such YAML, a key is unknown or a value out of range.

    Example:
        >>> parse_flags("enabled: false  # stop")
        {'chunked_layers': {'enabled': False}}
    """
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise FlagFileError(f"`{source}` is no YAML: {' '.join(str(error).split())}") from error
    node = rollout_node({} if content is None else content, source)
    overlay = {CHUNKED_LAYERS: {key: node[key] for key in _FLAG_KEYS if key in node}}
    for key in node:
        if key not in _ROLLOUT_KEYS:
            raise FlagFileError(f"`{source}` has no key `{key}`: {suggest(str(key), _ROLLOUT_KEYS)}")
    try:
        checked = RolloutConfig(**overlay[CHUNKED_LAYERS], flags=node.get("flags") or {})
        given = {name: dict(flag) for name, flag in (node.get("flags") or {}).items()}
        overlay |= {name: {key: getattr(checked.flags[name], key) for key in flag} for name, flag in given.items()}
    except (TypeError, ValueError) as error:
        raise FlagFileError(f"`{source}`: {error}") from error
    return {name: keys for name, keys in overlay.items() if keys}


def rollout_path(content: Mapping[str, Any]) -> tuple[str, ...]:
    """Where in a configuration the rollout stands: at the top, under ``rollout`` or ``morpho.rollout``."""
    for path in (("morpho", "rollout"), ("rollout",)):
        node: Any = content
        for key in path:
            node = node.get(key) if isinstance(node, Mapping) else None
        if isinstance(node, Mapping):
            return path
    return ()


def rollout_node(content: object, source: str = "flag file") -> Mapping[str, Any]:
    """The rollout in a configuration.

    Raises:
        FlagFileError: If the configuration is no mapping.
    """
    if not isinstance(content, Mapping):
        raise FlagFileError(f"`{source}` must be a mapping such as `enabled: false`, got {content!r}.")
    node: Any = content
    for key in rollout_path(content):
        node = node[key]
    return node


def with_overlay(name: str, flag: FlagConfig, overlay: Overlay) -> FlagConfig:
    """A flag as a file changes it."""
    return replace(flag, **overlay.get(name, {})) if name in (CHUNKED_LAYERS, *FLAGS) else flag


@dataclass(frozen=True)
class Look:
    """What a look at the file found: plain values, to be sent to all ranks.

    Attributes:
        overlay: The flags that it sets; those before it if there is a problem.
        problem: Why it can't be understood; empty if it can.
        missing: Whether there is no such file.
    """

    overlay: Overlay = field(default_factory=dict)
    problem: str = ""
    missing: bool = False


class FlagFile:
    """Looks at a file again and again. A missing one sets nothing, one in error changes nothing.

    Args:
        path: The file; it need not exist yet.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self._seen: str | None = None
        self._last = Look()

    def look(self) -> Look | None:
        """What it says; None if that is what it said at the last look."""
        text = self._read()
        if text == self._seen:
            return None
        self._seen = text
        try:
            self._last = Look(parse_flags(text or "", str(self.path)), missing=text is None)
        except FlagFileError as error:
            return Look(self._last.overlay, problem=str(error))
        return self._last

    def _read(self) -> str | None:
        try:
            return self.path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as error:
            # As text that is no mapping, so that it is reported like any other.
            return f"unreadable: [{type(error).__name__}"
