"""The agent's home: a private directory for each worker of each session, the lock that says who may use it, and its socket.

::

    ~/.cloudtask-agent/            or /var/tmp/cloudtask-agent-UID/ where HOME cannot be written or locked
        keys.lock                  whoever edits authorized_keys holds it
        <session uid>.<worker>/    the home; `~2`, `~3` ... is added where that name belongs to another machine
            identity               JSON: machine id, boot id, start of process 1
            lock                   held with flock by the agent and its guardian, together
            state                  JSON: what has to outlive the agent, see `Home.state`
            lease                  its modification time is when the lease runs out, on this machine's clock
            journal  spool/  code/  reserve  trouble
    /tmp/cloudtask-UID/            sockets; made again when it was cleaned away

A home may lie on NFS and be seen by other machines, and containers may share a boot id: a home whose identity does not match is
another machine's, and nothing in it is touched.
"""

import contextlib
import errno
import fcntl
import json
import os
import re
import socket
import stat
import struct
import time
import zlib

from . import system

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,120}\Z")
_CREDENTIALS = struct.Struct("iII")
SAME, REBOOTED, FOREIGN = "same", "rebooted", "foreign"


def valid_key(key: str) -> bool:
    """True for ``<session uid>.<worker number>``: letters, digits, dots, dashes, underscores."""
    return _KEY.match(key) is not None


def compare(theirs: object, ours: "list[str]") -> str:
    """Whose home it is by its identity: of this boot of this machine, of an earlier one, or of another machine."""
    if theirs == ours:
        return SAME
    if not isinstance(theirs, list) or len(theirs) != 3 or theirs[0] != ours[0]:
        return FOREIGN
    # The same boot with another process 1 is another container; without a machine id nothing proves that it is the same machine.
    return REBOOTED if ours[0] and theirs[1] != ours[1] else FOREIGN


def bases() -> "list[str]":
    """The directories that homes may be in, best first."""
    home = os.environ.get("HOME", "")
    own = [os.path.join(home, ".cloudtask-agent")] if os.path.isabs(home) else []
    return own + ["/var/tmp/cloudtask-agent-%d" % os.getuid()]


def private_directory(path: str) -> None:
    """Make a directory that only we can use, or see that it is one.  Raises OSError where it is a link or another's."""
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        pass
    found = os.lstat(path)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise OSError(errno.EPERM, "not a directory of our own", path)
    if stat.S_IMODE(found.st_mode) != 0o700:
        os.chmod(path, 0o700)


def read_json(path: str) -> object:
    """What a small file of ours holds; None where it is not there or torn."""
    try:
        with open(path, "rb") as file:
            return json.loads(file.read().decode("utf-8"))
    except (OSError, ValueError):
        return None


def write_json(path: str, value: object) -> None:
    """Replace a small file, whole or not at all.  Raises OSError."""
    fd = os.open(path + ".new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, json.dumps(value).encode("ascii"))
    finally:
        os.close(fd)
    os.rename(path + ".new", path)


def _lock(path: str, how: int) -> int:
    """A descriptor with the lock of ``path``; -1 where another has it, or the file was removed before we had it.  Raises OSError."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, how)
        if os.fstat(fd).st_ino == os.stat(path).st_ino:
            return fd
    except (BlockingIOError, FileNotFoundError):
        pass
    except OSError:
        os.close(fd)
        raise
    os.close(fd)
    return -1


@contextlib.contextmanager
def locked(path: str) -> "Iterator[None]":
    """Waits for the lock of ``path``, which may only be removed by who holds it.  Raises OSError."""
    fd = -1
    while fd < 0:
        fd = _lock(path, fcntl.LOCK_EX)
    try:
        yield
    finally:
        os.close(fd)


def lock_is_held(path: str) -> bool:
    """True while somebody holds the lock of the home at ``path``, also where that cannot be told."""
    try:
        fd = os.open(os.path.join(path, "lock"), os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except OSError:
        return True
    finally:
        os.close(fd)


class Home:
    """The home at ``path``, which need not exist.  ``fresh``: there was none.  ``rebooted``: it is of an earlier boot."""

    def __init__(self, base: str, path: str, whose: str, fresh: bool) -> None:
        self.base = base
        self.path = path
        self.fresh = fresh
        self.rebooted = whose == REBOOTED
        self.key = os.path.basename(path)
        self.lock_fd = -1
        self.state: "dict[str, object]" = {}
        self.identity = system.identity()

    def file(self, *names: str) -> str:
        """The path of something in the home."""
        return os.path.join(self.path, *names)

    def keys_lock(self) -> str:
        """The file that whoever edits authorized_keys has locked."""
        return os.path.join(self.base, "keys.lock")

    def try_lock(self) -> bool:
        """Take the lock if nobody has it; the descriptor may be handed on by fork.  Raises OSError where flock does not work."""
        self.lock_fd = _lock(self.file("lock"), fcntl.LOCK_EX | fcntl.LOCK_NB)
        return self.lock_fd >= 0

    def unlock(self) -> None:
        """Give up this process's share of the lock."""
        os.close(self.lock_fd)
        self.lock_fd = -1

    def move_in(self) -> None:
        """With the lock held: read the state, make what is missing, and put our identity and process on record."""
        for name in ("spool", "code"):
            private_directory(self.file(name))
        state = read_json(self.file("state"))
        self.state = state if isinstance(state, dict) else {}
        if read_json(self.file("identity")) != self.identity:
            try:
                write_json(self.file("identity"), self.identity)
            except OSError:
                pass  # the disk is full: the next agent looks at the results once more
        self.remember(agent=[os.getpid(), system.start_of(os.getpid())])

    def remember(self, **facts: object) -> None:
        """Put facts into ``state``, on disk as well as the disk allows: ``agent`` (pid, start), ``epoch``, ``connection``, ``ready``."""
        self.state.update(facts)
        try:
            write_json(self.file("state"), self.state)
        except OSError:
            pass

    def renew_lease(self, seconds: float) -> None:
        """Let others on this machine see until when the controller may be thought alive."""
        until = time.time() + seconds
        try:
            os.close(os.open(self.file("lease"), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
            os.utime(self.file("lease"), (until, until))
        except OSError:
            pass

    def nudge_agent(self) -> None:
        """Tell a living agent whose socket is gone to make it again."""
        state = read_json(self.file("state"))
        agent = state.get("agent") if isinstance(state, dict) else None
        if isinstance(agent, list) and len(agent) == 2 and type(agent[0]) is int and agent[0] > 1 and agent[1]:
            if system.start_of(agent[0]) == agent[1]:
                system.send_signal(agent[0], 1)  # SIGHUP

    def remove(self) -> None:
        """Remove the socket and the home, and what held them if that is empty now."""
        self.remove_socket()
        import shutil  # 3 ms that no start needs to wait for

        shutil.rmtree(self.path, ignore_errors=True)
        try:
            with locked(self.keys_lock()):
                if os.listdir(self.base) == [os.path.basename(self.keys_lock())]:
                    os.unlink(self.keys_lock())
                    os.rmdir(self.base)
        except OSError:
            pass  # it is no matter

    def remove_socket(self) -> None:
        """Remove the socket, and the directory of sockets if that is empty now."""
        for path in self.socket_paths():
            try:
                os.unlink(path)
                os.rmdir(os.path.dirname(path))
            except OSError:
                pass  # others use the directory, or it is the home

    def socket_paths(self) -> "list[str]":
        """Where the agent of this home may listen: in /tmp, or in the home itself where another user has taken that name.

        The first is short enough for any system, and one for each home of this machine.
        """
        whose = os.fsencode("\0".join([os.path.realpath(self.path)] + self.identity))
        name = "%s-%08x%08x" % (self.key[-40:], zlib.crc32(whose), zlib.crc32(whose[::-1]))
        return ["/tmp/cloudtask-%d/%s" % (os.getuid(), name), self.file("socket")]

    def listen(self) -> "socket.socket":
        """A listening socket at one of `socket_paths`, which is taken from whoever had it.  Raises OSError."""
        trouble: "OSError | None" = None
        for path in self.socket_paths() * 2:  # twice: an agent that leaves may have removed the directory at the wrong moment
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                private_directory(os.path.dirname(path))
                if os.path.lexists(path):
                    os.unlink(path)
                listener.bind(path)
                listener.listen(16)
                return listener
            except OSError as error:
                listener.close()
                trouble = error
        assert trouble
        raise trouble

    def connect(self) -> "socket.socket | None":
        """A connection to the agent of this home, or None.  Raises OSError where somebody else's process answers."""
        for path in self.socket_paths():
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                private_directory(os.path.dirname(path))
                connection.connect(path)
            except OSError:
                connection.close()
                continue
            check_peer(connection)
            return connection
        return None


def check_peer(connection: "socket.socket") -> None:
    """Raises OSError when the process at the other end is of another user."""
    if hasattr(socket, "SO_PEERCRED"):
        user = _CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))[1]
        if user not in (os.getuid(), 0):
            raise OSError(errno.EPERM, "the process at the other end is of user %d" % user)


def _claim(base: str, key: str, ours: "list[str]") -> "Home | None":
    for number in range(1, 100):
        path = os.path.join(base, key if number == 1 else "%s~%d" % (key, number))
        try:
            os.mkdir(path, 0o700)
            write_json(os.path.join(path, "identity"), ours)
            return Home(base, path, SAME, True)
        except FileExistsError:
            private_directory(path)
        theirs = read_json(os.path.join(path, "identity"))
        if theirs is None and not os.path.exists(os.path.join(path, "journal")):
            write_json(os.path.join(path, "identity"), ours)  # it was made a moment ago, or by an agent that died at once
            return Home(base, path, SAME, True)
        whose = compare(theirs, ours)
        if whose != FOREIGN:
            return Home(base, path, whose, not os.path.exists(os.path.join(path, "journal")))
    return None


def find(key: str) -> Home:
    """The home for ``key`` on this machine, made if there is none.  Raises OSError where none can be had."""
    ours = system.identity()
    trouble: "OSError | None" = None
    for base in bases():
        for _ in range(5):
            try:
                private_directory(base)
                home = _claim(base, key, ours)
                if home and _can_lock(home):
                    return home
                break
            except FileNotFoundError as error:
                trouble = error  # an agent is just removing it
            except OSError as error:
                trouble = error
                break
    raise trouble or OSError(errno.EEXIST, "all names for the agent's home are taken", bases()[0])


def _can_lock(home: Home) -> bool:
    """False where the file system knows no flock."""
    fd = os.open(home.file("lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        pass
    except OSError:
        return False
    finally:
        os.close(fd)
    return True
