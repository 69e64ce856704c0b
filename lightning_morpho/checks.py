"""Checks that configuration classes share: each refusal names the key, what was expected and what was got."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from typing import Any, TypeVar

T = TypeVar("T")


def check(valid: bool, name: str, expected: str, got: object) -> None:
    """Refuse a value.

    Raises:
        ValueError: If not ``valid``.

    Example:
        >>> check(False, "rollout.percentage", "a percentage in [0, 100]", 120)
        Traceback (most recent call last):
            ...
        ValueError: `rollout.percentage` must be a percentage in [0, 100], got 120.
    """
    if not valid:
        raise ValueError(f"`{name}` must be {expected}, got {got!r}.")


def is_number(value: object) -> bool:
    """Whether a value is a finite number; booleans are none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def is_count(value: object, minimum: int = 1) -> bool:
    """Whether a value is an integer of at least ``minimum``."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= minimum


def is_name(value: object) -> bool:
    """Whether a value is a string that is not empty."""
    return isinstance(value, str) and bool(value)


def check_flags(config: object, section: str, *names: str) -> None:
    """Refuse fields that are neither true nor false; the string ``"false"`` would count as true."""
    for name in names:
        check(isinstance(getattr(config, name), bool), f"{section}.{name}", "true or false", getattr(config, name))


def is_fraction(value: object) -> bool:
    """Whether a value is a number in [0, 1]."""
    return is_number(value) and 0 <= value <= 1  # type: ignore[operator]


def is_percentage(value: object) -> bool:
    """Whether a value is a number in [0, 100]."""
    return is_number(value) and 0 <= value <= 100  # type: ignore[operator]


def as_patterns(value: str | Iterable[str], name: str) -> tuple[str, ...]:
    """Accept one glob or several; YAML gives lists, dataclasses want tuples."""
    several = isinstance(value, Iterable) and not isinstance(value, (str, Mapping))
    patterns = tuple(value) if several else (value,)
    check(all(isinstance(p, str) and p for p in patterns), name, "a glob or a list of globs", value)
    return patterns  # type: ignore[return-value]


def suggest(name: str, known: Iterable[str]) -> str:
    """Words that help somebody who gave a name that is not known.

    Example:
        >>> suggest("percentge", ["percentage", "salt"])
        'did you mean `percentage`? Known: percentage, salt.'
    """
    names = list(known)
    close = get_close_matches(name, names, n=1)
    question = f"did you mean `{close[0]}`? " if close else ""
    return f"{question}Known: {', '.join(names)}."


def check_choice(value: object, name: str, choices: Iterable[str]) -> None:
    """Refuse what is none of the choices.

    Raises:
        ValueError: With those there are.

    Example:
        >>> check_choice("linar", "grafting.curve", ["linear", "cosine"])
        Traceback (most recent call last):
            ...
        ValueError: `grafting.curve` can't be 'linar': did you mean `linear`? Known: linear, cosine.
    """
    known = list(choices)
    if value not in known:
        raise ValueError(f"`{name}` can't be {value!r}: {suggest(str(value), known)}")


def named_arguments(cls: type[T]) -> type[T]:
    """Let a class say which argument it does not know, and which one was probably meant."""
    original: Callable[..., None] = cls.__init__
    arguments = [item for item in inspect.signature(original).parameters.values() if item.name != "self"]
    known = [item.name for item in arguments]
    named_alone = all(item.kind is item.KEYWORD_ONLY for item in arguments)

    @functools.wraps(original)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        if args and named_alone and known:
            raise TypeError(
                f"{cls.__name__} takes its arguments by name, got {', '.join(map(repr, args))} without one. "
                f"Known: {', '.join(known)}."
            )
        for name in kwargs:
            if name not in known:
                raise TypeError(f"{cls.__name__} has no key `{name}`: {suggest(name, known)}")
        original(self, *args, **kwargs)

    cls.__init__ = __init__  # type: ignore[method-assign]
    return cls


def as_section(cls: type[T], value: object, name: str, own: str) -> T:
    """Accept an instance of a configuration class, or a mapping of its keys as YAML has it.

    Args:
        cls: The class.
        value: What was given.
        name: Full key of the section, for messages.
        own: Name that the class itself gives the section in its messages.

    Raises:
        TypeError: If it is neither, or has an unknown key.
        ValueError: If a value in it is out of range.
    """
    if isinstance(value, cls):
        return value
    if not isinstance(value, Mapping):
        raise TypeError(f"`{name}` must be a mapping of {cls.__name__}'s keys, got {value!r}.")
    try:
        return cls(**{str(key): item for key, item in value.items() if key != "_target_"})
    except TypeError as error:
        raise TypeError(f"`{name}`: {error}") from error
    except ValueError as error:
        raise ValueError(str(error).replace(f"`{own}.", f"`{name}.")) from error
