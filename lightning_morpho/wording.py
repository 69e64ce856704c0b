"""Counts, lists, durations and sizes, as sentences have them."""

from __future__ import annotations

from collections.abc import Iterable

JUDGED_WITH = "judged with"
"""Stands in the reason of a seed that was judged in a group, before the names of that group's seeds."""


def short_reason(reason: str) -> str:
    """A reason without the names of the seeds that were judged together.

    Example:
        >>> short_reason("proven gain of the group, judged with net.2[0], net.4[0]"), short_reason("warm-up over")
        ('proven gain of the group', 'warm-up over')
    """
    return reason.partition(f", {JUDGED_WITH} ")[0]


def plural(count: int, noun: str) -> str:
    """A count and its noun.

    Example:
        >>> plural(1, "seed"), plural(2000, "seed")
        ('1 seed', '2,000 seeds')
    """
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def duration(seconds: float) -> str:
    """A duration in its two largest units.

    Example:
        >>> duration(0.4), duration(75), duration(3 * 3600 + 240), duration(200_000)
        ('0 s', '1 min 15 s', '3 h 4 min', '2 d 7 h')
    """
    rest, parts = round(seconds), list[str]()
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min"), (1, "s")):
        if rest >= size or (unit == "s" and not parts):
            parts.append(f"{rest // size} {unit}")
            rest %= size
        elif parts:
            break
    return " ".join(parts[:2])


def memory(size: int) -> str:
    """A size in the unit that suits it.

    Args:
        size: In bytes.

    Example:
        >>> memory(0), memory(4928), memory(2_703_360), memory(3 * 2**30)
        ('0 bytes', '4.8 KiB', '2.6 MiB', '3.0 GiB')
    """
    for power, unit in ((3, "GiB"), (2, "MiB"), (1, "KiB")):
        if size >= 1024**power:
            return f"{size / 1024**power:.1f} {unit}"
    return plural(size, "byte")


def enumerate_words(words: Iterable[str], *, most: int | None = None, noun: str = "") -> str:
    """Words as a list in a sentence; beyond ``most`` the rest is counted.

    Example:
        >>> enumerate_words("abc"), enumerate_words("abcde", most=2, noun="layer")
        ('a, b and c', 'a, b and 3 more layers')
    """
    listed = list(words)
    if most is not None and len(listed) > most:
        listed = [*listed[:most], plural(len(listed) - most, f"more {noun}")]
    return " and ".join([", ".join(listed[:-1]), listed[-1]] if len(listed) > 1 else listed)
