"""What the stand-in for the agent knows of one attempt: of one that it runs, and of one that the worker's disk has from before."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from typing import Any

from cloudtask.model import Attempt
from cloudtask.states import Ending
from cloudtask.wire import ProtocolError
from cloudtask.workers.shell_channel import JobChannel, Over

_PIECE = 1 << 16
_HIGHEST_SIGNAL = 64


class OutputCount:
    """One stream of an attempt: how much of it was delivered, its checksum, and what --max-output leaves of it."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.length = 0
        self.crc = 0
        self.cut = False

    def take(self, data: bytes) -> list[tuple[int, bytes]]:
        """The pieces to deliver, each with its position."""
        kept = data[: self._limit - self.length]
        self.cut = self.cut or len(kept) < len(data)
        pieces = []
        for start in range(0, len(kept), _PIECE):
            piece = kept[start : start + _PIECE]
            pieces.append((self.length, piece))
            self.length += len(piece)
            self.crc = zlib.crc32(piece, self.crc)
        return pieces


@dataclass(kw_only=True)
class ShellAttempt:
    """An attempt that is queued or runs.  Moments are of time.monotonic(); 0 stands for not yet."""

    key: Attempt
    timeout: float
    code: bytes
    slot: int = 0
    channel: JobChannel | None = None
    began: float = 0.0
    lasted: float = 0.0
    ticked: float = 0.0
    tick_open: bool = False
    why: str = ""
    """The ending it gets because we end it; empty where it ends by itself."""
    asked_to_end: float = 0.0
    killed: float = 0.0
    looked: float = 0.0
    over: Over | None = None
    broken: str = ""
    """Why its script said nothing more."""
    streams: list[OutputCount] = field(default_factory=list)

    @property
    def base(self) -> str:
        """The name of its files on the worker."""
        return f"{self.key.job}.{self.key.number}"

    def ending(self) -> tuple[Ending, int]:
        """How it ended, and the exit status or signal.

        A shell says 128+n for what signal n ended (POSIX, 2.8.2), which is all that can be known here: a job that exits with such a
        status by itself is told as a signal too.
        """
        assert self.over
        if self.why:
            return Ending(self.why), 0
        if self.over.late:
            return Ending.LOST, 0
        if self.over.unstarted:
            return Ending.UNSTARTED, 0
        return ending_of(self.over.status)

    def row(self) -> list[Any]:
        """Its result as an ``ended`` frame has it, with all output delivered before."""
        assert self.over
        ending, value = self.ending()
        return result_row(self.key, self.slot, ending, value, self.lasted, self.over.cpu, self.streams)


def ending_of(status: int) -> tuple[Ending, int]:
    """What a shell's exit status says."""
    if 128 < status <= 128 + _HIGHEST_SIGNAL:
        return Ending.SIGNAL, status - 128
    return Ending.EXIT, status


def result_row(key: Attempt, slot: int, ending: Ending, value: int, seconds: float, cpu: float, streams: list[OutputCount]) -> list[Any]:
    """A result as the frames have it."""
    out, err = streams
    return [*key, slot, str(ending), value, seconds, cpu, 0, out.length, err.length, out.crc, err.crc, out.cut or err.cut, 0, 0]


def whole_number(text: str) -> int:
    """A number that the worker's shell printed.  Raises ProtocolError."""
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise ProtocolError(f"not a number: {text[:40]!r}")
    return int(text)


def read_base(base: str) -> Attempt:
    """The attempt whose files are called ``base``.  Raises ProtocolError."""
    job, _, number = base.partition(".")
    return Attempt(-whole_number(job[1:]) if job.startswith("-") else whole_number(job), whole_number(number))


def old_ending(status: str, why: str) -> tuple[Ending, int]:
    """How an old attempt ended, by its exit status and the reason that it was ended for."""
    if why in (Ending.TIMEOUT, Ending.ABORTED, Ending.SUPERSEDED):
        return Ending(why), 0
    return ending_of(whole_number(status))


def old_row(key: Attempt, rest: list[str]) -> list[Any]:
    """The result of an old attempt for the inventory; its checksums are worked out when it is delivered."""
    if len(rest) != 6:
        raise ProtocolError("not a row")
    status, slot, seconds, out, err, why = rest
    ending, value = old_ending(status, why)
    sizes = [whole_number(out), whole_number(err)]
    return [*key, whole_number(slot), str(ending), value, whole_number(seconds), 0.0, 0, *sizes, 0, 0, False, 0, 0]
