"""Figures from /proc (proc(5)): CPU time and memory of processes that are not our children."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass

TICK = 1 / os.sysconf("SC_CLK_TCK")


@dataclass
class Watch:
    """What was last seen of a process: peak resident memory in MB, CPU seconds (its own, without children)."""

    peak: float = 0.0
    cpu: float = 0.0

    def look(self, pid: int) -> None:
        """Take the figures again; a process that is gone keeps its last ones."""
        self.peak = max(self.peak, peak_memory(pid))
        self.cpu = max(self.cpu, cpu_seconds(pid))


def peak_memory(pid: int) -> float:
    """``VmHWM`` in MB; 0 for a process that is gone."""
    try:
        with open(f"/proc/{pid}/status") as file:
            return next((int(line.split()[1]) / 1024 for line in file if line.startswith("VmHWM:")), 0.0)
    except OSError:
        return 0.0


def cpu_seconds(pid: int) -> float:
    """utime and stime; 0 for a process that is gone."""
    fields = _stat(pid)
    return (int(fields[11]) + int(fields[12])) * TICK if fields else 0.0


def began(pid: int) -> float:
    """When it started, in seconds since boot; 0 for a process that is gone."""
    fields = _stat(pid)
    return int(fields[19]) * TICK if fields else 0.0


def family(pid: int) -> set[int]:
    """A process and all that descend from it."""
    children: dict[int, list[int]] = {}
    for each in all_pids():
        if fields := _stat(each):
            children.setdefault(int(fields[1]), []).append(each)
    found, waiting = {pid}, [pid]
    while waiting:
        for child in children.get(waiting.pop(), []):
            found.add(child)
            waiting.append(child)
    return found


def all_pids() -> Iterable[int]:
    """Every process there is."""
    return (int(name) for name in os.listdir("/proc") if name.isdigit())


def command_line(pid: int) -> str:
    """Its words, with spaces between; empty for a process that is gone."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def owner(pid: int) -> int | None:
    """The user it runs as."""
    try:
        with open(f"/proc/{pid}/status") as file:
            return next((int(line.split()[1]) for line in file if line.startswith("Uid:")), None)
    except OSError:
        return None


def _stat(pid: int) -> list[str] | None:
    """The fields after the name, from the state on."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()
    except OSError:
        return None
