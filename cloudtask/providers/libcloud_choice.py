"""What is launched: a size by name or the cheapest that is large enough, an image and a place by id or name.

All choices are the same for the same lists, in whatever order these come.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from cloudtask.errors import UsageError

LEAST_MEMORY = 1 << 30
"""Bytes of memory that a machine has at least where nothing is said."""

SHOWN = 20
"""Names that an error lists at most."""

_CPUS = ("vcpus", "cpus", "cpu", "vcpu", "guestCpus", "cores", "vcpu_count")


class Size(NamedTuple):
    """A size of a cloud.  ``memory`` in bytes, ``price`` in dollars an hour; 0 CPUs and no price where unknown.  ``own`` is libcloud's."""

    id: str
    name: str
    cpus: float
    memory: int
    price: float | None
    own: Any

    def __str__(self) -> str:
        cost = f", ${self.price:g}/h" if self.price else ""
        name = self.id if len(self.id) < 24 else self.name
        return f"{name} ({self.cpus:g} CPU, {self.memory / (1 << 30):g}G{cost})"


def size_of(own: Any) -> Size:
    """libcloud's record as ours: its memory is in MiB, and CPUs stand in another place with each driver."""
    extra = own.extra if isinstance(own.extra, dict) else {}
    found = [getattr(own, "vcpus", None), *(extra.get(name) for name in _CPUS)]
    cpus = next((float(each) for each in found if isinstance(each, (int, float)) and not isinstance(each, bool)), 0.0)
    memory = own.ram if isinstance(own.ram, (int, float)) else 0
    price = float(own.price) if isinstance(own.price, (int, float)) and own.price > 0 else None
    return Size(str(own.id), str(own.name or own.id), cpus, int(memory * (1 << 20)), price, own)


def choose_size(sizes: Iterable[Size], name: str | None, cpus: int | None, memory: int | None) -> Size:
    """The size called ``name``, or the cheapest with so many CPUs and so much memory; of equals the smaller one, then by id.

    Raises UsageError that lists what there is.
    """
    known = sorted(sizes, key=_rank)
    wanted = [each for each in known if name in (each.id, each.name)] if name else known
    if not wanted:
        raise UsageError(f"there is no size {name!r}: {_listed(known)}" if name else "it lists no sizes")
    least = memory if memory is not None or name else LEAST_MEMORY
    fitting = [each for each in wanted if _fits(each, cpus, least)]
    if not fitting:
        needs = " and ".join(filter(None, (f"{cpus} CPUs" if cpus else "", f"{(least or 0) / (1 << 30):g}G memory" if least else "")))
        raise UsageError(f"no size{f' {name}' if name else ''} has {needs}: {_listed(known)}")
    return fitting[0]


def _fits(size: Size, cpus: int | None, memory: int | None) -> bool:
    return size.cpus >= (cpus or 0) and size.memory >= (memory or 0)


def _rank(size: Size) -> tuple[float, int, float, str]:
    return (size.price if size.price is not None else float("inf"), size.memory, size.cpus, size.id)


def _listed(known: Sequence[Size]) -> str:
    more = f" and {len(known) - SHOWN} smaller ones" if len(known) > SHOWN else ""
    return f"there are {', '.join(map(str, known[-SHOWN:]))}{more}" if known else "there are none"


def pick(things: Iterable[Any], wanted: str | None, what: str, option: str) -> Any:
    """Of images, places or networks the one with this id, slug or name; the only one where none is named.  Raises UsageError."""
    known = sorted(things, key=lambda each: (str(each.name), str(each.id)))
    found = [each for each in known if wanted == str(each.id) or wanted == _slug(each)]
    found = found or [each for each in known if wanted in (None, str(each.name))]
    if len(found) == 1:
        return found[0]
    if wanted and found:
        ids = ", ".join(str(each.id) for each in found[:SHOWN])
        raise UsageError(f"{len(found)} {what}s are called {wanted!r}: name one by its id ({option}): {ids}")
    names = ", ".join(_slug(each) or str(each.name or each.id) for each in known[:SHOWN]) + (", ..." if len(known) > SHOWN else "")
    missing = f"there is no {what} {wanted!r}" if wanted else f"no {what} is named"
    raise UsageError(f"{missing}: use {option} with one of {names or 'none: it lists none'}")


def _slug(thing: Any) -> str | None:
    extra = getattr(thing, "extra", None)
    found = extra.get("slug") if isinstance(extra, dict) else None
    return str(found) if found else None
