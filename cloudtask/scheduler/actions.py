"""What the scheduler answers to an event: one named tuple for each kind of act.  The caller does them, in order."""

from __future__ import annotations

from typing import NamedTuple

from cloudtask.model import Attempt
from cloudtask.states import Ending


class Send(NamedTuple):
    """Journal these attempts as sent to ``worker``, then send them."""

    worker: int
    attempts: list[Attempt]


class Settled(NamedTuple):
    """A job is over.  ``attempt`` is the number of the one that decided; ``poison`` and ``unknown`` are conclusions."""

    job: int
    attempt: int
    succeeded: bool
    ending: Ending


class WillRetry(NamedTuple):
    """A job failed for the ``failures``-th time and has ``of`` retries.

    ``delay`` is what the same worker waits, in seconds: another one may get it in the same list of actions.
    """

    job: int
    failures: int
    of: int
    delay: float


class BackToQueue(NamedTuple):
    """An attempt came back, or went away, without burning a retry: its job is pending again."""

    job: int


class Cancel(NamedTuple):
    """End these attempts on ``worker``; ``why`` is ``superseded`` or ``aborted``.  Repeated when a worker is back: harmless twice."""

    worker: int
    attempts: list[Attempt]
    why: Ending


class Recall(NamedTuple):
    """Ask ``worker`` to return up to ``count`` attempts that it has not started."""

    worker: int
    count: int  # type: ignore[assignment]  # hides tuple.count, which nobody wants of an action


class RetireWorker(NamedTuple):
    """``strikes`` failures in a row: ``worker`` is sent nothing more, and released when the last of its attempts is over."""

    worker: int
    strikes: int


class ReleaseWorker(NamedTuple):
    """``worker`` has nothing in flight and is not needed any more: clean it up and let it go."""

    worker: int


class Alarm(NamedTuple):
    """Call ``tick`` at this time (on the clock of ``now``) or soon after.  An earlier alarm replaces a later one."""

    at: float


class Ignored(NamedTuple):
    """``worker`` said something about an attempt that cannot be: nothing was changed."""

    worker: int
    attempt: Attempt
    said: str


class Finished(NamedTuple):
    """There is nothing more to decide: all is settled, or stopped with nothing in flight.  Said once."""


Action = Send | Settled | WillRetry | BackToQueue | Cancel | Recall | RetireWorker | ReleaseWorker | Alarm | Ignored | Finished
