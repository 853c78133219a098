"""``python -m tests.chaos.killed STEP before|after ARGS...``: ``cloudtask ARGS``, killed with SIGKILL at its STEP-th journal step.

``before`` the records of that step are written, or ``after``: then whatever they announce has not been done yet.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from cloudtask.cli.main import main
from cloudtask.session import session
from cloudtask.session.journal import JournalWriter


class Deadly(JournalWriter):
    """A journal writer that kills its process at one step."""

    step = 0
    before = False
    done = 0

    def append(self, *lines: bytes) -> int:
        """Write, and die when it is time."""
        Deadly.done += 1
        if Deadly.done == self.step and self.before:
            os.kill(os.getpid(), signal.SIGKILL)
        end = super().append(*lines)
        if Deadly.done == self.step:
            os.kill(os.getpid(), signal.SIGKILL)
        return end


if __name__ == "__main__":
    Deadly.step, Deadly.before = int(sys.argv[1]), sys.argv[2] == "before"
    house: Any = session
    house.JournalWriter = Deadly
    sys.exit(main(sys.argv[3:]))
