"""Lets the site read our docstrings: sections ``Example:`` of doctests, roles and formulas of reStructuredText."""

from __future__ import annotations

import re
from typing import Any

import griffe

_RULES = (
    (r"^Example:$", "Examples:"),
    (r":\w+:`~?(?:[\w.]*\.)?(\w+)`", r"`\1`"),
    (r"^\.\. math:: (.*)$", r"`\1`"),
    (r":math:`([^`]*)`", r"`\1`"),
)


class Docstrings(griffe.Extension):
    """Rewrites each docstring before it is parsed."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called for every object that was found."""
        if obj.docstring is not None:
            text = obj.docstring.value
            for pattern, by in _RULES:
                text = re.sub(pattern, by, text, flags=re.MULTILINE)
            obj.docstring.value = text
