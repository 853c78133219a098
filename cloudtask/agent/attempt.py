"""One try at running a job, as the agent sees it, from the frame that brought it to the acknowledgement of its result."""

from . import spool

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

PRE, POST = -1, -2
"""Job numbers of the set-up and the clean-up command.  Jobs of the session count from 1."""

QUEUED, RUNNING, ENDED, LOST = "queued", "running", "ended", "lost"
"""States, with the words of the inventory.  An acknowledged attempt is no object any more, only its row."""

CALM, LEFT, ASKED, KILLED = range(4)
"""How far the ending of a running attempt is: not begun; its shell is gone and what it left is told to go; all told; killed."""


def key_of(job: int, number: int) -> int:
    """A job's and an attempt's number in one: small, and quick to look up."""
    return (job << 32) | number


class Attempt:
    """Times are of the monotonic clock; 0 where there is none."""

    __slots__ = (
        "base", "began", "code", "cpu", "deadline", "err", "job", "key", "memory", "number", "out", "phase", "pid", "seconds", "slot",
        "state", "status", "stuck", "timeout", "told", "until", "wanted", "why",
    )  # fmt: skip

    def __init__(self, job: int, number: int, timeout: float, code: "bytes | None", wanted: int) -> None:
        self.job = job
        self.number = number
        self.key = key_of(job, number)
        self.state = QUEUED
        self.timeout = timeout
        self.code = code
        """None: it stands in a file of the home."""
        self.wanted = wanted
        """The serial of the connection that wants to hear of it."""
        self.slot = self.pid = self.memory = 0
        self.began = self.deadline = self.seconds = self.cpu = self.until = 0.0
        self.status: "int | None" = None
        """As `wait4` gave it, once the shell is reaped."""
        self.why = ""
        """The ending that was decided before the shell ended: timeout, aborted, superseded."""
        self.phase = CALM
        self.stuck = False
        self.told: "dict[int, int]" = {}
        """When the processes started that were told to end, by pid."""
        self.out = spool.Stream("", -1)
        self.err = spool.Stream("", -1)
        self.base = ""

    def conclude(self, ending: str, value: int) -> None:
        """Fix the result; the streams are final."""
        self.state = ENDED
        out, err = self.out, self.err
        self.base = '[%d,%d,%d,"%s",%d,%.6f,%.6f,%d,%d,%d,%d,%d,%s' % (
            self.job, self.number, self.slot, ending, value, self.seconds, self.cpu, self.memory, out.length, err.length, out.crc, err.crc,
            "true" if out.cut or err.cut else "false",
        )  # fmt: skip

    def row(self) -> str:
        """The inventory row, as JSON."""
        return '[%d,%d,"%s",%s]' % (self.job, self.number, self.state, self.base + ",0,0]" if self.base else "null")

    def places(self) -> str:
        """Where its output stands, as JSON for the journal."""
        if self.out.place is None and self.err.place is None:
            return "null"
        return "[%s,%s]" % (_place(self.out.place), _place(self.err.place))


def _place(place: "Any") -> str:
    if place is None:
        return "null"
    return "0" if place == 0 else "[%d,%d]" % (place[0], place[1])
