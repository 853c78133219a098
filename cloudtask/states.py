"""The whole vocabulary of states, and the table of the moves that a worker may make.  A leaf: it imports nothing of the project."""

from __future__ import annotations

import enum


class JobState(enum.IntEnum):
    """Where a job stands.  An integer, so that a million of them are one bytearray."""

    PENDING = 0
    """Not settled, and no attempt is under way: fresh, waiting for its retry, or back from a worker."""
    ACTIVE = 1
    """At least one attempt is sent or started."""
    SUCCEEDED = 2
    """Settled: an attempt ended with exit 0."""
    FAILED = 3
    """Settled: the last attempt ended with anything else, and none follows."""


class Ending(enum.StrEnum):
    """How an attempt ended.  The words stand in journals: never rename one."""

    EXIT = "exit"
    """The shell exited; the value is its exit status."""
    SIGNAL = "signal"
    """A signal ended the shell; the value is its number."""
    OOM = "oom"
    """The kernel killed it for want of memory."""
    TIMEOUT = "timeout"
    """It ran longer than --timeout and was ended."""
    LOST = "lost"
    """Its worker or agent went away with it.  Burns no retry."""
    ABORTED = "aborted"
    """We ended it: the run was aborted or its worker retired.  Burns no retry."""
    SUPERSEDED = "superseded"
    """Another attempt of the same job ended first."""
    UNKNOWN = "unknown"
    """At most once: it may have run, and nobody can say how it ended."""
    POISON = "poison"
    """Lost three times, the last time alone on its worker: the job kills machines."""
    UNSTARTED = "unstarted"
    """The worker could not start it (no shell, no memory for a process).  A failure like another."""


class WorkerState(enum.Enum):
    """Where a worker stands, as the main process sees it."""

    SPARE = "spare"
    """Listed, not in use."""
    CONNECTING = "connecting"
    """Its supervisor tries to make first contact, or sets it up."""
    READY = "ready"
    """It takes jobs."""
    SILENT = "silent"
    """Contact is lost for longer than --lost-timeout; its supervisor goes on trying."""
    DRAINING = "draining"
    """It takes no more jobs; what runs may end."""
    LEAVING = "leaving"
    """It is being cleaned up."""
    GONE = "gone"
    """Let go, retired, or never reached."""


WORKER_MOVES: dict[WorkerState, frozenset[WorkerState]] = {
    WorkerState.SPARE: frozenset({WorkerState.CONNECTING, WorkerState.GONE}),
    WorkerState.CONNECTING: frozenset({WorkerState.READY, WorkerState.SILENT, WorkerState.DRAINING, WorkerState.LEAVING, WorkerState.GONE}),
    WorkerState.READY: frozenset({WorkerState.CONNECTING, WorkerState.SILENT, WorkerState.DRAINING, WorkerState.LEAVING, WorkerState.GONE}),
    WorkerState.SILENT: frozenset({WorkerState.READY, WorkerState.CONNECTING, WorkerState.DRAINING, WorkerState.LEAVING, WorkerState.GONE}),
    WorkerState.DRAINING: frozenset({WorkerState.CONNECTING, WorkerState.SILENT, WorkerState.LEAVING, WorkerState.GONE}),
    WorkerState.LEAVING: frozenset({WorkerState.GONE}),
    WorkerState.GONE: frozenset({WorkerState.CONNECTING}),
}
