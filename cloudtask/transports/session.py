"""Our paramiko: a transport that keeps the goodbye, sees how programs are killed, and channels that never block."""

from __future__ import annotations

import contextlib
import signal
import threading
from typing import Any, cast

import paramiko
from paramiko.common import MSG_CHANNEL_REQUEST, MSG_CHANNEL_WINDOW_ADJUST, cMSG_CHANNEL_WINDOW_ADJUST

from cloudtask.transports.inbox import Inbox
from cloudtask.transports.stream import Stream

WINDOW = 4 * 1024 * 1024
"""Bytes that a program may be ahead of us, and the most that a slow reader keeps in memory.  40 MB/s at 100 ms round trip.

More is slower near by: sshd then piles up what it sends (OpenSSH 9.2 on loopback: 600-900 MB/s with 2 to 8 MiB, 300 with 16)."""

BACKLOG = 256 * 1024
"""Bytes that may wait for the kernel in all before `SessionChannel.send` takes no more."""

_CREDIT = WINDOW // 16


class Session(paramiko.Transport):
    """A paramiko transport over a `Stream`.  `farewell` is what the server said when it hung up."""

    _channel_handler_table: Any

    def __init__(self, stream: Stream) -> None:
        super().__init__(cast("Any", stream), default_window_size=WINDOW)
        self.stream = stream
        stream.on_room = self._room
        self.farewell = ""
        self._postponed: list[paramiko.Message] = []
        security = self.get_security_options()
        security.ciphers = sorted(security.ciphers, key=lambda name: "gcm" not in name)  # half the CPU time of paramiko's first
        self.readers: dict[int, SessionChannel] = {}
        self._channel_handler_table = {
            **self._channel_handler_table,
            MSG_CHANNEL_REQUEST: self._on_request,
            MSG_CHANNEL_WINDOW_ADJUST: self._on_window,
        }

    @property
    def preferred_keys(self) -> tuple[str, ...]:
        """The host key algorithms to offer, without the certificates that paramiko adds: known_hosts files list keys."""
        return tuple(self._filter_algorithm("keys"))  # type: ignore[attr-defined]  # paramiko's own method, not in the stubs

    def offer(self, algorithms: list[str]) -> None:
        """Sets the host key algorithms, in order of preference."""
        self.get_security_options().key_types = algorithms

    def _room(self) -> None:
        for reader in list(self.readers.values()):
            reader.room()

    def _parse_newkeys(self, m: paramiko.Message) -> None:
        super()._parse_newkeys(m)  # type: ignore[misc]  # paramiko's own method, not in the stubs
        postponed, self._postponed = self._postponed, []
        for message in postponed:
            self._send_message(message)  # type: ignore[attr-defined]  # paramiko's own method, not in the stubs
        self._room()  # nothing could be sent while keys were exchanged

    def _send_user_message(self, data: paramiko.Message) -> None:
        """Never makes paramiko's thread wait for the end of a key exchange, which only that thread can bring about.

        paramiko 5.1 does when a channel is closed by the other side meanwhile: 30 s later the connection dies.
        """
        if threading.current_thread() is self and not self.clear_to_send.is_set():
            self._postponed.append(data)
        else:
            super()._send_user_message(data)  # type: ignore[misc]  # paramiko's own method, not in the stubs

    def _parse_disconnect(self, m: paramiko.Message) -> None:
        m.get_int()
        self.farewell = m.get_text()

    def _on_request(self, channel: paramiko.Channel, message: paramiko.Message) -> None:
        """Notes an ``exit-signal`` (RFC 4254, 6.10), which paramiko passes over."""
        position = message.packet.tell()
        if message.get_text() == "exit-signal" and channel.chanid in self.readers:
            message.get_boolean()
            self.readers[channel.chanid].killed(message.get_text())
        message.packet.seek(position)
        channel._handle_request(message)  # type: ignore[attr-defined]  # paramiko's own method, not in the stubs

    def _on_window(self, channel: paramiko.Channel, message: paramiko.Message) -> None:
        channel._window_adjust(message)  # type: ignore[attr-defined]  # paramiko's own method, not in the stubs
        if channel.chanid in self.readers:
            self.readers[channel.chanid].room()


class SessionChannel:
    """A `Channel` over a paramiko channel that no program runs on yet.  See `cloudtask.transports.base.Channel`."""

    def __init__(self, session: Session, channel: paramiko.Channel) -> None:
        self._session = session
        self._channel = channel
        self._owed = 0
        self._owed_lock = threading.Lock()
        self._refused = False
        self._signal: int | None = None
        self._closed = False
        self._inbox = Inbox(self._swallowed)
        channel.settimeout(0.0)
        channel.in_buffer = cast("Any", self._inbox.stdout)
        channel.in_stderr_buffer = cast("Any", self._inbox.stderr)
        session.readers[channel.chanid] = self
        if channel.closed:
            self._inbox.end()

    def start(self, command: bytes, timeout: float) -> None:
        """Runs ``command``.  Raises paramiko.SSHException or EOFError where the worker refuses or the connection ends.

        A worker that does not answer within ``timeout`` seconds loses its connection: nothing sensible can follow.
        """
        guard = threading.Timer(timeout, self._session.close)
        guard.daemon = True
        guard.start()
        try:
            self._channel.exec_command(command)
        finally:
            guard.cancel()

    def fileno(self) -> int:
        """See `Channel`."""
        return self._inbox.fileno()

    def recv(self, size: int) -> bytes:
        """See `Channel`."""
        try:
            data = self._inbox.take(size)
        except BlockingIOError:
            self._credit(0)
            raise
        if data:
            self._credit(len(data))
        return data

    def send(self, data: bytes | memoryview) -> int:
        """See `Channel`."""
        view, taken = memoryview(data), 0
        while taken < len(view):
            if self._channel.closed or not self._session.is_active():
                raise EOFError("the connection is gone")
            self._refused = True  # before looking, so that room made meanwhile wakes us
            if self._session.stream.unsent >= BACKLOG or not self._session.clear_to_send.is_set():
                break
            try:
                taken += self._channel.send(bytes(view[taken : taken + self._channel.out_max_packet_size]))
            except TimeoutError:
                break
            except paramiko.SSHException as error:
                raise EOFError(str(error)) from error
            self._refused = False
        return taken

    def shutdown_write(self) -> None:
        """See `Channel`."""
        with contextlib.suppress(OSError, EOFError, paramiko.SSHException):
            self._channel.shutdown_write()

    def complaints(self) -> bytes:
        """See `Channel`."""
        return self._inbox.complaints()

    def exit_status(self) -> int | None:
        """See `Channel`."""
        if self._signal is not None:
            return 128 + self._signal
        status = self._channel.exit_status
        return None if status < 0 else status

    def close(self) -> None:
        """See `Channel`."""
        if not self._closed:
            self._closed = True
            with contextlib.suppress(OSError, EOFError, paramiko.SSHException):
                self._channel.close()
            self._session.readers.pop(self._channel.chanid, None)
            self._inbox.dispose()

    # --- called in paramiko's thread -------------------------------------------------------------------------------------------

    def killed(self, name: str) -> None:
        """The program was killed by the signal ``name``, without SIG (RFC 4254, 6.10)."""
        self._signal = getattr(signal, f"SIG{name}", signal.SIGKILL) if name.isalnum() else signal.SIGKILL

    def room(self) -> None:
        """There may be room for what `send` refused."""
        if self._refused:
            self._refused = False
            self._inbox.wake()

    def _swallowed(self, count: int) -> None:
        self._credit(count)

    # --- the program's credit --------------------------------------------------------------------------------------------------

    def _credit(self, count: int) -> None:
        """Gives the program its window back, in large pieces.  While keys are exchanged nothing may be sent: it stays owed."""
        with self._owed_lock:
            self._owed += count
            if self._owed < _CREDIT or self._channel.closed or self._channel.eof_received:
                return
            if not self._session.clear_to_send.is_set():
                return
            owed, self._owed = self._owed, 0
        message = paramiko.Message()
        message.add_byte(cMSG_CHANNEL_WINDOW_ADJUST)
        message.add_int(self._channel.remote_chanid)
        message.add_int(owed)
        with contextlib.suppress(OSError, EOFError, paramiko.SSHException):
            self._session._send_user_message(message)
