"""Ordinary users to log in as: each test run has one to itself, so that runs side by side do not meet in one home."""

from __future__ import annotations

import fcntl
import os
import pwd
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

POOL = "cttest"
LOCKS = Path("/run/lock/cloudtask-tests")


@dataclass(frozen=True)
class Account:
    """A user of this machine.  ``lock`` is the descriptor that keeps it ours."""

    name: str
    uid: int
    gid: int
    home: Path
    lock: int = -1

    def authorize(self, *public_keys: str) -> Path:
        """Writes ``~/.ssh/authorized_keys`` with the given lines."""
        folder = self.home / ".ssh"
        folder.mkdir(mode=0o700, exist_ok=True)
        file = folder / "authorized_keys"
        file.write_text("".join(f"{key.strip()}\n" for key in public_keys))
        file.chmod(0o600)
        for path in (folder, file):
            os.chown(path, self.uid, self.gid)
        return file

    def processes(self) -> list[int]:
        """The ids of the processes that run as this user."""
        return [pid for pid in _pids() if _owner(pid) == self.uid]

    def wipe(self) -> None:
        """Ends all that runs as this user and empties the home.  Only for users of the pool, which are ours alone."""
        assert self.name.startswith(POOL)
        deadline = time.monotonic() + 10
        while running := self.processes():
            for pid in running:
                _kill(pid)
            if time.monotonic() > deadline:
                raise AssertionError(f"processes of {self.name} that cannot be killed: {running}")
            time.sleep(0.01)
        for path in self.home.iterdir():
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def own_account() -> Account:
    """The user who runs the tests."""
    entry = pwd.getpwuid(os.getuid())
    return Account(entry.pw_name, entry.pw_uid, entry.pw_gid, Path(entry.pw_dir))


def borrow() -> Account:
    """A user of the pool that no other test run has; made where it does not exist yet.  Only for root."""
    LOCKS.mkdir(parents=True, exist_ok=True)
    for number in range(1, 65):
        lock = os.open(LOCKS / str(number), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            continue
        name = f"{POOL}{number}"
        entry = _entry(name)
        return Account(name, entry.pw_uid, entry.pw_gid, Path(entry.pw_dir), lock)
    raise AssertionError("all 64 test users are taken")


def give_back(account: Account) -> None:
    """Lets another test run have the user."""
    if account.lock >= 0:
        account.wipe()
        os.close(account.lock)


def _entry(name: str) -> pwd.struct_passwd:
    deadline = time.monotonic() + 20  # useradd gives up at once while another one holds /etc/passwd
    while True:
        try:
            return pwd.getpwnam(name)
        except KeyError:
            done = subprocess.run(["useradd", "-m", "-s", "/bin/sh", name], capture_output=True, text=True, check=False)
            subprocess.run(["usermod", "-p", "*", name], capture_output=True, check=False)  # no password, but not locked
            if done.returncode and time.monotonic() > deadline:
                raise AssertionError(f"useradd {name}: {done.stderr}") from None
            time.sleep(0.05 if done.returncode else 0)


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _owner(pid: int) -> int | None:
    """The real user of a process, from its status: the owner of the folder in /proc is root's for some."""
    try:
        with open(f"/proc/{pid}/status") as file:
            fields = dict(line.split(":", 1) for line in file)
    except (OSError, ValueError):
        return None
    return None if fields["State"].split()[0] == "Z" else int(fields["Uid"].split()[0])


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
