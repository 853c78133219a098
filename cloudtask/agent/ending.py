"""Ending what runs: TERM, a grace, KILL, to the whole process group and to what escaped from it, and looking whether it worked.

A process belongs to an attempt when it is in the attempt's process group, carries the attempt's CLOUDTASK_* variables, or was
started by one that does.  The end of an attempt that was asked to end is verified against the process table.
"""

import os
import signal
import time

from . import system
from .attempt import ASKED, CALM, KILLED, LEFT, Attempt

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

STUCK_AFTER = 60.0
"""Seconds after KILL until an attempt counts as one that cannot be ended."""
_SHORTEST, _LONGEST = 0.01, 0.25


class Marks:
    """The variables by which the processes of one worker's attempts are known."""

    def __init__(self, session: str, worker: int) -> None:
        self._ours = {("CLOUDTASK_SESSION=" + session).encode("utf-8", "surrogateescape"), b"CLOUDTASK_WORKER=%d" % worker}

    def read(self, process: system.Process) -> "tuple[int, int] | None":
        """Job and attempt number that a process carries; job 0 for set-up and clean-up.  None where it is not one of ours."""
        strings = process.environment()
        if not self._ours.issubset(strings):
            return None
        job = number = 0
        for string in strings:
            name, _, value = string.partition(b"=")
            if name == b"CLOUDTASK_JOB" and value.isdigit():
                job = int(value)
            elif name == b"CLOUDTASK_ATTEMPT" and value.isdigit():
                number = int(value)
        return job, number


class Endings:
    """The attempts on their way out.  ``finish`` is called with each that has verifiably ended, ``stuck`` with each that will not."""

    def __init__(self, finish: "Callable[[Attempt], None]", stuck: "Callable[[Attempt], None]") -> None:
        self._finish = finish
        self.stuck = stuck
        self._leaving: "dict[int, Attempt]" = {}
        self._interval = _SHORTEST
        self.marks = Marks("", 0)
        self.grace = 10.0
        self.due = 0.0
        """When `sweep` wants to be called next; 0: nothing is on its way out."""

    def ask(self, attempt: Attempt, why: str, now: float) -> None:
        """Let a running attempt end, with that ending.  One that already is on its way keeps the ending that it has."""
        if attempt.phase != CALM:
            return
        attempt.why = why
        attempt.phase = ASKED
        attempt.until = now + self.grace
        self._watch(attempt, now)

    def shell_gone(self, attempt: Attempt, now: float) -> None:
        """The shell is reaped, and something may be left of its group."""
        if attempt.phase == CALM:
            attempt.phase = LEFT
            attempt.until = now + self.grace
        self._watch(attempt, now)

    def _watch(self, attempt: Attempt, now: float) -> None:
        self._leaving[attempt.pid] = attempt
        self._interval = _SHORTEST
        self.due = now

    def sweep(self, now: float) -> None:
        """Look at the process table, and do the next step for each attempt."""
        found = self._find()
        for attempt in list(self._leaving.values()):
            self._step(attempt, found[attempt.pid], now)
        taken = time.monotonic() - now
        self._interval = min(_LONGEST, self._interval * 1.5)
        self.due = now + max(self._interval, 10 * taken) if self._leaving else 0.0

    def _find(self) -> "dict[int, dict[int, int]]":
        """For each attempt the pids of its processes, and when they started."""
        table = system.process_table()
        found: "dict[int, set[int]]" = {pid: set() for pid in self._leaving}
        asked = {_mark(attempt): pid for pid, attempt in self._leaving.items() if attempt.phase >= ASKED}
        for process in table.values():
            if process.group in found:
                found[process.group].add(process.pid)
            elif asked:
                mark = self.marks.read(process)
                if mark in asked:
                    found[asked[mark]].add(process.pid)
        for pid in asked.values():
            # One that was known by its parent is nobody's child any more when the parent is gone.
            found[pid] |= system.remaining(self._leaving[pid].told, table)
            found[pid] = system.with_descendants(found[pid], table)
        if not table:  # no /proc: the group is all that can be seen
            return {pid: {-pid: 0} if system.group_lives(pid) else {} for pid in found}
        return {pid: {member: table[member].start for member in members} for pid, members in found.items()}

    def _step(self, attempt: Attempt, members: "dict[int, int]", now: float) -> None:
        if not members and attempt.status is not None:
            del self._leaving[attempt.pid]
            self._finish(attempt)
        elif attempt.phase == KILLED:
            for pid in members:
                system.send_signal(pid, signal.SIGKILL)
            if now >= attempt.until and not attempt.stuck:
                attempt.stuck = True
                self.stuck(attempt)
        elif now >= attempt.until and attempt.told:
            attempt.phase, attempt.until = KILLED, now + STUCK_AFTER
            self._step(attempt, members, now)
        else:
            system.ask_to_end([pid for pid in members if pid not in attempt.told])
            attempt.told.update(members)


def _mark(attempt: Attempt) -> "tuple[int, int]":
    return max(attempt.job, 0), attempt.number


def survivors(marks: Marks, attempts: "set[tuple[int, int]]", session: int, told: "dict[int, int]") -> "dict[int, int]":
    """Processes (pid, start) of ``attempts`` that outlived their agent, and of its process session, whose number was ``session``.

    ``told``: those that were found before, which count for as long as they live.
    """
    table = system.process_table()
    # The kernel gives the number of a process session to a new process only when the last member is gone.
    if session < 2 or session == os.getsid(0) or session in table:
        session = -1
    open_marks = {(max(job, 0), number) for job, number in attempts}
    found = system.remaining(told, table)
    for process in table.values():
        if process.session == session or (open_marks and marks.read(process) in open_marks):
            found.add(process.pid)
    return {pid: table[pid].start for pid in system.with_descendants(found, table)}


def end_survivors(find: "Callable[[dict[int, int]], dict[int, int]]", grace: float) -> bool:
    """Waits until ``find``, given what was told to end, finds nothing: TERM, the grace, KILL, a minute.  False when something stays."""
    told: "dict[int, int]" = {}
    began = time.monotonic()
    pause = _SHORTEST
    while True:
        found = find(told)
        late = time.monotonic() - began
        if not found or late > grace + STUCK_AFTER:
            return not found
        if late < grace:
            system.ask_to_end([pid for pid in found if pid not in told])
        else:
            for pid in found:
                system.send_signal(pid, signal.SIGKILL)
        told.update(found)
        time.sleep(pause)
        pause = min(_LONGEST, pause * 1.5)
