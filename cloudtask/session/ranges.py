"""Sets of job numbers in few bytes: ``[[1, 5], 9]`` in a journal, ``1-5, 9`` in a message."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

Ranges = list[int | list[int]]


def spans(numbers: Iterable[int]) -> Iterator[tuple[int, int]]:
    """The runs of consecutive numbers, as (first, last), rising.  The numbers may come in any order, and more than once."""
    first = last = None
    for number in sorted(set(numbers)):
        if first is None or last is None:
            first = last = number
        elif number == last + 1:
            last = number
        else:
            yield first, last
            first = last = number
    if first is not None and last is not None:
        yield first, last


def encode(numbers: Iterable[int]) -> Ranges:
    """What ``decode`` takes: a number alone, or ``[first, last]``."""
    return [first if first == last else [first, last] for first, last in spans(numbers)]


def decode(ranges: Iterable[int | list[int]]) -> Iterator[tuple[int, int]]:
    """(first, last) of each range.  Raises ValueError or TypeError on anything that ``encode`` could not have written."""
    for item in ranges:
        first, last = (item, item) if isinstance(item, int) else item
        if not isinstance(first, int) or not isinstance(last, int) or first > last:
            raise ValueError(f"not a range of numbers: {item!r}")
        yield first, last


def describe(numbers: Iterable[int]) -> str:
    """For people: ``1-5, 9``; ``none`` where there is nothing."""
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in spans(numbers)) or "none"
