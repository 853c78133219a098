"""Who runs what, and when: PURE.  No I/O, no clock, no randomness; events in, actions out.

:class:`Scheduler` is told what happened (each event is a method) and answers with a list of actions that the caller does, in
order.  ``now`` is any monotonic clock in seconds.  It never trusts a worker: what cannot be is answered with
:class:`Ignored` and changes nothing (an error would lose the rest of a batch).

``policy`` what the settings mean · ``backlog`` the jobs and their order · ``roster`` the workers and what they have ·
``balance`` fair shares, recalls, letting go · ``core`` the events.
"""

from __future__ import annotations

from cloudtask.scheduler.actions import (
    Action,
    Alarm,
    BackToQueue,
    Cancel,
    Finished,
    Ignored,
    Recall,
    ReleaseWorker,
    RetireWorker,
    Send,
    Settled,
    WillRetry,
)
from cloudtask.scheduler.core import Scheduler
from cloudtask.scheduler.policy import Policy

__all__ = [
    "Action",
    "Alarm",
    "BackToQueue",
    "Cancel",
    "Finished",
    "Ignored",
    "Policy",
    "Recall",
    "ReleaseWorker",
    "RetireWorker",
    "Scheduler",
    "Send",
    "Settled",
    "WillRetry",
]
