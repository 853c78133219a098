"""The watchdog: cleans up after a run that died, and ends one that is frozen.  One for each session that launches machines.

It knows that the run is dead because the kernel let go of the session's lock; it then leaves time for a resume, and acts only while it
holds the lock itself: it fetches finished results, starting nothing, and destroys what the provider lists for the session.  What it does
stands in the session's log, in lines that begin with ``# watchdog:``.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from cloudtask.errors import CloudtaskError, SessionBusyError, SessionError, StorageError
from cloudtask.instances import reaper
from cloudtask.instances.calls import Waiting
from cloudtask.instances.reaper import Reaper, Remains
from cloudtask.providers import Provider
from cloudtask.session import layout
from cloudtask.session.hold import Hold
from cloudtask.session.lock import WATCHDOG, holder
from cloudtask.session.session import Session
from cloudtask.session.state import SessionState
from cloudtask.units import format_elapsed

_MINE = "watchdog"
"""The file that a session's watchdog holds with flock: there is one at a time, the next one waits."""


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long the watchdog waits for what, in seconds."""

    resume_grace: float = 300.0
    frozen: float = 600.0
    ending: float = 60.0
    between_rounds: float = 300.0
    rounds: float = 3 * 3600.0
    confirm: float = 60.0
    poll: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Watched:
    """The session, by its directory; ``provider`` makes its provider (CloudtaskError where that cannot be), and ``harvest`` fetches
    finished results from its machines under the lock, and ends what runs there."""

    directory: str
    provider: Callable[[], Provider]
    harvest: Callable[[], None]


class Watchdog:
    """Watches one session to the end of its machines."""

    def __init__(self, watched: Watched, patience: Patience, warn: Callable[[str], None]) -> None:
        self._watched = watched
        self._hold = Hold(watched.directory)
        self._state = self._hold.state()
        """What the journal said when it could be read last."""
        self._patience = patience
        self._warn = warn
        self._first_beat: int | None = None
        self._silent = 0.0
        self._looked = time.monotonic()
        self._warned = False

    def run(self) -> bool:
        """Until nothing is left to watch over; False where machines are left that could not be destroyed."""
        with self._alone():
            while True:
                self._await_death()
                readable = self._read()
                if readable and not self._state.bookings.unsettled:
                    return True
                if not readable or (not self._state.finished and not _is_given_up(self._state)):
                    self._log(f"the controller is gone; machines are left: a resume has {format_elapsed(self._patience.resume_grace)}")
                    if self._is_resumed(self._patience.resume_grace):
                        continue
                if (left := self.clean_up()) is not None:
                    return left

    def clean_up(self) -> bool | None:
        """Fetch what is there and destroy it all; None where a resume took over, else whether everything is gone."""
        try:
            if self._read() and any(worker.ready and worker.instance for worker in self._state.workers.values()):
                self._log("fetching finished results")
                self._harvest()
            return self._destroy()
        except SessionBusyError:
            return None

    def _harvest(self) -> None:
        try:
            self._watched.harvest()
        except SessionBusyError:
            raise
        except (CloudtaskError, OSError) as error:
            self._log(f"the results could not be fetched: {error}")

    # --- destroying --------------------------------------------------------------------------------------------------

    def _destroy(self) -> bool | None:
        """Round after round, every one under the lock; between them a resume may take over."""
        patience = self._patience
        began = time.monotonic()
        quiet: float | None = None
        pause = patience.poll
        while True:
            remains, quiet = self._round(quiet)
            if remains.none:
                return True
            if time.monotonic() - began > patience.rounds:
                self._shout(remains)
                return False
            if remains.error:
                self._log(f"not destroyed yet: {reaper.describe(remains)}")
            if self._is_resumed(min(pause, patience.between_rounds)):
                return None
            pause *= 2

    def _round(self, quiet: float | None) -> tuple[Remains, float | None]:
        provider = Waiting(self._watched.provider)
        try:
            return self._journalled_round(provider, quiet)
        except SessionBusyError:
            raise
        except (SessionError, StorageError, OSError) as error:
            return self._bare_round(provider, str(error), quiet)
        finally:
            provider.close()

    def _bare_round(self, provider: Waiting, why: str, quiet: float | None) -> tuple[Remains, float | None]:
        """The disk is full, or the session was moved away or deleted: that is no reason to leave machines there."""
        self._hold.take()
        try:
            self._read()
            state = self._state
            spared = {each.id for each in state.bookings.instances.values() if not each.ours}
            return reaper.destroy_unwritten(provider, state.header.uid, spared, why, quiet)
        except CloudtaskError as error:
            return Remains(instances=(), orders=(state.header.uid,), hourly=0.0, error=f"{why}; {error}"), quiet
        finally:
            self._hold.release()

    def _journalled_round(self, provider: Waiting, quiet: float | None) -> tuple[Remains, float | None]:
        sessions, number = os.path.split(self._hold.root)
        with Session.open(sessions, number, note=WATCHDOG) as session:
            try:
                return Reaper(session, provider).destroy(quiet, self._patience.confirm)
            except (SessionError, StorageError):
                raise
            except CloudtaskError as error:
                left = session.state.bookings
                ids, tokens = (each.id for each in left.ours()), (order.token for order in left.open_orders())
                return Remains(instances=tuple(ids), orders=tuple(tokens), hourly=0.0, error=str(error)), quiet

    def _shout(self, remains: Remains) -> None:
        text = (
            f"STILL THERE after {format_elapsed(self._patience.rounds)}: {reaper.describe(remains)}: "
            "destroy them by hand, or with cloudtask-destroy-workers --leaked"
        )
        self._log(text)
        self._warn(f"cloudtask-watchdog: session {self._state.header.number}: {text}")

    # --- waiting -----------------------------------------------------------------------------------------------------

    def _await_death(self) -> None:
        """Until nobody holds the lock; a holder that is frozen is ended."""
        self._silent, self._looked = 0.0, time.monotonic()
        while self._hold.is_held():
            self._look_for_life()
            time.sleep(self._patience.poll)

    def _is_resumed(self, seconds: float) -> bool:
        """Whether somebody took the session up within so many seconds of being awake."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if self._hold.is_held():
                self._log("the session was taken up again")
                return True
            time.sleep(min(self._patience.poll, max(0.0, end - time.monotonic())))
        return False

    def _look_for_life(self) -> None:
        # CLOCK_MONOTONIC stands still while the machine sleeps, as the beat does.  While both are stopped (a frozen cgroup, docker
        # pause) it goes on: from one look to the next not more counts than the time between looks that were not held up.
        now = time.monotonic()
        passed, self._looked = min(now - self._looked, 2 * self._patience.poll), now
        beat = self._hold.beat
        if beat != self._first_beat:
            self._first_beat, self._silent, self._warned = beat, 0.0, False
            return
        self._silent += passed
        silent = self._silent
        pid = self._holder_pid()
        if pid and silent > self._patience.frozen / 2 and not self._warned and _is_stopped(pid):
            self._warned = True
            rest = format_elapsed(self._patience.frozen / 2)
            self._log(f"the controller (pid {pid}) is stopped (Ctrl-Z?) while its machines cost money: it is ended in {rest}; fg goes on")
            number = self._state.header.number
            self._warn(f"cloudtask-watchdog: session {number} is stopped: fg goes on with it, else it is ended in {rest}")
        if pid and silent > self._patience.frozen:
            self._end_frozen(pid)

    def _holder_pid(self) -> int:
        """The pid of who holds the lock, 0 where that is not certain."""
        if self._hold.deleted:
            return 0
        found = holder(self._hold.root)
        lock = os.path.join(self._hold.root, "lock")
        if not found.pid or found.host != socket.gethostname() or found.note:
            return 0
        return found.pid if _has_open(found.pid, lock) else 0

    def _end_frozen(self, pid: int) -> None:
        self._log(f"the controller has been frozen for {format_elapsed(self._patience.frozen)}: kill -TERM {pid}")
        for number in (signal.SIGTERM, signal.SIGCONT):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        end = time.monotonic() + self._patience.ending
        while time.monotonic() < end and self._holder_pid() == pid:
            if self._hold.beat != self._first_beat:
                return
            time.sleep(min(self._patience.poll, 0.2))
        if self._holder_pid() == pid:
            self._log(f"kill -KILL {pid}")
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._silent = 0.0

    # --- odds --------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """The only watchdog of the session; a second one waits for the end of the first."""
        descriptor = layout.open_inside(self._watched.directory, _MINE, os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _read(self) -> bool:
        """Read the journal; False where it cannot be read, so that nobody knows how things stand."""
        try:
            self._state = self._hold.state()
        except (SessionError, OSError) as error:
            self._log(f"the journal cannot be read: {error}")
            return False
        return True

    def _log(self, text: str) -> None:
        with contextlib.suppress(OSError):
            descriptor = layout.open_inside(self._hold.root, "log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            try:
                os.write(descriptor, f"# watchdog: {text}\n".encode(errors="replace"))
            finally:
                os.close(descriptor)


def _is_given_up(state: SessionState) -> bool:
    """The run itself had begun to destroy all of its machines: nobody is going to need them."""
    left = state.bookings.ours()
    return bool(left) and all(each.destroying for each in left)


def _is_stopped(pid: int) -> bool:
    """Whether a process is stopped by a signal (proc(5): state T)."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] in (b"T", b"t")
    except (OSError, IndexError):
        return False


def _has_open(pid: int, path: str) -> bool:
    """Whether a process has a file open."""
    try:
        return any(os.path.samefile(f"/proc/{pid}/fd/{name}", path) for name in os.listdir(f"/proc/{pid}/fd") if _exists(pid, name))
    except OSError:
        return False


def _exists(pid: int, name: str) -> bool:
    return os.path.exists(f"/proc/{pid}/fd/{name}")
