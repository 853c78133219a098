"""Real sshd processes on loopback ports, with keys and configuration of their own.

::

    def test_something(sshd, client_keys):
        server = sshd(max_startups="3:50:10", config=["MaxSessions 2"])
        run(f"cloudtask --workers={server.address} --ssh-config={client_keys.config} ...")
        server.pause()

The fixtures are in `tests/conftest.py`.  Run as root, a server lets the ordinary user of this test run in (``server.account``, whose
home is empty at the beginning of each test) and root; run as somebody else, it lets in that user only.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from cloudtask.transports import ConnectOptions
from tests.accounts import Account

PATIENCE = 10.0
"""Seconds that a server may take to come up or go."""

BUSYBOX_TOOLS = """
    [ awk basename cat chgrp chmod chown cp cut date dd df dirname du echo env expr false find grep head hostname id kill ln ls mkdir
    mktemp mv nice nohup nproc od printf ps pwd readlink rm rmdir sed seq setsid sh sleep sort stat sync tail tar tee test timeout touch
    tr true uname uniq wc which whoami xargs
"""


def sshd_program() -> str:
    """The path of sshd; skips the test where there is none, and fails it where CI is true."""
    path = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if path is None:
        reason = "there is no sshd on this machine: install openssh-server"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(reason)
    return str(path)


def free_port(host: str = "127.0.0.1") -> int:
    """A port that nobody listens on right now."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as sock:
        sock.bind((host, 0))
        return int(sock.getsockname()[1])


def keygen(path: Path, *arguments: str, kind: str = "ed25519", passphrase: str = "") -> Path:
    """Makes a key pair at ``path``; returns ``path``."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    command = ["ssh-keygen", "-q", "-t", kind, "-N", passphrase, "-C", path.name, "-f", str(path), *arguments]
    subprocess.run(command, check=True, capture_output=True)
    return path


@dataclass(frozen=True)
class ClientKeys:
    """The controller's side: a HOME of its own with a key and a configuration that leaves the tester's own ssh alone."""

    home: Path

    @property
    def identity(self) -> Path:
        """The private key."""
        return self.home / ".ssh" / "id_ed25519"

    @property
    def public(self) -> str:
        """The public key's line."""
        return Path(f"{self.identity}.pub").read_text().strip()

    @property
    def config(self) -> Path:
        """The ssh configuration, for --ssh-config; append to it at will."""
        return self.home / ".ssh" / "config"

    @property
    def known_hosts(self) -> Path:
        """The user's known_hosts file, empty at first."""
        return self.home / ".ssh" / "known_hosts"

    @property
    def accepted(self) -> Path:
        """cloudtask's own known_hosts file."""
        return self.home / ".config" / "cloudtask" / "known_hosts"

    def configure(self, text: str, *, first: bool = True) -> None:
        """Adds to the ssh configuration; what comes first wins."""
        present = self.config.read_text()
        self.config.write_text(f"{text}\n{present}" if first else f"{present}\n{text}\n")

    def options(self, **changes: object) -> ConnectOptions:
        """Options for `Transport.connect` that use all this."""
        given: dict[str, object] = {"ssh_config": str(self.config), "known_hosts": str(self.accepted), "timeout": 15.0, **changes}
        return ConnectOptions(**given)  # type: ignore[arg-type]  # the caller's words are checked by the class


def make_client_keys(home: Path) -> ClientKeys:
    """Makes the HOME with its key and configuration."""
    keys = ClientKeys(home)
    keygen(keys.identity)
    keys.known_hosts.touch()
    keys.config.write_text(
        f"Host *\n  IdentityFile {keys.identity}\n  UserKnownHostsFile {keys.known_hosts}\n  GlobalKnownHostsFile none\n"
    )
    return keys


class Sshd:
    """A running sshd: a context manager.  ``user`` is whom `address` names; ``config`` is further lines of sshd_config(5).

    The lines may be changed between `stop` and `start`.
    """

    def __init__(
        self,
        folder: Path,
        account: Account,
        *,
        user: str | None = None,
        host: str = "127.0.0.1",
        max_startups: str | None = None,
        config: Iterable[str] = (),
        public_keys: Iterable[str] = (),
        host_keys: Sequence[str] = ("ed25519", "ecdsa"),
        wrapper: Sequence[str] = (),
    ) -> None:
        self.folder = folder
        self.account = account
        self.host = host
        self.user = user or account.name
        self.port = free_port(host)
        self.log = folder / "sshd.log"
        self.host_keys = [keygen(folder / f"host_{kind}", kind=kind) for kind in host_keys]
        self._wrapper = wrapper
        self.config = [*([f"MaxStartups {max_startups}"] if max_startups else []), *config]
        self._process: subprocess.Popen[bytes] | None = None
        self.authorize(*public_keys)

    @property
    def address(self) -> str:
        """``user@host:port`` for --workers."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.user}@{host}:{self.port}"

    @property
    def pid(self) -> int:
        """The process that listens."""
        assert self._process is not None
        return self._process.pid

    @property
    def keys_file(self) -> Path:
        """The authorized_keys of users other than the account: a file of this server's own."""
        return self.folder / "authorized_keys"

    def authorize(self, *public_keys: str) -> None:
        """Sets whose keys may log in, as the account and as root."""
        self.keys_file.write_text("".join(f"{key.strip()}\n" for key in public_keys))
        self.keys_file.chmod(0o644)
        if os.getuid() == 0:
            self.account.authorize(*public_keys)

    def public_host_key(self, kind: str = "ed25519") -> str:
        """``type base64`` of a host key, as known_hosts files have it."""
        return " ".join((self.folder / f"host_{kind}.pub").read_text().split()[:2])

    def known_hosts_line(self, kind: str = "ed25519") -> str:
        """The line that makes this server known."""
        return f"[{self.host}]:{self.port} {self.public_host_key(kind)}\n"

    def start(self) -> Self:
        """Starts it, again on the same port after `stop`; returns when it takes connections."""
        Path("/run/sshd").mkdir(exist_ok=True) if os.getuid() == 0 else None
        file = self.folder / "sshd_config"
        file.write_text("\n".join([*self._lines(), *self.config, *self._match(), ""]))
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*self._wrapper, sshd_program(), "-D", "-e", "-f", str(file)], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env={"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}, start_new_session=True,
            )  # fmt: skip
        process, words = self._process, f"Server listening on {self.host} port {self.port}"
        _poll(lambda: words in self._said() or process.poll() is not None, f"sshd does not start: {self._said()}")
        if words not in self._said():
            raise AssertionError(f"sshd does not start: {self._said()}")
        return self

    def stop(self) -> None:
        """Ends it with all its connections.  The programs that it started get a hangup at most.  Idempotent."""
        if self._process is None:
            return
        connections = self.connection_pids()
        self.resume()
        self._process.terminate()
        _signal(connections, signal.SIGKILL)
        self._process.wait(PATIENCE)
        self._process = None
        self.log.write_text("")

    def connection_pids(self) -> list[int]:
        """The sshd processes of the connections there are, the parent of each pair before its child."""
        return [pid for pid in _descendants(self.pid) if _name(pid).startswith("sshd")] if self._process else []

    def kill_connections(self) -> None:
        """Cuts every connection with SIGKILL, and waits until they are gone.  What runs on them runs on."""
        pids = self._freeze(self.connection_pids)
        _signal(pids, signal.SIGKILL)
        _poll(lambda: not set(pids) & set(self.connection_pids()), f"sshd processes do not die: {pids}")

    def pause(self) -> None:
        """Stops the server and its connections (SIGSTOP): nothing is answered, nothing is closed.  Jobs run on."""
        self._freeze(lambda: [self.pid, *self.connection_pids()])

    def _freeze(self, find: Callable[[], list[int]]) -> list[int]:
        """Stops processes until no new one is found: one that is about to fork may do so before the signal gets it.

        One that is about to become a job's shell may do so as well, and is let go then.
        """
        frozen: list[int] = []
        while new := [pid for pid in find() if pid not in frozen]:
            _signal(new, signal.SIGSTOP)
            _poll(partial(_all_stopped, new), f"sshd processes do not stop: {new}")
            jobs = [pid for pid in new if not _name(pid).startswith("sshd")]
            _signal(jobs, signal.SIGCONT)
            frozen += [pid for pid in new if pid not in jobs]
        return frozen

    def resume(self) -> None:
        """Lets them go on."""
        _signal([self.pid, *self.connection_pids()], signal.SIGCONT)

    def _said(self) -> str:
        return self.log.read_text(errors="replace")

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def _lines(self) -> list[str]:
        return [
            f"Port {self.port}",
            f"ListenAddress {self.host}",
            *(f"HostKey {key}" for key in self.host_keys),
            "PidFile none",
            "UsePAM no",
            "UseDNS no",
            "StrictModes no",
            "PasswordAuthentication no",
            "KbdInteractiveAuthentication no",
            "PermitRootLogin prohibit-password",
            "LogLevel VERBOSE",
            "PrintMotd no",
            *(["PerSourcePenalties no"] if _version() >= (9, 8) else []),
            *([] if os.getuid() == 0 else [f"AuthorizedKeysFile {self.keys_file}"]),
        ]

    def _match(self) -> list[str]:
        """root's keys are not looked for in root's home, which is the tester's."""
        return ["Match User root", f"  AuthorizedKeysFile {self.keys_file}"] if os.getuid() == 0 else []


def make_chroot(account: Account) -> Path:
    """A root directory with busybox and no python3: /bin, /dev, /tmp, /proc (empty) and the account's home.  Remove it after use.

    It cannot be under /tmp, which sshd rejects as writable by others.
    """
    base = Path("/var/lib/cloudtask-tests")
    base.mkdir(exist_ok=True, mode=0o755)
    root = Path(tempfile.mkdtemp(dir=base))
    root.chmod(0o755)
    for name in ("bin", "dev", "etc", "proc", "tmp", "usr", "root"):
        (root / name).mkdir()
    (root / "tmp").chmod(0o1777)
    (root / "usr" / "bin").symlink_to("/bin")
    shutil.copy("/usr/bin/busybox", root / "bin" / "busybox")
    for tool in BUSYBOX_TOOLS.split():
        (root / "bin" / tool).symlink_to("busybox")
    for name, minor in (("null", 3), ("zero", 5), ("urandom", 9)):
        os.mknod(root / "dev" / name, 0o666 | 0o020000, os.makedev(1, minor))
        (root / "dev" / name).chmod(0o666)
    (root / "etc" / "passwd").write_text(
        f"root:x:0:0::/root:/bin/sh\n{account.name}:x:{account.uid}:{account.gid}::{account.home}:/bin/sh\n"
    )
    inner = root / str(account.home).lstrip("/")
    inner.mkdir(parents=True)
    os.chown(inner, account.uid, account.gid)
    return root


def _version() -> tuple[int, int]:
    """sshd's version.  ``-V`` is unknown before 9.2, but then tells it as well."""
    done = subprocess.run([sshd_program(), "-V"], capture_output=True, text=True, check=False)
    words = (done.stderr + done.stdout).split("OpenSSH_", 1)
    major, _, rest = words[1].partition(".") if len(words) > 1 else ("0", "", "0")
    return int(major), int("".join(character for character in rest[:2] if character.isdigit()) or 0)


def _signal(pids: Iterable[int], number: signal.Signals) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            pass


def _poll(done: Callable[[], bool], failure: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not done():
        if time.monotonic() > deadline:
            raise AssertionError(failure)
        time.sleep(0.01)


def _all_stopped(pids: list[int]) -> bool:
    return all(_state(pid) in "TtZX" for pid in pids)


def _state(pid: int) -> str:
    """The letter of a process's state as in proc(5); X where it is gone."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return "X"


def _descendants(pid: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit() and (parent := _parent(int(name))) is not None:
            children.setdefault(parent, []).append(int(name))
    found: list[int] = []
    waiting = list(children.get(pid, []))
    while waiting:
        each = waiting.pop(0)
        found.append(each)
        waiting += children.get(each, [])
    return found


def _parent(pid: int) -> int | None:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return int(file.read().rpartition(")")[2].split()[1])
    except (OSError, IndexError):
        return None


def _name(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/comm") as file:
            return file.read().strip()
    except OSError:
        return ""
