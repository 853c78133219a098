"""Which of the machines that a provider lists are leaked, and why the others are spared.  Pure: no clock, no I/O.

A machine is leaked when nobody sees to its end any more:

* its session is here, and is not living: it does not run, no watchdog is at work on it, and the time for a resume is over;
* it was kept for later use, and that time is over;
* its session is not here, and the expiry in its tags is past: its owner, this controller, renews it for as long as it needs the machine;
* the same of another controller's machine, an hour later.

Where tags cannot be changed their expiry says nothing of a living owner: another controller's machine is listed, never destroyed, and
so is one of ours as long as its session's key is here.  What a living session uses as a worker is spared whatever else is true of it.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from cloudtask.providers import Instance, InstanceState
from cloudtask.worker_file import instance_alias

FOREIGN_GRACE = 3600.0
"""Seconds past its expiry for which another controller's machine is left alone."""


@dataclass(frozen=True, kw_only=True)
class SessionHere:
    """A session that is on this controller: its ``name`` for people, why it is ``living`` (empty where it is not), until when (seconds
    since 1970) which of its machines are ``kept``, by id, and the ``prices`` in dollars an hour of those where it is known."""

    name: str
    living: str = ""
    kept: Mapping[str, float] = field(default_factory=dict)
    prices: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Knowledge:
    """What is known here: this ``controller`` by its id, the ``sessions`` by unique id, the workers that are ``in_use`` by their host key's
    name (with who uses them), and the unique ids of sessions that have a key here (``keyed``)."""

    controller: str
    sessions: Mapping[str, SessionHere] = field(default_factory=dict)
    in_use: Mapping[str, str] = field(default_factory=dict)
    keyed: Collection[str] = ()


class Verdict(NamedTuple):
    """Whether a machine is leaked, and why or why not."""

    leaked: bool
    why: str


def judge(instance: Instance, known: Knowledge, now: float, *, retags: bool) -> Verdict:
    """The verdict on a machine that a provider lists.  ``retags``: its tags can be changed (`Abilities.retags`)."""
    tags = instance.tags
    if tags is None:
        return Verdict(False, "it is not ours: it has no tags")
    if instance.state is InstanceState.LEAVING or not instance.exists:
        return Verdict(False, "it is being destroyed")
    if user := known.in_use.get(instance_alias(instance.id)):
        return Verdict(False, f"it is a worker of {user}")
    if session := known.sessions.get(tags.session):
        return _of_session_here(instance, session, now)
    if tags.controller == known.controller:
        return _of_lost_session(tags.session, tags.expires, known, now, retags)
    return _of_another_controller(tags.controller, tags.expires, now, retags)


def _of_session_here(instance: Instance, session: SessionHere, now: float) -> Verdict:
    until = session.kept.get(instance.id)
    if until is not None:
        return Verdict(until <= now, f"{session.name} kept it until {_moment(until)}")
    if session.living:
        return Verdict(False, f"{session.name} is living: {session.living}")
    return Verdict(True, f"{session.name} is over")


def _of_lost_session(session: str, expires: float, known: Knowledge, now: float, retags: bool) -> Verdict:
    name = f"session {session}, which is not in the directories that were looked at"
    if not retags and session in known.keyed:
        return Verdict(False, f"it is of {name}, but has its key here: name its directory with --sessions")
    return Verdict(expires < now, f"it is of {name}, and expires {_moment(expires)}")


def _of_another_controller(controller: str, expires: float, now: float, retags: bool) -> Verdict:
    name = f"another controller ({controller})"
    if not retags:
        return Verdict(False, f"it is of {name}, and its tags cannot tell whether that needs it: destroy it there")
    return Verdict(expires + FOREIGN_GRACE < now, f"it is of {name}, and expires {_moment(expires)}")


def _moment(seconds: float) -> str:
    """In local time; what no clock can show is said as it is."""
    try:
        return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
    except (ValueError, OverflowError, OSError):
        return f"{seconds:.0f}"
