"""Durations and sizes as people write them, and back: ``90``, ``1h30m``, ``4G``.

A ``ValueError``'s text is made to stand after the name of the setting: ``--timeout: '1x' is not a duration (...)``.
"""

from __future__ import annotations

import re

_SECONDS = {"d": 86400, "h": 3600, "m": 60, "s": 1}
_DURATION = re.compile(r"(?:(?P<d>N)d)?(?:(?P<h>N)h)?(?:(?P<m>N)m)?(?:(?P<s>N)s)?".replace("N", r"[0-9]+(?:\.[0-9]+)?"))
_NUMBER = re.compile(r"[0-9]+(?:\.[0-9]+)?")
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)(?:([KMGTP])(?:iB)?)?", re.IGNORECASE)
_POWERS = "KMGTP"

LONGEST = 36500 * 86400.0
"""A hundred years, in seconds: what is longer overflows the system calls that wait."""

LARGEST = 1 << 60
"""Bytes: an exbibyte, far beyond any disk."""


def parse_duration(text: str) -> float:
    """Seconds, from ``90``, ``90s``, ``1.5h``, ``15m``, ``2h``, ``1d`` or ``1h30m`` (units in falling order, each once)."""
    text = text.strip()
    if _NUMBER.fullmatch(text):
        seconds = float(text)
    elif text and (match := _DURATION.fullmatch(text)):
        seconds = sum(float(number) * _SECONDS[unit] for unit, number in match.groupdict().items() if number)
    else:
        raise ValueError(f"{text!r} is not a duration (90, 90s, 15m, 2h, 1d, 1h30m)")
    if seconds > LONGEST:
        raise ValueError(f"{text!r} is too long a duration (at most 36500d; 0 where there is to be none)")
    return seconds


def format_duration(seconds: float) -> str:
    """``1h30m``, ``0.5s``, ``0s``: what :func:`parse_duration` reads, to a thousandth of a second.  ``ValueError`` below 0."""
    if seconds < 0:
        raise ValueError(f"{seconds} is less than no time")
    thousandths = round(seconds * 1000)
    parts = []
    for unit in "dhm":
        count, thousandths = divmod(thousandths, _SECONDS[unit] * 1000)
        if count:
            parts.append(f"{count}{unit}")
    if thousandths or not parts:
        parts.append(f"{thousandths / 1000:.3f}".rstrip("0").rstrip(".") + "s")
    return "".join(parts)


def format_elapsed(seconds: float) -> str:
    """``11 seconds``: whole seconds and never another unit, as the original's last line has it (scripts read it)."""
    return f"{int(seconds)} seconds"


def parse_size(text: str) -> int:
    """Bytes, from ``1024``, ``64k``, ``512M``, ``1.5G``, ``4GiB``: powers of 1024.  ``4GB`` is refused, as it means 4e9 elsewhere."""
    match = _SIZE.fullmatch(text.strip())
    if not match:
        raise ValueError(f"{text.strip()!r} is not a size (4096, 64K, 512M, 4G: powers of 1024)")
    number, unit = match.groups()
    factor = 1024 ** (_POWERS.index(unit.upper()) + 1) if unit else 1
    size = int(number) * factor if number.isdigit() else round(float(number) * factor)
    if size > LARGEST:
        raise ValueError(f"{text.strip()!r} is too large a size (at most 1024P)")
    return size


def format_size(size: int) -> str:
    """``4G``, ``1.5M``, ``1000``: exactly the size, in the largest unit that needs no more than one decimal.  ``ValueError`` below 0."""
    if size < 0:
        raise ValueError(f"{size} is less than nothing")
    for power in range(len(_POWERS), 0, -1):
        tenths, rest = divmod(size * 10, 1024**power)
        if not rest and tenths >= 10:
            return f"{tenths // 10}{f'.{tenths % 10}' if tenths % 10 else ''}{_POWERS[power - 1]}"
    return str(size)
