"""Sharing out: how much a worker gets at once, what is taken back from the busy, and which idle ones are let go."""

from __future__ import annotations

from cloudtask.model import Attempt
from cloudtask.scheduler.actions import Action, Recall, ReleaseWorker, Send
from cloudtask.scheduler.backlog import Backlog
from cloudtask.scheduler.roster import Roster, Worker


def share(worker: Worker, waiting: int, workers: int) -> int:
    """How many of ``waiting`` jobs one of ``workers`` gets at once: what it asked for, but at most its part of half of them.

    So the last jobs are dealt out one by one.  Every event deals again, so a worker that is alone with free slots soon has all
    that it asked for; and one that is the only worker gets it at once.
    """
    if workers <= 1:
        return worker.credit
    return min(worker.credit, max(1, -(-waiting // (2 * workers))))


def deal(backlog: Backlog, roster: Roster, actions: list[Action]) -> None:
    """Send what waits to those who asked, the least busy first."""
    hungry = list(roster.hungry.values())
    if len(hungry) > 1:
        hungry.sort(key=lambda worker: len(worker.flights))
    for worker in hungry:
        waiting = backlog.waiting
        if not waiting:
            return
        attempts = _choose(backlog, worker, share(worker, waiting, roster.usable))
        if attempts:
            worker.credit -= len(attempts)
            roster.launch(worker, attempts)
            actions.append(Send(worker.number, attempts))


def _choose(backlog: Backlog, worker: Worker, count: int) -> list[Attempt]:
    if not worker.flights and backlog.has_lonely and (lonely := backlog.take_lonely()):
        worker.alone = lonely
        return [lonely]
    return backlog.take(worker.number, count)


def recall(roster: Roster, actions: list[Action]) -> None:
    """Where one idles and wants work, ask the one with most unstarted attempts for half of them: once, until it answers."""
    if roster.recalled >= len(roster.idle) or roster.recalled >= sum(number in roster.hungry for number in roster.idle):
        return
    richest = max((worker for worker in roster if worker.usable), key=Worker.recallable)
    count = richest.recallable()
    if count:
        roster.recall(richest, count)
        actions.append(Recall(richest.number, count))


def let_go(roster: Roster, needed: int, actions: list[Action]) -> None:
    """Release idle workers beyond ``needed``; those that asked for work stay longest, then those of the lowest numbers."""
    if len(roster.idle) <= needed:
        return
    order = sorted(roster.idle.values(), key=lambda worker: (not worker.credit, worker.number))
    for worker in order[needed:]:
        release_worker(roster, worker, actions)


def release_worker(roster: Roster, worker: Worker, actions: list[Action]) -> None:
    """Let one worker go, once."""
    if worker.joined and not worker.released:
        worker.released = True
        roster.refresh(worker)
        actions.append(ReleaseWorker(worker.number))
