"""``python -m tests.running.killed_launch STEP before|after ARGS...``: a launch of machines, killed with SIGKILL at its STEP-th step.

Steps are what it writes: records of the journal, and lines of the file.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from cloudtask.cli import launch_workers
from cloudtask.instances.machine_file import MachineFile
from cloudtask.session import session
from cloudtask.session.journal import JournalWriter


class Fate:
    """When to die."""

    step = 0
    before = False
    done = 0

    @classmethod
    def begins(cls) -> None:
        """A step is about to be done."""
        cls.done += 1
        if cls.done == cls.step and cls.before:
            os.kill(os.getpid(), signal.SIGKILL)

    @classmethod
    def ends(cls) -> None:
        """A step is done."""
        if cls.done == cls.step:
            os.kill(os.getpid(), signal.SIGKILL)


class DeadlyJournal(JournalWriter):
    """A journal writer that kills its process at one step."""

    def append(self, *lines: bytes) -> int:
        """Write, and die when it is time."""
        Fate.begins()
        end = super().append(*lines)
        Fate.ends()
        return end


class DeadlyFile(MachineFile):
    """The same for the file."""

    def add(self, line: str) -> None:
        """Write, and die when it is time."""
        Fate.begins()
        super().add(line)
        Fate.ends()


if __name__ == "__main__":
    Fate.step, Fate.before = int(sys.argv[1]), sys.argv[2] == "before"
    house: Any = session
    house.JournalWriter = DeadlyJournal
    command: Any = launch_workers
    command.MachineFile = DeadlyFile
    sys.exit(launch_workers.main(sys.argv[3:]))
