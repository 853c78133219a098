"""Machines with real addresses and a real sshd, each in network, process and file system namespaces of its own.

::

    with Stage() as stage:
        address = stage.start("i-1", user_data)      # "#cloud-config ...": keys, host key, files, commands
        stage.wait("i-1")                            # sshd listens; or connect until it does
        stage.root("i-1") / "tmp"                    # the machine's files, seen from here
        stage.stop("i-1")

Needs root, iproute2, util-linux, overlayfs and openssh-server.  A machine has the host's file system with all that it writes kept to
itself (``/root``, ``/tmp``, ``/var/tmp`` and ``/run`` begin empty); whatever runs there ends with it.  It reaches the host at
`Stage.gateway`, and nobody else.

Nothing has to be cleaned up: process 1 of each machine holds a pipe from this process and ends with it, and the kernel takes network,
address and files away with the last process.  A stage takes a free network 10.213.N.0/24, and no route of the host's is touched; the
lock that says so is held by the machines as well.
"""

from __future__ import annotations

import fcntl
import ipaddress
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, NamedTuple, Self

import pytest
import yaml

PATIENCE = 30.0
"""Seconds that a machine may take to boot or go."""
NETWORKS = "10.213"
LOCKS = Path("/run/cloudtask-stage")
PROGRAM = Path(__file__).with_name("machine.py")
NEEDED = ("ip", "unshare", "mount", "umount", "pivot_root", "sshd", "ssh-keygen", "setsid")
PACKAGES = "iproute2 util-linux mount openssh-server"
_PATH = f"{os.environ.get('PATH', '')}:/usr/local/sbin:/usr/sbin:/sbin"


def why_no_stage() -> str:
    """Why no stage can be made here, "" where it can."""
    if os.getuid() != 0:
        return "not allowed to make machines with addresses of their own: needs root"
    if missing := [name for name in NEEDED if shutil.which(name, path=_PATH) is None]:
        return f"no {', '.join(missing)} on this machine: install {PACKAGES}"
    tried = subprocess.run(["unshare", "--mount", "--net", "--pid", "--fork", "true"], capture_output=True, text=True, check=False)
    if tried.returncode:
        return f"no namespaces on this machine: {tried.stderr.strip()}"
    return "" if "overlay" in Path("/proc/filesystems").read_text().split() else "no overlayfs on this machine: load its module"


def require_stage() -> None:
    """Skips the test where no stage can be made, with the reason."""
    if reason := why_no_stage():
        pytest.skip(reason)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What process 1 makes a machine of.  ``files`` have ``path``, ``content`` and ``mode``; a command is shell text or words."""

    hostname: str
    machine_id: str
    address: str
    gateway: str
    authorized_keys: list[str]
    host_keys: dict[str, str]
    files: list[dict[str, str]]
    commands: list[str | list[str]]
    shared: list[str]
    boot_seconds: float


class Told(NamedTuple):
    """What user data says: cloud-init's modules ``ssh``, ``write_files`` and ``runcmd``."""

    authorized_keys: list[str]
    host_keys: dict[str, str]
    files: list[dict[str, str]]
    commands: list[str | list[str]]


def read_user_data(text: str) -> Told:
    """Of ``#cloud-config`` text; other text says nothing.  Raises ValueError where cloud-init would not take it."""
    config = yaml.safe_load(text) if text.startswith("#cloud-config") else {}
    if not isinstance(config, dict):
        raise ValueError("user data is no mapping")
    if config.get("disable_root", True) and config.get("ssh_authorized_keys"):
        raise ValueError("user data keeps root from logging in: disable_root is not false")
    files = [
        {"path": each["path"], "content": each.get("content", ""), "mode": str(each.get("permissions", "0644"))}
        for each in config.get("write_files", [])
    ]
    hosts = {name.removesuffix("_private"): key for name, key in config.get("ssh_keys", {}).items() if name.endswith("_private")}
    return Told(list(config.get("ssh_authorized_keys", [])), hosts, files, list(config.get("runcmd", [])))


class Stage:
    """A network of machines.  ``ended`` is called, in a thread of its own, with a machine's id and why it ended by itself.

    ``shared`` are directories that machines see as they are here.  Methods may be called from any thread.
    """

    def __init__(self, ended: Callable[[str, str], None] | None = None, shared: Iterable[Path] = ()) -> None:
        self._ended = ended
        self._shared = [str(each) for each in shared]
        self._guard = threading.Lock()
        self._machines: dict[str, _Machine] = {}
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  # closed by close()
        self._lock, self.network = _claim()
        self.gateway = str(self.network[1])
        self._cable = f"cts{self.network[0].packed[2]}"
        self._free = [str(each) for each in list(self.network.hosts())[1:]]
        self._anchor = self._hold()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @property
    def machines(self) -> list[str]:
        """Who is on the stage."""
        with self._guard:
            return sorted(self._machines)

    def start(self, machine_id: str, user_data: str = "", *, commands: bool = False, boot_seconds: float = 0.0) -> str:
        """A new machine; returns its address, which answers when it has booted.  ``commands``: ``runcmd`` is run (the timer starts).

        ``boot_seconds`` pass between address and sshd.  Raises ValueError for user data that locks everybody out.
        """
        told = read_user_data(user_data)
        with self._guard:
            if machine_id in self._machines:
                raise ValueError(f"{machine_id} is on the stage already")
            address = self._free.pop(0)
            machine = self._machines[machine_id] = _Machine(address, self._lock, self._errors)
        plan = Plan(
            hostname=re.sub("[^a-z0-9-]", "-", machine_id.lower())[:60],
            machine_id=uuid.uuid4().hex,
            address=address,
            gateway=self.gateway,
            authorized_keys=told.authorized_keys,
            host_keys=told.host_keys,
            files=told.files,
            commands=told.commands if commands else [],
            shared=self._shared,
            boot_seconds=boot_seconds,
        )
        try:
            machine.boot(plan, lambda why: self._left(machine_id, machine, why))
        except (AssertionError, OSError) as error:
            self.stop(machine_id)
            raise AssertionError(f"{machine_id} does not come up ({error}): {self._said()}") from error
        return address

    def wait(self, machine_id: str) -> None:
        """Until it has booted: sshd listens."""
        machine = self._find(machine_id)
        if not machine.ready.wait(PATIENCE) or not machine.alive:
            raise AssertionError(f"{machine_id} does not boot: {self._said()}")

    def stop(self, machine_id: str) -> None:
        """Ends it and all that runs there.  Idempotent."""
        with self._guard:
            machine = self._machines.pop(machine_id, None)
        if machine:
            machine.end()
            with self._guard:
                self._free.append(machine.address)

    def console(self, machine_id: str) -> str:
        """What its console shows: its host keys, once it has booted."""
        return self._find(machine_id).console

    def root(self, machine_id: str) -> Path:
        """Its root directory, seen from here."""
        return Path(f"/proc/{self._find(machine_id).pid}/root")

    def cut(self, machine_id: str) -> None:
        """Takes its cable out: nothing is answered, nothing is closed."""
        self._find(machine_id).cable("down")

    def mend(self, machine_id: str) -> None:
        """Puts its cable in again."""
        machine = self._find(machine_id)
        machine.cable("up")
        _ip(f"route replace {machine.address} dev {machine.link}")

    def close(self) -> None:
        """Ends all machines.  Idempotent."""
        for machine_id in self.machines:
            self.stop(machine_id)
        _end(self._anchor)
        _ip(f"link del {self._cable}", check=False)
        if not self._errors.closed:
            self._errors.close()
            os.close(self._lock)

    def _hold(self) -> subprocess.Popen[bytes]:
        """The network's own cable, into a namespace where nobody is: what goes to an address without a machine gets lost there."""
        words = ["unshare", "--net", "--fork", "--kill-child", "sh", "-c", "echo up; exec cat"]
        anchor = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=[self._lock])
        assert anchor.stdout is not None
        anchor.stdout.readline()
        _ip(
            f"link add {self._cable} type veth peer name eth0 netns {anchor.pid}",
            f"addr add {self.gateway}/24 dev {self._cable}",
            f"link set {self._cable} arp off up",
        )
        subprocess.run(["nsenter", f"--net=/proc/{anchor.pid}/ns/net", "ip", "link", "set", "eth0", "up"], check=True, env={"PATH": _PATH})
        return anchor

    def _find(self, machine_id: str) -> _Machine:
        with self._guard:
            return self._machines[machine_id]

    def _left(self, machine_id: str, machine: _Machine, why: str) -> None:
        """It ended by itself."""
        with self._guard:
            ours = self._machines.get(machine_id) is machine
        if ours:
            self.stop(machine_id)
            if self._ended:
                self._ended(machine_id, why)

    def _said(self) -> str:
        self._errors.seek(0)
        return self._errors.read().decode(errors="replace")[-2000:]


class _Machine:
    """Process 1 of a machine and the cable to it."""

    def __init__(self, address: str, lock: int, errors: IO[bytes]) -> None:
        self.address = address
        self.link = "ctm" + "-".join(address.split(".")[2:])
        self.ready = threading.Event()
        self.console = ""
        self.pid = 0
        self._process = subprocess.Popen(
            ["unshare", "--mount", "--net", "--uts", "--ipc", "--pid", "--fork", "--kill-child", sys.executable, "-I", "-S", str(PROGRAM)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, pass_fds=[lock], env={"PATH": _PATH}, start_new_session=True,
        )  # fmt: skip

    @property
    def alive(self) -> bool:
        """It has not ended."""
        return self._process.poll() is None

    def boot(self, plan: Plan, ended: Callable[[str], None]) -> None:
        """Lays the cable, hands over the plan, and listens to what it says from then on.  Returns when it has its address."""
        up = self._hear()
        self.pid = int(up["pid"])
        _ip(
            f"link add {self.link} type veth peer name eth0 netns {self.pid}",
            f"addr add {plan.gateway}/32 dev {self.link}",
            f"link set {self.link} up",
            f"route add {plan.address} dev {self.link}",
        )
        assert self._process.stdin is not None
        self._process.stdin.write((json.dumps(asdict(plan)) + "\n").encode())
        self._process.stdin.flush()
        if self._hear()["event"] != "addressed":
            raise AssertionError("it died")
        # The kernel drops what is sent before it has noticed the carrier.
        until(lambda: Path(f"/sys/class/net/{self.link}/operstate").read_text() == "up\n", f"{self.link} is up")
        threading.Thread(target=self._listen, args=(ended,), daemon=True).start()

    def cable(self, state: str) -> None:
        """``up`` or ``down``."""
        _ip(f"link set {self.link} {state}")

    def end(self) -> None:
        """At once, with all its processes; its address is free afterwards."""
        _end(self._process)
        _ip(f"link del {self.link}", check=False)

    def _hear(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        return dict(json.loads(line)) if line else {"event": "end", "why": "died", "pid": 0}

    def _listen(self, ended: Callable[[str], None]) -> None:
        while (said := self._hear())["event"] != "end":
            self.console = said.get("console", "")
            self.ready.set()
        self.ready.set()
        ended(said["why"])


def _claim() -> tuple[int, ipaddress.IPv4Network]:
    """A network that no other stage has, nor the host; its lock's descriptor."""
    LOCKS.mkdir(exist_ok=True)
    routes = json.loads(subprocess.run(["ip", "-j", "route"], capture_output=True, check=True, env={"PATH": _PATH}).stdout)
    taken = [ipaddress.IPv4Network(each["dst"], strict=False) for each in routes if each["dst"][0].isdigit()]
    for number in range(256):
        network = ipaddress.IPv4Network(f"{NETWORKS}.{number}.0/24")
        lock = os.open(LOCKS / str(number), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            continue
        if not any(network.overlaps(each) for each in taken):
            return lock, network
        os.close(lock)
    raise AssertionError(f"no network of {NETWORKS}.0.0/16 is free")


def _ip(*commands: str, check: bool = True) -> None:
    text = "".join(f"{each}\n" for each in commands)
    done = subprocess.run(["ip", "-batch", "-"], input=text, env={"PATH": _PATH}, capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise AssertionError(f"ip: {done.stderr.strip()}")


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kills it (and so, by --kill-child, process 1 of its namespace) and waits until all that it made has ended."""
    process.kill()
    process.wait(PATIENCE)
    for pipe in (process.stdin, process.stdout):
        if pipe:
            _close(pipe)


def _close(pipe: IO[bytes]) -> None:
    try:
        pipe.close()
    except BrokenPipeError:
        pass


def until(met: Callable[[], bool], what: str, seconds: float = PATIENCE) -> None:
    """Polls ``met``; fails saying that ``what`` did not come."""
    deadline = time.monotonic() + seconds
    while not met():
        if time.monotonic() > deadline:
            raise AssertionError(f"not after {seconds:g} s: {what}")
        time.sleep(0.02)
