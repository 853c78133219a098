"""The processes of the ``fake`` provider's machines: which they are, and their end.

A machine has a first process, which leads a process session of its own.  Its are all that descend from it, that are in that session
(sshd's children, which no environment tells: sshd writes its title there), and that have its mark in their environment, which the
sshd of a machine gives to all that it starts.  What clears its environment and leaves its parents escapes.

It is also a program: ``python fake_processes.py ID`` ends the other processes of the machine whose first process it is.  So nothing of
the project is imported here.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Mapping
from typing import NamedTuple

MARK = "FAKE_MACHINE"
PATIENCE = 2.0


class Process(NamedTuple):
    """A row of the process table; ``start`` is in clock ticks after boot (proc(5))."""

    pid: int
    parent: int
    session: int
    start: int
    name: str


def look_up(pid: int) -> Process | None:
    """A living process; None where there is none, or a zombie.  A zombie that is a child of this process is reaped."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            head, _, tail = file.read().rpartition(b")")
    except OSError:
        return None
    fields = tail.split()
    if len(fields) < 20:
        return None
    if fields[0] in (b"Z", b"X"):
        _reap(pid, int(fields[1]))
        return None
    return Process(pid, int(fields[1]), int(fields[3]), int(fields[19]), head.partition(b"(")[2].decode(errors="replace"))


def lives(pid: int, start: int) -> bool:
    """The process that was started then is there."""
    found = look_up(pid)
    return found is not None and found.start == start


def end(machines: Mapping[str, tuple[int, int]], patience: float = PATIENCE) -> bool:
    """Kills all of some machines: id -> first process and its start.  Looks again until none is left; False after ``patience`` seconds.

    The calling process is never killed.
    """
    deadline = time.monotonic() + patience
    pause = 0.0005
    while found := members(machines):
        if time.monotonic() > deadline:
            return False
        for pid in found:
            _kill(pid)
        time.sleep(pause)
        pause = min(2 * pause, 0.05)
    return True


def members(machines: Mapping[str, tuple[int, int]]) -> set[int]:
    """The living processes of some machines, without the caller."""
    table = _table()
    marks = {f"{MARK}={id}".encode() for id in machines}
    firsts = dict(machines.values())
    found = {pid for pid, each in table.items() if _belongs(each, firsts, table) or not marks.isdisjoint(_environment(pid))}
    return _with_descendants(found, table) - {os.getpid()}


def _belongs(process: Process, firsts: Mapping[int, int], table: Mapping[int, Process]) -> bool:
    """It is a first process, or an sshd in the session of one.  A pid is not used again while it names a session."""
    if process.pid in firsts:
        return process.start == firsts[process.pid]
    if process.session not in firsts:
        return False
    leader = table.get(process.session)
    return leader.start == firsts[process.session] if leader else process.name.startswith("sshd")


def _with_descendants(found: set[int], table: Mapping[int, Process]) -> set[int]:
    children: dict[int, list[int]] = {}
    for each in table.values():
        children.setdefault(each.parent, []).append(each.pid)
    waiting, seen = list(found), set(found)
    while waiting:
        new = [pid for pid in children.get(waiting.pop(), ()) if pid not in seen]
        seen.update(new)
        waiting += new
    return seen


def _table() -> dict[int, Process]:
    rows = (look_up(int(name)) for name in os.listdir("/proc") if name.isdigit())
    return {row.pid: row for row in rows if row}


def _environment(pid: int) -> list[bytes]:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return file.read().split(b"\0")
    except OSError:
        return []


def _reap(pid: int, parent: int) -> None:
    if parent == os.getpid():
        try:
            os.waitpid(pid, os.WNOHANG)
        except ChildProcessError:  # another thread was faster
            pass


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except OSError:  # gone, or a program with another user's rights
        pass


if __name__ == "__main__":
    this = look_up(os.getpid())
    end({sys.argv[1]: (os.getpid(), this.start if this else 0)})
