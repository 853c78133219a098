"""The guardian: a process that ends the agent's jobs when the agent is killed.

It shares the agent's lock (one open file, two processes), so no new agent starts before it is done, and knows by the end of a pipe
that the agent is gone.  Which attempts were running it reads from the journal then.
"""

import os
import signal

from . import ending, home, journal, system

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .home import Home

_GOODBYE = b"bye"


class Guardian:
    """The agent's end: starts the process, and says goodbye when the agent leaves in order."""

    def __init__(self, home: "Home", marks: ending.Marks) -> None:
        self._home = home
        self._marks = marks
        self.pid = 0
        self._pipe = -1

    def start(self) -> None:
        """Fork it.  Also for one that was killed.  Raises OSError where there is no room for a process."""
        if self._pipe >= 0:
            os.close(self._pipe)
            self._pipe = -1
        session = os.getsid(0)
        reader, writer = os.pipe()
        self.pid = os.fork()
        if self.pid:
            os.close(reader)
            self._pipe = writer
            return
        try:
            _watch(self._home, self._marks, session, reader)
        finally:
            os._exit(0)

    def goodbye(self) -> None:
        """The agent leaves, and nothing of it runs."""
        try:
            os.write(self._pipe, _GOODBYE)
        except OSError:
            pass


def _watch(home: "Home", marks: ending.Marks, session: int, reader: int) -> None:
    """In the new process: wait for the agent's end, and clean up after it."""
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    os.dup2(0, 2)  # the first connection's stderr would stay open for as long as we live
    system.call_yourself("cloudtask-guard")
    close_others({reader, home.lock_fd})
    said = os.read(reader, 16)
    if said != _GOODBYE:
        end_jobs(home, marks, session)
        home.remove_socket()


def end_jobs(home: "Home", marks: ending.Marks, session: int) -> bool:
    """End what the journal says was running, and what is left of the agent's process session.  False when something stays."""
    attempts = journal.Past(home.file("journal")).open
    return ending.end_survivors(lambda told: ending.survivors(marks, attempts, session, told), grace_of(home))


def grace_of(of: "Home") -> float:
    """Seconds between TERM and KILL, as the last controller wanted it."""
    state = home.read_json(of.file("state"))
    grace = state.get("grace") if isinstance(state, dict) else None
    return float(grace) if isinstance(grace, (int, float)) else 10.0


def close_others(keep: "set[int]") -> None:
    """Close all descriptors above 2 but these."""
    try:
        numbers = [int(name) for name in os.listdir("/proc/self/fd")]
    except OSError:
        numbers = list(range(3, 1024))
    for fd in numbers:
        if fd > 2 and fd not in keep:
            try:
                os.close(fd)
            except OSError:
                pass
