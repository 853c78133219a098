"""A small client that drives the real agent as a supervisor would, over a socket pair or two pipes.

Used by the tests here; other tests may use it as well.  Everything waits with a deadline.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cloudtask import wire

Frame = tuple[dict[str, Any], bytes]
PATIENCE = 20.0


def until(condition: Callable[[], Any], what: str = "", seconds: float = PATIENCE) -> Any:
    """What ``condition`` returns as soon as that is true; AssertionError after ``seconds``."""
    deadline = time.monotonic() + seconds
    while True:
        found = condition()
        if found:
            return found
        assert time.monotonic() < deadline, f"waited {seconds} s for {what or condition}"
        time.sleep(0.01)


def alive(pid: int) -> bool:
    """True while a process runs that is more than a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return False
    return stat.rpartition(b") ")[2][:1] not in (b"Z", b"X")


class Client:
    """One connection to the agent for ``key`` whose home is below ``home``.  Collects what comes by kind.

    The session in the key must be one that nobody else uses on this machine: agents find what escaped them by its name.
    """

    def __init__(
        self, home: Path, key: str, *, python: str = sys.executable, env: Mapping[str, str] | None = None, pipes: bool = False,
        shell: Sequence[str] = ("/bin/sh", "-c"), cwd: Path | None = None,
    ) -> None:  # fmt: skip
        self.home, self.key = home, key
        self.frames: list[Frame] = []
        self.output: dict[tuple[int, int], tuple[bytearray, bytearray]] = {}
        self.results: dict[tuple[int, int], list[Any]] = {}
        self.eof = False
        nonce = wire.new_nonce()
        path = os.path.dirname(python) + ":/usr/sbin:/usr/bin:/sbin:/bin"
        environ = {"HOME": str(home), "PATH": path, "LANG": "C.UTF-8", **(env or {})}
        self._open(pipes, [*shell, wire.launch_command(key, nonce)], environ, cwd or home)
        self._greeting = wire.Greeting(nonce)
        self._unpacker = wire.Unpacker()

    def _open(self, pipes: bool, argv: list[str], env: dict[str, str], cwd: Path) -> None:
        if pipes:
            (theirs_in, self.write_fd), (self.read_fd, theirs_out) = os.pipe(), os.pipe()
        else:
            ours, theirs = socket.socketpair()
            theirs_in, theirs_out = theirs.detach(), -1
            self.write_fd, self.read_fd = ours.fileno(), os.dup(ours.detach())
        out = theirs_out if pipes else theirs_in
        self.process = subprocess.Popen(argv, stdin=theirs_in, stdout=out, stderr=subprocess.PIPE, env=env, cwd=cwd)
        for fd in {theirs_in, out}:
            os.close(fd)

    # --- bytes -------------------------------------------------------------------------------------------------------

    def greet(self) -> str:
        """Wait for the mark and send the program; returns what the mark said."""
        deadline = time.monotonic() + PATIENCE
        while True:
            data = self._read(deadline)
            assert data, f"no mark; noise {self._greeting.noise!r}, stderr {self.complaints()!r}"
            found = self._greeting.feed(data)
            if found:
                break
        if found[0] == "agent":
            self._take(found[1])
            self.write(wire.agent_payload())
        return found[0]

    def write(self, data: bytes) -> None:
        """Send bytes, taking in what comes meanwhile, so that neither end waits for the other."""
        view = memoryview(data)
        os.set_blocking(self.write_fd, False)
        deadline = time.monotonic() + PATIENCE
        while view:
            readable, writable, _ = select.select([self.read_fd], [self.write_fd], [], 1)
            if writable:
                view = view[os.write(self.write_fd, view) :]
            elif readable:
                self._receive(deadline)
            assert time.monotonic() < deadline, "the agent does not read"

    def _read(self, deadline: float) -> bytes:
        readable, _, _ = select.select([self.read_fd], [], [], max(0.0, deadline - time.monotonic()))
        assert readable, f"nothing came; so far {self.kinds()}; stderr {self.complaints()!r}"
        try:
            return os.read(self.read_fd, 1 << 20)
        except ConnectionResetError:
            return b""

    def take_in(self) -> None:
        """Wait for something to come, and take it in."""
        self._receive(time.monotonic() + PATIENCE)

    def _receive(self, deadline: float) -> None:
        data = self._read(deadline)
        if not data:
            self.eof = True
        self._take(data)

    def _take(self, data: bytes) -> None:
        for header, payload in self._unpacker.feed(data):
            self.frames.append((header, payload))
            self._sort(header, payload)

    def _sort(self, header: dict[str, Any], payload: bytes) -> None:
        if header["t"] == "out":
            stream = self.output.setdefault((header["job"], header["attempt"]), (bytearray(), bytearray()))[header["stream"] - 1]
            assert len(stream) == header["position"], "output with a gap"
            stream += payload
        elif header["t"] == "ended":
            position = 0
            for row in header["jobs"]:
                key = (row[0], row[1])
                assert key not in self.results, f"{key} ended twice"
                self.results[key] = row
                for stream, size in zip(self.output.setdefault(key, (bytearray(), bytearray())), row[13:15], strict=True):
                    stream += payload[position : position + size]
                    position += size
            assert position == len(payload)

    # --- frames ------------------------------------------------------------------------------------------------------

    def send(self, header: dict[str, Any], payload: bytes = b"") -> None:
        """Send one frame."""
        self.write(wire.pack(header, payload))

    def kinds(self) -> list[str]:
        """The types of all frames so far."""
        return [header["t"] for header, _ in self.frames]

    def pump(self, done: Callable[[], Any], what: str = "", seconds: float = PATIENCE) -> Any:
        """Take in frames until ``done`` returns something true."""
        deadline = time.monotonic() + seconds
        while not (found := done()):
            assert not self.eof, f"the agent closed while waiting for {what}; {self.frames[-3:]}; stderr {self.complaints()!r}"
            assert time.monotonic() < deadline, f"waited {seconds} s for {what}; so far {self.frames[-5:]}"
            self._receive(deadline)
        return found

    def wait(self, kind: str, seconds: float = PATIENCE) -> dict[str, Any]:
        """The newest frame of a type, as soon as there is one."""
        return self.pump(lambda: next((h for h, _ in reversed(self.frames) if h["t"] == kind), None), kind, seconds)  # type: ignore[no-any-return]  # frames hold plain JSON

    def wait_eof(self, seconds: float = PATIENCE) -> None:
        """The agent closes the connection."""
        deadline = time.monotonic() + seconds
        while not self.eof:
            self._receive(deadline)

    def hello(self, epoch: int = 1, connection: int = 1, acked: bool = True, **config: Any) -> dict[str, Any]:
        """Say hello; returns the welcome.  ``config`` as in the contract, with small defaults."""
        values = {
            "session": self.session, "worker": int(self.key.rpartition(".")[2]), "slots": 2, "grace": 1, "lease": 600,
            "max_output": 1 << 30, "env": {}, "workdir": None, "post": None, "post_timeout": 30, "public_key": None,
            "heartbeat": 15, **config,
        }  # fmt: skip
        before = self.kinds().count("welcome")
        header = {"t": "hello", "version": wire.VERSION, "epoch": epoch, "connection": connection, "acked": acked, "config": values}
        self.send(header)
        self.pump(lambda: self.kinds().count("welcome") > before and self._inventory_ends(), "welcome")
        return self.wait("welcome")

    def _inventory_ends(self) -> bool:
        return any(header["t"] == "inventory" and header["last"] for header, _ in self.frames)

    def start(self, epoch: int = 1, connection: int = 1, **config: Any) -> dict[str, Any]:
        """Greet and say hello."""
        assert self.greet() == "agent"
        return self.hello(epoch, connection, **config)

    def inventory(self) -> dict[tuple[int, int], tuple[str, Any]]:
        """State and result of all attempts in all inventories so far."""
        rows = [row for header, _ in self.frames if header["t"] == "inventory" for row in header["rows"]]
        return {(row[0], row[1]): (row[2], row[3]) for row in rows}

    def run(self, jobs: Mapping[int, bytes] | Iterable[tuple[int, int, float, bytes]], timeout: float = 0) -> None:
        """Send jobs: code by number (attempt 1), or (job, attempt, timeout, code)."""
        rows = [(job, 1, timeout, code) for job, code in jobs.items()] if isinstance(jobs, Mapping) else list(jobs)
        header = {"t": "run", "jobs": [[job, number, limit, len(code)] for job, number, limit, code in rows]}
        self.send(header, b"".join(code for _, _, _, code in rows))

    def result(self, job: int, number: int = 1, seconds: float = PATIENCE) -> list[Any]:
        """An attempt's result, as soon as it is there."""
        return self.pump(lambda: self.results.get((job, number)), f"the end of {job}", seconds)  # type: ignore[no-any-return]  # frames hold plain JSON

    def started(self) -> set[tuple[int, int]]:
        """The attempts whose start has been told."""
        return {(row[0], row[1]) for header, _ in self.frames if header["t"] == "started" for row in header["jobs"]}

    def stdout(self, job: int, number: int = 1) -> bytes:
        """What an attempt has written so far."""
        return bytes(self.output.get((job, number), (b"", b""))[0])

    def stderr(self, job: int, number: int = 1) -> bytes:
        """The same for stderr."""
        return bytes(self.output.get((job, number), (b"", b""))[1])

    def ack(self, *attempts: tuple[int, int]) -> None:
        """Acknowledge results."""
        self.send({"t": "ack", "jobs": [list(attempt) for attempt in attempts]})

    def close(self) -> None:
        """Cut the connection."""
        for fd in {self.read_fd, self.write_fd}:
            os.close(fd)
        self.read_fd = self.write_fd = -1

    def complaints(self) -> str:
        """What stands on stderr now."""
        assert self.process.stderr
        fd = self.process.stderr.fileno()
        os.set_blocking(fd, False)
        try:
            return (os.read(fd, 65536) or b"").decode(errors="replace")
        except BlockingIOError:
            return ""

    @property
    def session(self) -> str:
        """The session's uid."""
        return self.key.rpartition(".")[0]

    # --- the other end -----------------------------------------------------------------------------------------------

    @property
    def agent_home(self) -> Path:
        """The agent's home."""
        return self.home / ".cloudtask-agent" / self.key

    def agent_pid(self) -> int:
        """The agent's process."""
        return int(self.wait("welcome")["pid"])

    def end(self) -> None:
        """Let go of everything: connection, `attach`."""
        if self.read_fd >= 0:
            self.close()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if self.process.stderr:
            self.process.stderr.close()


def processes_of(home: Path) -> list[int]:
    """All processes, `attach` and agents and jobs, whose HOME is that directory."""
    mark = f"HOME={home}".encode()
    found = []
    for name in os.listdir("/proc"):
        try:
            if name.isdigit() and mark in Path("/proc", name, "environ").read_bytes().split(b"\0") and alive(int(name)):
                found.append(int(name))
        except OSError:
            continue
    return found


def kill_all(home: Path) -> None:
    """End all processes of a test's home, and see them gone."""

    def gone() -> bool:
        for pid in processes_of(home):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        return not processes_of(home)

    until(gone, "the end of the test's processes")


def remove_dead_sockets(keys: set[str]) -> None:
    """Remove what agents that were killed left in the directory of sockets."""
    folder = Path(f"/tmp/cloudtask-{os.getuid()}")
    for path in list(folder.iterdir()) if folder.is_dir() else []:
        bound = {line.split()[-1] for line in Path("/proc/net/unix").read_text().splitlines()}
        if str(path) not in bound and path.name.rpartition("-")[0].partition("~")[0] in keys:
            path.unlink(missing_ok=True)
