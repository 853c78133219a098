"""The sessions on this controller, as far as machines are concerned: which are living, what they keep, and whom they use as workers.

A session's unique id begins with its number, so the session of a machine is found without looking into all of them.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator, Sequence

from cloudtask.errors import CloudtaskError
from cloudtask.instances.leaked import Knowledge, SessionHere
from cloudtask.instances.orders import controller_id
from cloudtask.kinds import Scene, duration
from cloudtask.session import conf, layout, replay
from cloudtask.session.keys import keys_directory
from cloudtask.session.lock import holder, is_held, last_beat
from cloudtask.session.state import SessionState
from cloudtask.units import format_elapsed

USUAL_GRACE = 300.0
RECENT = 30 * 86400.0
"""Seconds for which a session that launched machines says where more of them may be."""

_HEADER = 4096
_BEGINNING = 256 * 1024
"""Bytes at the beginning of a journal, where the first order of a session that gives any stands."""


class SessionsHere:
    """All sessions below some directories; ``launches`` is the one whose sessions are launches.  Looks afresh at each question."""

    def __init__(self, directories: Sequence[str], launches: str) -> None:
        self._directories = list(dict.fromkeys([*directories, launches]))
        self._launches = launches

    def root(self, uid: str) -> str | None:
        """The directory of the session with this unique id."""
        number = uid.partition("-")[0]
        if not number.isascii() or not number.isdigit():
            return None
        roots = (os.path.join(directory, number) for directory in self._directories)
        return next((root for root in roots if _uid(root) == uid), None)

    def knowledge(self, uids: Sequence[str]) -> Knowledge:
        """What there is to know of these sessions, and of who uses which workers.  Raises SessionError."""
        found = {uid: root for uid in uids if (root := self.root(uid))}
        keys: list[str] = []
        with contextlib.suppress(OSError):
            keys = os.listdir(keys_directory())
        return Knowledge(
            controller=controller_id(),
            sessions={uid: self._look(root) for uid, root in found.items()},
            in_use=self._in_use(),
            keyed=frozenset(name.partition(".")[0] for name in keys),
        )

    def customers(self) -> Iterator[tuple[str, str]]:
        """The directories of sessions that launched machines and may tell where more are, with the provider's name."""
        for root in self._roots():
            with contextlib.suppress(OSError):
                path = layout.Paths(root).journal
                if self._is_launch(root) or time.time() - os.stat(path).st_mtime < RECENT:
                    with open(path, "rb") as file:
                        beginning = file.read(_BEGINNING)
                    if provider := _provider(beginning):
                        yield root, provider

    # --- one session -------------------------------------------------------------------------------------------------

    def _look(self, root: str) -> SessionHere:
        name = self._name(root)
        try:
            state = replay.replay(layout.Paths(root).journal, strict=False)
            living = _living(root)
        except (CloudtaskError, OSError) as error:
            # Nobody knows whether it is over.
            return SessionHere(name=name, living=f"it cannot be read ({error})")
        machines, orders = state.bookings.instances.values(), state.bookings.orders
        prices = {each.id: orders[each.token].price for each in machines if each.token in orders}
        return SessionHere(
            name=name,
            living=living,
            kept={each.id: each.kept_until for each in machines if each.kept_until},
            prices={id: price for id, price in prices.items() if price is not None},
        )

    def _in_use(self) -> dict[str, str]:
        """The workers of living sessions, by the name of their host key."""
        found: dict[str, str] = {}
        for root in self._roots():
            try:
                if not self._is_launch(root) and _living(root):
                    found |= dict.fromkeys(_aliases(replay.replay(layout.Paths(root).journal, strict=False)), self._name(root))
            except (CloudtaskError, OSError):
                continue
        return found

    def _roots(self) -> Iterator[str]:
        for directory in self._directories:
            with contextlib.suppress(OSError):
                yield from (
                    os.path.join(directory, str(number)) for number in layout.numbers(directory) if layout.is_session(directory, number)
                )

    def _is_launch(self, root: str) -> bool:
        return os.path.dirname(root) == self._launches

    def _name(self, root: str) -> str:
        return f"{'launch' if self._is_launch(root) else 'session'} {os.path.basename(root)}"


def _uid(root: str) -> str | None:
    """The unique id in a journal's first line; None where there is none."""
    try:
        with open(layout.Paths(root).journal, "rb") as file:
            return str(json.loads(file.readline(_HEADER))["session"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _living(root: str) -> str:
    """Why nobody else may touch a session's machines; empty where somebody may.  Raises OSError, SessionError."""
    if not os.path.lexists(os.path.join(root, "lock")):
        return ""
    if is_held(root):
        return f"{holder(root)} runs it"
    if os.path.lexists(os.path.join(root, "watchdog")) and is_held(root, "watchdog"):
        return "its watchdog is at work"
    left = _grace(root) - (time.time() - last_beat(root) / 1e9)
    return f"it can be resumed for {format_elapsed(left)}" if left > 0 else ""


def _grace(root: str) -> float:
    """The session's --resume-grace, in seconds."""
    try:
        values, _ = conf.load(layout.Paths(root).conf)
        return duration(values.get("resume-grace", USUAL_GRACE), Scene(folder="/", environ={}))
    except (CloudtaskError, ValueError):
        return USUAL_GRACE


def _aliases(state: SessionState) -> Iterator[str]:
    """Of workers that were listed: those that a session launched are its own anyway."""
    return (worker.address.alias for worker in state.workers.values() if worker.address.alias and not worker.instance)


def _provider(beginning: bytes) -> str | None:
    """The provider of the first order in the beginning of a journal."""
    start = beginning.find(b'\n{"order":')
    end = beginning.find(b"\n", start + 1)
    if start < 0 or end < 0:
        return None
    try:
        found = json.loads(beginning[start:end])["provider"]
    except (ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, str) else None
