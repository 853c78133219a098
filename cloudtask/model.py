"""The frozen records that the rooms hand to each other.

Records that exist once for each job are named tuples (cheap to make, to compare and to pickle); the others are frozen data classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from cloudtask.states import Ending


class Attempt(NamedTuple):
    """One try at running a job: the job's number (from 1) and which try it is (from 1, rising for ever in a session)."""

    job: int
    number: int


class Span(NamedTuple):
    """Where an attempt's output stands in a worker log.

    ``out`` bytes of standard output begin at ``offset``, and ``err`` bytes of standard error follow at once.  Where the two
    arrived in many pieces, ``listing`` is the offset of a line in the log's ``.index`` file that lists them, else -1.
    """

    file: str
    offset: int
    out: int
    err: int
    listing: int = -1


class Result(NamedTuple):
    """How one attempt ended, as the supervisor reports it.

    ``value`` is the exit status or the signal's number (0 where neither applies).  ``began`` is in seconds since 1970 on the
    controller's clock, ``seconds`` the elapsed time on the worker's monotonic clock, ``cpu`` user and system time in seconds,
    ``memory`` the peak resident size in KiB, ``cut`` says that output past --max-output was dropped.
    """

    job: int
    attempt: int
    ending: Ending
    value: int = 0
    began: float = 0.0
    seconds: float = 0.0
    cpu: float = 0.0
    memory: int = 0
    slot: int = 0
    cut: bool = False
    span: Span | None = None

    @property
    def succeeded(self) -> bool:
        """True for ``exit 0`` only."""
        return self.ending is Ending.EXIT and self.value == 0

    def describe(self) -> str:
        """The words for status lines and reports: ``exit 3``, ``signal 9``, ``timeout`` ..."""
        if self.ending in (Ending.EXIT, Ending.SIGNAL):
            return f"{self.ending} {self.value}"
        return str(self.ending)

    def status(self) -> str:
        """The same for status lines, with the original's word for an attempt that we ended."""
        words = "terminated" if self.ending is Ending.ABORTED else self.describe()
        return f"{words} (output cut)" if self.cut else words


@dataclass(frozen=True, kw_only=True)
class Address:
    """A worker as the user named it (``4/user@host:2222``), or as a provider gave it.  ``None`` means: not said.

    ``transport`` reaches it in place of the run's.  ``alias`` is the name that its host key goes by, where an address may belong to
    another machine tomorrow, and ``host_key`` (``ssh-ed25519 AAAA...``) the only key that it may show; with an alias and no host key
    the first key that it shows counts for ever.
    """

    host: str
    user: str | None = None
    port: int | None = None
    slots: int | None = None
    local: bool = False
    transport: str | None = None
    alias: str | None = None
    host_key: str | None = None

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        user = f"{self.user}@" if self.user else ""
        port = f":{self.port}" if self.port else ""
        return f"{user}{host}{port}"


class Identity(NamedTuple):
    """What tells a worker's machine, and this boot of it, from any other: all strings as the worker gave them."""

    machine: str
    boot: str
    start: str


@dataclass(frozen=True, kw_only=True)
class Halt:
    """``--halt``: when to give up.  ``percent`` is of all the session's jobs; exactly one of the two limits is set."""

    now: bool
    count: int | None = None
    percent: float | None = None
