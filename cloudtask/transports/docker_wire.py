"""A connection of one's own to the engine, for the stream of one program.

The SDK would hand out its socket, but that has two faults: its HTTP reader may have read the beginning of the stream together with the
answer's head, and Python's `SSLSocket.unwrap`, by which stdin ends over TLS, throws away what the engine says at that moment (OpenSSL's
SSL_shutdown(3): application data after close_notify).  So this one call is made here: an HTTP request that turns the connection into the
stream (Docker Engine API, "Start an exec instance").
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
import ssl
from typing import Protocol
from urllib.parse import urlsplit

from cloudtask.transports.docker_engine import Engine, EngineError, engine_errors, plain, socket_path

_CHUNK = 1 << 16
_LONGEST_HEAD = 1 << 16
_STATUS_LINE = re.compile(rb"HTTP/1\.[01] ([1-5][0-9][0-9])\b")
_SWITCHED = (101, 200)
"""Engines before API 1.22, and some that are not Docker, say 200."""


class Wire(Protocol):
    """A connection that does not block."""

    def fileno(self) -> int:
        """The socket's descriptor."""

    def waiting(self) -> bool:
        """There is something to receive that the descriptor does not tell of."""

    def unsent(self) -> bool:
        """There is something to `flush` once the descriptor can be written to."""

    def recv(self, size: int) -> bytes:
        """``b""`` at the end.  Raises BlockingIOError, OSError."""

    def send(self, data: memoryview) -> int:
        """How much was taken, 0 when none could be.  Raises OSError."""

    def flush(self) -> None:
        """Sends what was taken.  Raises OSError."""

    def end_sending(self) -> None:
        """The other end meets the end; it may go on talking."""

    def close(self) -> None:
        """Ends it."""


class PlainWire:
    """Over a Unix or a TCP socket."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self.fileno = sock.fileno
        self.recv = sock.recv
        self.close = sock.close

    def waiting(self) -> bool:
        """See `Wire`."""
        return False

    def unsent(self) -> bool:
        """See `Wire`."""
        return False

    def send(self, data: memoryview) -> int:
        """See `Wire`."""
        try:
            return self._socket.send(data)
        except BlockingIOError:
            return 0

    def flush(self) -> None:
        """See `Wire`."""

    def end_sending(self) -> None:
        """See `Wire`."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)


class TlsWire:
    """Over TLS, with the ciphertext in our own hands.  Raises OSError where the handshake fails; the socket blocks until it is over."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, host: str) -> None:
        self._socket = sock
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=host)
        self._unsent = memoryview(b"")
        self._received = bytearray()
        self.fileno = sock.fileno
        self.close = sock.close
        self._shake_hands()

    def _shake_hands(self) -> None:
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                self._socket.sendall(self._outgoing.read())
                self._feed(self._socket.recv(_CHUNK))
            else:
                self._socket.sendall(self._outgoing.read())
                return

    def _feed(self, data: bytes) -> None:
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()

    def waiting(self) -> bool:
        """See `Wire`."""
        return bool(self._received or self._tls.pending() or self._incoming.pending)

    def unsent(self) -> bool:
        """See `Wire`."""
        return bool(self._unsent)

    def recv(self, size: int) -> bytes:
        """See `Wire`."""
        if self._received:
            taken = bytes(self._received[:size])
            del self._received[:size]
            return taken
        while True:
            with contextlib.suppress(ssl.SSLWantReadError):
                return self._read(size)
            self._feed(self._socket.recv(_CHUNK))

    def _read(self, size: int) -> bytes:
        try:
            return self._tls.read(size)
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            return b""

    def send(self, data: memoryview) -> int:
        """See `Wire`."""
        self.flush()
        if self._unsent:
            return 0
        taken = self._tls.write(data[:_CHUNK])
        self.flush()
        return taken

    def flush(self) -> None:
        """See `Wire`."""
        if not self._unsent:
            self._unsent = memoryview(self._outgoing.read())
        with contextlib.suppress(BlockingIOError):
            while self._unsent:
                self._unsent = self._unsent[self._socket.send(self._unsent) :]

    def end_sending(self) -> None:
        """See `Wire`."""
        # All that can be read must have been: the farewell would trip over it.
        with contextlib.suppress(ssl.SSLWantReadError):
            while data := self._read(_CHUNK):
                self._received += data
        with contextlib.suppress(OSError):
            self._tls.unwrap()
        with contextlib.suppress(OSError):
            self.flush()


def start_exec(engine: Engine, exec_id: str) -> tuple[Wire, bytes]:
    """Starts an exec that was created: its stream, and what has come of it already.  Raises EngineError."""
    with engine_errors("starting a program"), contextlib.ExitStack() as undo:
        sock = undo.enter_context(_dial(engine))
        wire = _wire(sock, engine)
        _send(wire, _request(f"/v{engine.api.api_version}/exec/{exec_id}/start"))
        status, body = _answer(wire)
        if status not in _SWITCHED:
            raise EngineError(f"starting a program: {_message(body)}", status)
        sock.setblocking(False)
        undo.pop_all()
        return wire, body


def _dial(engine: Engine) -> socket.socket:
    timeout = engine.api.timeout
    if engine.host.startswith("unix://"):
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.settimeout(timeout)
            sock.connect(socket_path(engine.host))
        except BaseException:
            sock.close()
            raise
        return sock
    place = urlsplit(engine.api.base_url)
    sock = socket.create_connection((place.hostname or "", place.port or 0), timeout)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    return sock


def _wire(sock: socket.socket, engine: Engine) -> Wire:
    place = urlsplit(engine.api.base_url)
    if place.scheme != "https":
        return PlainWire(sock)
    verify, certificate = engine.api.verify, engine.api.cert
    context = ssl.create_default_context(cafile=verify if isinstance(verify, str) else None)
    if not verify:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if certificate:
        context.load_cert_chain(*([certificate] if isinstance(certificate, str) else certificate))
    return TlsWire(sock, context, place.hostname or "")


def _request(path: str) -> bytes:
    body = json.dumps({"Detach": False, "Tty": False}).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: docker\r\nUser-Agent: cloudtask\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def _send(wire: Wire, data: bytes) -> None:
    """All of it, while the socket blocks."""
    view = memoryview(data)
    while view:
        view = view[wire.send(view) :]


def _answer(wire: Wire) -> tuple[int, bytes]:
    """The status, and what came after the head.  Raises ValueError, OSError."""
    seen = b""
    while b"\r\n\r\n" not in seen:
        data = wire.recv(_CHUNK)
        if not data or len(seen) > _LONGEST_HEAD:
            raise ValueError("not an answer of HTTP")
        seen += data
    head, _, rest = seen.partition(b"\r\n\r\n")
    first, *fields = head.split(b"\r\n")
    if not (match := _STATUS_LINE.match(first)):
        raise ValueError("not an answer of HTTP")
    status = int(match[1])
    return status, rest if status in _SWITCHED else rest + _rest_of_body(wire, fields, len(rest))


def _rest_of_body(wire: Wire, fields: list[bytes], present: int) -> bytes:
    lengths = [int(value) for name, _, value in (field.partition(b":") for field in fields) if name.lower() == b"content-length"]
    missing, body = min(lengths[0], _LONGEST_HEAD) - present if lengths else 0, b""
    while len(body) < missing and (data := wire.recv(_CHUNK)):
        body += data
    return body


def _message(body: bytes) -> str:
    """What the engine says about an error: ``{"message": "..."}``."""
    try:
        return plain(str(json.loads(body)["message"]))
    except (ValueError, LookupError, TypeError):
        return plain(body.decode("utf-8", "replace")) or "the engine refuses"
