"""Single values of a YAML file changed in place: comments, order and quoting of all else stay, byte for byte."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, SequenceNode

INDENT = "  "


def set_value(text: str, path: Sequence[str], value: Any) -> str:
    """Set one key; missing keys and mappings are added behind their siblings.

    Args:
        text: The YAML text.
        path: Keys from the top.
        value: Scalar, list or mapping.

    Raises:
        ValueError: If something on the path is no mapping, or the result would not say what it should.

    Example:
        >>> print(set_value("percentage: 5  # percent", ["percentage"], 25))
        percentage: 25  # percent
    """
    root = yaml.compose(text)
    changed = _set(text, root, list(path), value)
    _check(text, changed, path, value)
    return changed


def _set(text: str, root: Node | None, path: list[str], value: Any) -> str:
    if root is None:
        return text + ("" if not text or text.endswith("\n") else "\n") + _lines(path, value, "") + "\n"
    node = root
    for depth, key in enumerate(path):
        if not isinstance(node, MappingNode):
            raise ValueError(f"`{'.'.join(path[:depth])}` must be a mapping to hold `{key}`.")
        child = next((v for k, v in node.value if k.value == key), None)
        if child is None:
            return _insert(text, node, path[depth:], value)
        node = child
    return _replace(text, node, value)


def _replace(text: str, node: Node, value: Any) -> str:
    """Put a value where a node stands; of a list in lines, only the lines that differ are touched."""
    if isinstance(node, SequenceNode) and not node.flow_style and isinstance(value, list) and value:
        return _replace_lines(text, node, value)
    start, end = node.start_mark.index, node.end_mark.index
    if isinstance(node, (SequenceNode, MappingNode)) and not node.flow_style and node.value:
        end = node.value[-1][1].end_mark.index if isinstance(node, MappingNode) else node.value[-1].end_mark.index
    gap = "" if start == 0 or text[start - 1].isspace() else " "
    return text[:start] + gap + _flow(value) + text[end:]


def _replace_lines(text: str, node: SequenceNode, value: list[Any]) -> str:
    lines = text.splitlines(keepends=True)
    kept = [item for item in node.value if yaml.safe_load(_source(text, item)) in value]
    present = [yaml.safe_load(_source(text, item)) for item in kept]
    indent = lines[node.value[0].start_mark.line].split("-")[0]
    new = [f"{indent}- {_flow(item)}\n" for item in value if item not in present]
    last = node.value[-1].end_mark.line
    if not lines[last].endswith("\n"):
        lines[last] += "\n"
    dropped = {item.start_mark.line for item in node.value if item not in kept}
    before = [line for number, line in enumerate(lines[: last + 1]) if number not in dropped]
    return "".join([*before, *new, *lines[last + 1 :]])


def _source(text: str, node: Node) -> str:
    return text[node.start_mark.index : node.end_mark.index]


def _insert(text: str, node: MappingNode, path: list[str], value: Any) -> str:
    """Add keys behind the last one of a mapping."""
    if node.flow_style or not node.value:
        last = node.value[-1][1].end_mark.index if node.value else node.start_mark.index + 1
        comma = ", " if node.value else ""
        return f"{text[:last]}{comma}{path[0]}: {_flow(_nested(path[1:], value))}{text[last:]}"
    key, child = node.value[-1]
    indent = " " * node.start_mark.column
    end = _last_line(key, child)
    lines = text.splitlines(keepends=True)
    if not lines[end].endswith("\n"):
        lines[end] += "\n"
    lines.insert(end + 1, _lines(path, value, indent) + "\n")
    return "".join(lines)


def _last_line(key: Node, node: Node) -> int:
    """Line on which a value ends; the end mark of a block lies behind the comments that follow it."""
    while isinstance(node, (MappingNode, SequenceNode)) and not node.flow_style and node.value:
        key, node = node.value[-1] if isinstance(node, MappingNode) else (node, node.value[-1])
    empty = node.start_mark.index == node.end_mark.index
    return int(key.end_mark.line if empty else node.end_mark.line)


def _lines(path: Sequence[str], value: Any, indent: str) -> str:
    parents = [f"{indent}{INDENT * depth}{key}:" for depth, key in enumerate(path[:-1])]
    return "\n".join([*parents, f"{indent}{INDENT * (len(path) - 1)}{path[-1]}: {_flow(value)}"])


def _nested(path: Sequence[str], value: Any) -> Any:
    for key in reversed(path):
        value = {key: value}
    return value


def _flow(value: Any) -> str:
    """A value on one line: plain where YAML reads it back as it was, else quoted."""
    if isinstance(value, list):
        return "[" + ", ".join(_flow(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_flow(item)}" for key, item in value.items()) + "}"
    return json.dumps(value, ensure_ascii=False)


def _check(text: str, changed: str, path: Sequence[str], value: Any) -> None:
    """The new text must say what the old one did, but for the one value."""
    expected = yaml.safe_load(text) or {}
    node = expected
    for key in path[:-1]:
        if node.get(key) is None:
            node[key] = {}
        node = node[key]
    node[path[-1]] = value
    try:
        fits = yaml.safe_load(changed) == expected
    except yaml.YAMLError:
        fits = False
    if not fits:
        raise ValueError(f"`{'.'.join(path)}` could not be set in place; nothing was written. Edit it by hand.")


def write_atomically(path: Path, text: str) -> None:
    """Replace a file at once: a reader sees the old text or the new one, never a part."""
    target = path.resolve()
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, target.stat().st_mode & 0o777 if target.exists() else 0o644)
        os.replace(name, target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
