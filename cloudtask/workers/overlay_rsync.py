"""An overlay by rsync, which gets the one connection there is for its remote shell.

rsync starts `rsh` in the place of ssh; that connects to a socket here, and its bytes go through a channel of the connection.
"""

from __future__ import annotations

import contextlib
import os
import select
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import IO

from cloudtask.errors import SetupError
from cloudtask.transports import Channel, Connection
from cloudtask.workers import rsh
from cloudtask.workers.last_words import last_words
from cloudtask.workers.remote_command import Limit, exit_status

OPTIONS = (
    "--recursive",
    "--links",
    "--hard-links",
    "--executability",
    "--keep-dirlinks",
    "--times",
    "--omit-dir-times",
    "--no-perms",
    "--no-owner",
    "--no-group",
    # No file name goes through the worker's shell.  (Called --secluded-args since 3.2.6, which still knows the old name.)
    "--protect-args",
)
_MARK = b"cloudtask-rsync:\n"
"""What the worker says before rsync does: a login script may have printed things before."""
_CHUNK = 1 << 16
_TICK_MS = 200
_CONGESTED_MS = 10


def send_by_rsync(connection: Connection, rsync: str, overlay: str, root: str, *, log: Callable[[bytes], None], limit: Limit) -> None:
    """Run the local program ``rsync`` to its end.  Raises SetupError with what it said last."""
    with tempfile.TemporaryDirectory(prefix="cloudtask-") as private, socket.socket(socket.AF_UNIX) as listener:
        path = os.path.join(private, "rsh")
        listener.bind(path)
        listener.listen(1)
        shell = " ".join(_rsync_quote(word) for word in (sys.executable, "-I", "-S", rsh.__file__, path))
        argv = [rsync, *OPTIONS, "-e", shell, "--", os.path.join(overlay, ""), f"worker:{os.path.join(root, '')}"]
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
        relay = _Relay(connection, listener, process, log)
        try:
            relay.run(limit)
        finally:
            _end(process)
            relay.close()
    if process.returncode:
        raise SetupError(f"rsync: {last_words(bytes(relay.said)) or f'exit {process.returncode}'}")


def _rsync_quote(word: str) -> str:
    # rsync splits -e at spaces, and knows quotes: a quote is doubled inside quotes of its kind (rsync(1), option -e).
    return "'" + word.replace("'", "''") + "'"


def _end(process: subprocess.Popen[bytes]) -> None:
    """Nothing of it is left when it returns; a program that has ended is only reaped."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert process.stdout
    process.stdout.close()


class _Relay:
    """Pumps between rsync's stand-in for ssh and a channel, and takes in what rsync says, until rsync has ended."""

    def __init__(
        self, connection: Connection, listener: socket.socket, process: subprocess.Popen[bytes], log: Callable[[bytes], None]
    ) -> None:
        assert process.stdout
        self._connection = connection
        self._listener = listener
        self._process = process
        self._talk: IO[bytes] = process.stdout
        self._log = log
        self._shim: socket.socket | None = None
        self._channel: Channel | None = None
        self._to_worker = b""
        self._to_shim = b""
        self._reading_shim = self._reading_channel = self._talking = True
        self._complained = b""
        self._noise: bytes | None = b""
        """What came before the mark; None behind it."""
        self.said = bytearray()

    def run(self, limit: Limit) -> None:
        """Returns when rsync has ended; raises SetupError at the limit."""
        while self._talking or self._process.poll() is None:
            limit.check()
            ready = self._wait()
            if self._talking and self._talk.fileno() in ready:
                self._hear(os.read(self._talk.fileno(), _CHUNK))
            if self._shim is None:
                if self._listener.fileno() in ready:
                    self._accept()
            else:
                self._pump()

    def close(self) -> None:
        """Lets go of the channel: what runs behind it meets the end of its input."""
        if self._channel:
            self._log_complaints()
            self._channel.close()
        if self._shim:
            self._shim.close()

    def _hear(self, data: bytes) -> None:
        self._talking = bool(data)
        self._say(data)

    def _say(self, data: bytes) -> None:
        if data:
            self.said += data
            del self.said[:-_CHUNK]
            self._log(data)

    def _accept(self) -> None:
        self._shim, _ = self._listener.accept()
        self._shim.settimeout(10)
        words = rsh.read_words(self._shim)
        self._shim.setblocking(False)
        script = f"echo {_MARK.decode().strip()}; exec {shlex.join(os.fsdecode(word) for word in words)}"
        self._channel = self._connection.open(f"exec /bin/sh -c {shlex.quote(script)}")

    def _wait(self) -> set[int]:
        poll = select.poll()
        timeout = _TICK_MS if self._talking else _CONGESTED_MS
        if self._talking:
            poll.register(self._talk.fileno(), select.POLLIN)
        if self._shim is None:
            poll.register(self._listener.fileno(), select.POLLIN)
        else:
            events = (select.POLLIN if self._reading_shim and not self._to_worker else 0) | (select.POLLOUT if self._to_shim else 0)
            if events:
                poll.register(self._shim.fileno(), events)
            assert self._channel
            if self._reading_channel and not self._to_shim:
                poll.register(self._channel.fileno(), select.POLLIN | (select.POLLOUT if self._to_worker else 0))
            elif self._to_worker:
                timeout = _CONGESTED_MS
        return {descriptor for descriptor, _ in poll.poll(timeout)}

    def _pump(self) -> None:
        assert self._shim and self._channel
        self._pump_out(self._shim, self._channel)
        self._pump_in(self._shim, self._channel)
        self._log_complaints()

    def _pump_out(self, shim: socket.socket, channel: Channel) -> None:
        """From rsync to the worker, as long as the channel takes it."""
        while self._reading_shim or self._to_worker:
            if not self._to_worker:
                try:
                    self._to_worker = shim.recv(_CHUNK)
                except BlockingIOError:
                    return
                except OSError:
                    self._to_worker = b""
                if not self._to_worker:
                    self._reading_shim = False
                    channel.shutdown_write()
                    return
            try:
                sent = channel.send(self._to_worker)
            except (OSError, EOFError):
                # The far end is gone; why, its output and rsync itself will say.
                self._reading_shim, self._to_worker = False, b""
                return
            self._to_worker = self._to_worker[sent:]
            if not sent:
                return

    def _pump_in(self, shim: socket.socket, channel: Channel) -> None:
        """From the worker to rsync, as long as rsync takes it."""
        while self._reading_channel or self._to_shim:
            if not self._to_shim:
                try:
                    self._to_shim = channel.recv(_CHUNK)
                except BlockingIOError:
                    return
                if not self._to_shim:
                    self._end_shim(shim, channel)
                    return
                self._to_shim = self._behind_mark(self._to_shim)
                if not self._to_shim:
                    continue
            try:
                sent = shim.send(self._to_shim)
            except BlockingIOError:
                return
            except OSError:
                self._reading_channel, self._to_shim = False, b""
                return
            self._to_shim = self._to_shim[sent:]

    def _behind_mark(self, data: bytes) -> bytes:
        if self._noise is None:
            return data
        before, mark, behind = (self._noise + data).partition(_MARK)
        self._noise = None if mark else before[-_CHUNK:]
        return behind

    def _end_shim(self, shim: socket.socket, channel: Channel) -> None:
        self._reading_channel = False
        self._say(self._noise or b"")
        status = exit_status(channel)
        if status is not None:
            with open(self._listener.getsockname() + rsh.STATUS_SUFFIX, "w") as file:
                file.write(str(status))
        with contextlib.suppress(OSError):
            shim.shutdown(socket.SHUT_WR)

    def _log_complaints(self) -> None:
        assert self._channel
        complaints = self._channel.complaints()
        if complaints != self._complained:
            new = complaints.removeprefix(self._complained)
            self._complained = complaints
            self._say(new)
