"""One process runs a session."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloudtask.errors import SessionBusyError, SessionError
from cloudtask.session import lock as locks
from cloudtask.session.lock import SessionLock

HOLD = """
import subprocess, sys, time
from cloudtask.session.lock import SessionLock
lock = SessionLock.acquire(sys.argv[1])
child = subprocess.Popen(["sleep", "60"], close_fds=False, stdout=subprocess.DEVNULL)
print(child.pid, flush=True)
time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock of ``tmp_path``, with a child that is given every descriptor it can inherit."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    child = int(process.stdout.readline())
    yield process
    process.kill()
    process.wait()
    process.stdout.close()
    os.kill(child, signal.SIGKILL)


def test_the_second_is_refused_and_told_who_the_first_is(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    with pytest.raises(SessionBusyError, match=rf"run by pid {holder.pid} on {socket.gethostname()}"):
        SessionLock.acquire(str(tmp_path))


def test_the_lock_ends_with_its_holder_though_a_child_lives_on(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    holder.kill()
    holder.wait()
    SessionLock.acquire(str(tmp_path)).release()


def test_also_within_one_process(tmp_path: Path) -> None:
    lock = SessionLock.acquire(str(tmp_path))
    with pytest.raises(SessionBusyError, match=f"pid {os.getpid()} "):
        SessionLock.acquire(str(tmp_path))
    lock.release()
    lock.release()
    SessionLock.acquire(str(tmp_path)).release()


def test_what_the_file_says_is_for_messages_only(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text("4711 an.old.host.with.a.long.name\n")
    lock = SessionLock.acquire(str(tmp_path))
    assert (tmp_path / "lock").read_text() == f"{os.getpid()} {socket.gethostname()}\n"
    (tmp_path / "lock").write_bytes(b"\x1b[31m\xff")
    with pytest.raises(SessionBusyError, match="run by another process"):
        SessionLock.acquire(str(tmp_path))
    lock.release()


def test_locks_that_everybody_gets_are_no_locks(tmp_path: Path) -> None:
    """A file that nobody locked looks as it does where flock does nothing: the second open file is not refused."""
    (tmp_path / "lock").touch()
    with pytest.raises(SessionError, match=r"no working locks \(flock\); choose a directory on a local disk"):
        locks._prove(str(tmp_path))
