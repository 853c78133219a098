"""Whose a host is, what was done to it, and what is to be done next: pure, no clock and no files.

A `Record` stands for one machine that somebody uses, or that we have yet to leave as we found it.  A host is one session's at a time,
with all its slots: what runs beside it would make nonsense of slots, GPUs and measured times.  Every move is written down before the act
that it announces, and `next_act` says from record and power alone what that is, so that anybody can go on after a kill.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, cast

from cloudtask.providers.base import InstanceState, Tags
from cloudtask.providers.hosts_power import Standing

OVERDUE = 3600.0
"""Seconds past its expiry after which a claim is nobody's any more."""

AGAIN = 60.0
"""Seconds after which a host that did not start or stop is asked once more."""

BLIND = 600.0
"""The same for the start of one that says nothing while it boots: a large server takes minutes, and is not to be started twice."""

SOON = 10.0
"""Seconds after which a stop that could not even be asked for is tried again."""

AVOIDED = 300.0
"""Seconds for which a host that could not be started is taken only where no other is left."""


class Claim(NamedTuple):
    """Who has a host, and since when (seconds since 1970)."""

    tags: Tags
    since: float


@dataclass(frozen=True, kw_only=True)
class Record:
    """What is known of one machine.  Times are in seconds since 1970, 0 for never.

    ``host`` is its entry in the inventory when it was claimed.  ``claim`` is who uses it, ``left`` who let go of it while there is
    something left to do for them.  ``started``: it was off, and we asked for its start (or were about to); ``asked`` when that was done.
    ``prepared``: its start-up commands were run, ``owing``: so its shut-down commands are to be, ``ready``: its owner may log in, at
    ``address``.  ``stopping``: it is on its way out of use, and who claims it waits for the end of that; ``stop_began`` is when, and
    ``stop_tried`` and ``stop_asked`` when its stop was tried last, and last succeeded.  ``idle_timeout`` counts from ``idle_since``.
    ``trouble`` is why it could not be used.
    """

    key: str
    host: Mapping[str, Any]
    claim: Claim | None = None
    left: tuple[Claim, ...] = ()
    started: bool = False
    asked: float = 0.0
    prepared: bool = False
    owing: bool = False
    ready: bool = False
    address: str | None = None
    stopping: bool = False
    stop_began: float = 0.0
    stop_tried: float = 0.0
    stop_asked: float = 0.0
    idle_since: float = 0.0
    idle_timeout: float = 0.0
    trouble: str = ""
    trouble_at: float = 0.0

    @property
    def claims(self) -> tuple[Claim, ...]:
        """Its owner's, and those that were let go."""
        return ((self.claim,) if self.claim else ()) + self.left

    @property
    def in_our_debt(self) -> bool:
        """It is not as we found it: it was started, or prepared."""
        return self.started or self.owing

    def troubled(self, now: float) -> bool:
        """It could not be used a short while ago."""
        return bool(self.trouble) and 0 <= now - self.trouble_at < AVOIDED


def claimed(record: Record | None, key: str, host: Mapping[str, Any], claim: Claim, idle_timeout: float) -> Record:
    """A free host's record in its new owner's name; what is left to do for those before becomes the new owner's duty."""
    found = record or Record(key=key, host=host)
    return replace(found, host=host, claim=claim, left=(), ready=False, idle_timeout=idle_timeout)


def released(record: Record, now: float, idle_timeout: float, trouble: str = "") -> Record:
    """Its owner lets go.  Where nothing is left to do for it, the owner is forgotten at once."""
    if record.claim is None:
        return record
    left = (*record.left, record.claim) if record.in_our_debt or record.stopping else ()
    found = replace(record, claim=None, left=left, ready=False, idle_since=now, idle_timeout=idle_timeout)
    return replace(found, trouble=trouble, trouble_at=now) if trouble else found


def overdue(record: Record, now: float) -> bool:
    """Its owner has not renewed the claim for so long that it is nobody's."""
    return record.claim is not None and now > record.claim.tags.expires + OVERDUE


def forgotten(record: Record, now: float) -> Record | None:
    """The machine is as we found it.  Trouble is remembered for a while."""
    return Record(key=record.key, host=record.host, trouble=record.trouble, trouble_at=record.trouble_at) if record.troubled(now) else None


class Act(enum.Enum):
    """What is to be done for a host."""

    WAIT = "wait"
    START = "start"
    PREPARE = "prepare"
    GIVE_UP = "give up"
    """It never will be usable: let go of it."""
    WIND_DOWN = "wind down"
    """Run its shut-down commands."""
    STOP = "stop"
    TURN = "turn"
    """It stopped, and somebody has claimed it meanwhile: begin afresh."""
    FORGET = "forget"


def next_act(record: Record, standing: Standing, certain: bool, now: float) -> Act:
    """What ``record`` and the power's word ask for; ``certain`` is the power's `Power.certain`."""
    if record.stopping:
        return _out_of_use(record, standing, certain, now)
    if record.claim is None:
        if not record.in_our_debt:
            return Act.FORGET
        return _out_of_use(record, standing, certain, now) if due(record, now) else Act.WAIT
    return _into_use(record, standing, certain, now)


def announced(record: Record, act: Act, standing: Standing, now: float, *, ours_to_stop: bool, owes: bool) -> Record | None:
    """The record that says that ``act`` is about to be done; None where it ends with that.

    ``ours_to_stop``: the power can stop this host; ``owes``: it has shut-down commands.
    """
    if act is Act.START:
        return replace(record, started=record.started or (ours_to_stop and not standing.paused), prepared=False)
    if act is Act.PREPARE:
        return replace(record, owing=record.owing or owes)
    if act is Act.GIVE_UP:
        return released(record, now, 0.0, f"it is not there: {standing.note}")
    if act in (Act.WIND_DOWN, Act.STOP):
        return replace(record, stopping=True, stop_began=record.stop_began or now)
    if act is Act.TURN:
        return replace(Record(key=record.key, host=record.host), claim=record.claim, idle_timeout=record.idle_timeout)
    return forgotten(record, now) if act is Act.FORGET else record


def due(record: Record, now: float) -> bool:
    """It has been idle for long enough.  A clock that was set back does not keep it for ever."""
    return record.claim is None and abs(now - record.idle_since) >= record.idle_timeout


def _into_use(record: Record, standing: Standing, certain: bool, now: float) -> Act:
    if standing.state in (InstanceState.GONE, InstanceState.ABSENT):
        return Act.GIVE_UP
    if record.ready:
        return Act.WAIT
    if standing.state is InstanceState.RUNNING:
        return Act.PREPARE
    waiting = record.asked and 0 <= now - record.asked < (AGAIN if certain else BLIND)
    return Act.WAIT if waiting or standing.state is not InstanceState.STOPPED else Act.START


def _out_of_use(record: Record, standing: Standing, certain: bool, now: float) -> Act:
    if record.owing:
        return Act.WIND_DOWN
    if not record.started or _is_off(record, standing, certain):
        return Act.TURN if record.claim else Act.FORGET
    pause = AGAIN if record.stop_asked >= record.stop_tried else SOON
    waiting = record.stop_tried and 0 <= now - record.stop_tried < pause
    return Act.WAIT if waiting or standing.state is InstanceState.LEAVING else Act.STOP


def _is_off(record: Record, standing: Standing, certain: bool) -> bool:
    """A host that merely does not answer may be on its way up: only after it was told to stop does silence mean that it did."""
    if standing.state is InstanceState.STOPPED:
        return certain or bool(record.stop_asked)
    return standing.state in (InstanceState.GONE, InstanceState.ABSENT)


# --- as JSON ---------------------------------------------------------------------------------------------------------

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,62}")
_TIMES = ("asked", "stop_began", "stop_tried", "stop_asked", "idle_since", "idle_timeout", "trouble_at")
_MARKS = ("started", "prepared", "owing", "ready", "stopping")


def to_plain(record: Record) -> dict[str, Any]:
    """What a record's file holds."""
    return {
        "format": 1,
        "key": record.key,
        "claim": _plain_claim(record.claim) if record.claim else None,
        "left": [_plain_claim(claim) for claim in record.left],
        "address": record.address,
        "trouble": record.trouble,
        **{name: getattr(record, name) for name in _MARKS + _TIMES},
        "host": dict(record.host),
    }


def from_plain(content: object) -> Record:
    """The record that `to_plain` wrote.  Raises ValueError where it is none."""
    try:
        found = cast("dict[str, Any]", content)
        if found["format"] != 1:
            raise ValueError(f"format {found['format']!r} is not 1: a newer cloudtask wrote it")
        marks: dict[str, Any] = {name: bool(found[name]) for name in _MARKS}
        times: dict[str, Any] = {name: float(found[name]) for name in _TIMES}
        if not _NAME.fullmatch(found["host"]["name"]):
            raise ValueError("the host's name is none")
        return Record(
            key=str(found["key"]),
            host=dict(found["host"]),
            claim=_claim(found["claim"]) if found["claim"] else None,
            left=tuple(_claim(each) for each in found["left"]),
            address=str(found["address"]) if found["address"] else None,
            trouble=str(found["trouble"]),
            **marks,
            **times,
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not a host's record ({error})") from None


def _plain_claim(claim: Claim) -> dict[str, Any]:
    return {**claim.tags.as_dict(), "since": claim.since}


def _claim(content: Mapping[str, Any]) -> Claim:
    tags = Tags.from_dict(content)
    if tags is None:
        raise ValueError("not a host's record (tags)")
    return Claim(tags, float(content["since"]))
