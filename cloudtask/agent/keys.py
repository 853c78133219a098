"""The session's public key in ``~/.ssh/authorized_keys``: one line for each session, which every agent of it shares.

::

    restrict ssh-ed25519 AAAA... cloudtask-<session uid>

The file is replaced by rename in its real directory (a symbolic link stays), with its mode and owner kept, while `home.keys_lock`
is held.  A line goes with the last agent of its session on this machine; one that an agent left behind goes when a later agent
starts and finds no living agent and no running lease for it.  A home of another machine cannot be judged: its line stays.
"""

import os
import re
import stat
import time

from . import home as homes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from .home import Home

_KEY = re.compile(r"[A-Za-z0-9@.-]{1,64} [A-Za-z0-9+/=]{16,16384}\Z")
_LINE = re.compile(rb"restrict [^ ]+ [^ ]+ cloudtask-([A-Za-z0-9._-]+)\s*\Z")


class KeyTrouble(Exception):
    """The file cannot be changed, or the key is none; the text says why."""


def path() -> str:
    """The file that sshd reads by default."""
    return os.path.join(os.environ.get("HOME") or os.path.expanduser("~"), ".ssh", "authorized_keys")


def authorise(home: "Home", session: str, public_key: str) -> None:
    """Put the session's line in, in the place of an older one.  Raises KeyTrouble."""
    key = " ".join(public_key.split()[:2])
    if not _KEY.match(key) or not homes.valid_key(session):
        raise KeyTrouble("the controller sent what is no public key")
    line = ("restrict %s cloudtask-%s" % (key, session)).encode("ascii")

    def change(lines: "list[bytes]") -> "list[bytes]":
        home.remember(key=True)
        return lines if line in lines else [old for old in lines if _session_of(old) != session] + [line]

    _edit(home, change)


def withdraw(home: "Home", session: str) -> None:
    """Take the session's line out, unless another agent of the session lives on this machine.  Raises KeyTrouble."""

    def change(lines: "list[bytes]") -> "list[bytes]":
        # Said while the lock is held: of two agents that end at once the second sees that the first needs the line no more.
        home.remember(key=False)
        if any(_needs_key(home, other) for other in _homes_of(home, session) if other != home.path):
            return lines
        return [line for line in lines if _session_of(line) != session]

    _edit(home, change)


def sweep(home: "Home", session: str) -> None:
    """Take out what dead agents of other sessions left.  Raises KeyTrouble."""

    def change(lines: "list[bytes]") -> "list[bytes]":
        return [line for line in lines if _session_of(line) in ("", session) or not _is_stale(home, _session_of(line))]

    _edit(home, change)


def _session_of(line: bytes) -> str:
    found = _LINE.match(line)
    return found.group(1).decode("ascii") if found else ""


def _homes_of(home: "Home", session: str) -> "list[str]":
    """The homes of a session's agents beside ours, `~2` and so on included."""
    pattern = re.compile(re.escape(session) + r"\.[0-9]+(~[0-9]+)?\Z")
    try:
        return [os.path.join(home.base, name) for name in os.listdir(home.base) if pattern.match(name)]
    except OSError:
        return []


def _needs_key(home: "Home", other: str) -> bool:
    """True while the agent of another home lives and uses the line.  Of another machine's agent its lease tells."""
    state = homes.read_json(os.path.join(other, "state"))
    if not isinstance(state, dict) or not state.get("key"):
        return False
    return homes.lock_is_held(other) or (_is_foreign(home, other) and _lease_runs(other))


def _is_foreign(home: "Home", other: str) -> bool:
    return homes.compare(homes.read_json(os.path.join(other, "identity")), home.identity) == homes.FOREIGN


def _lease_runs(other: str) -> bool:
    try:
        return os.stat(os.path.join(other, "lease")).st_mtime > time.time()
    except OSError:
        return False


def _is_stale(home: "Home", session: str) -> bool:
    """True when no agent of the session can still need its line.  An agent makes its home before it writes the line."""
    return not any(_is_foreign(home, other) or homes.lock_is_held(other) or _lease_runs(other) for other in _homes_of(home, session))


def _edit(home: "Home", change: "Callable[[list[bytes]], list[bytes]]") -> None:
    try:
        with homes.locked(home.keys_lock()):
            _replace(os.path.realpath(path()), change)
    except OSError as error:
        raise KeyTrouble("cannot change %s: %s" % (path(), error.strerror or error))


def _replace(target: str, change: "Callable[[list[bytes]], list[bytes]]") -> None:
    try:
        with open(target, "rb") as file:
            old = file.read()
            found = os.fstat(file.fileno())
            mode, owner = stat.S_IMODE(found.st_mode), (found.st_uid, found.st_gid)
    except FileNotFoundError:
        old, mode, owner = b"", 0o600, (os.getuid(), os.getgid())
    lines = old.split(b"\n")
    if not lines[-1]:
        lines.pop()
    changed = change(lines)
    if changed == lines:
        return
    os.makedirs(os.path.dirname(target), 0o700, exist_ok=True)
    temporary = "%s.cloudtask-%d" % (target, os.getpid())
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(b"".join(line + b"\n" for line in changed))
            file.flush()
            found = os.fstat(fd)
            if (found.st_uid, found.st_gid) != owner:
                os.fchown(fd, *owner)
            os.fchmod(fd, mode)
            os.fsync(fd)
        os.rename(temporary, target)
    except OSError:
        os.unlink(temporary)
        raise


