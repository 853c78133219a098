"""The standard streams: read whole, written whole, in bytes.  Any of them may be closed, or be nobody's any more."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import select
import signal

from cloudtask.errors import CloudtaskError, InputError
from cloudtask.printable import sanitize

_PIECE = 1 << 20
STDOUT_CLOSED = 128 + signal.SIGPIPE
_TAME = re.compile(rb"[\t\n\x20-\x7e]*").fullmatch


class StdoutClosedError(Exception):
    """Nobody reads standard output any more.  Not a BrokenPipeError, which any pipe inside a run may raise."""


def is_terminal(descriptor: int) -> bool:
    """True for an open terminal."""
    try:
        return os.isatty(descriptor)
    except OSError:
        return False


def read_all(descriptor: int) -> bytes:
    """Everything up to its end; nothing where it is closed.  Raises InputError: half of the jobs would be worse than none."""
    pieces = []
    try:
        while piece := _read(descriptor):
            pieces.append(piece)
    except OSError as error:
        if error.errno != errno.EBADF:
            raise InputError(f"standard input cannot be read: {error.strerror}") from error
    return b"".join(pieces)


def _read(descriptor: int) -> bytes:
    while True:
        try:
            return os.read(descriptor, _PIECE)
        except BlockingIOError:
            select.select([descriptor], [], [])


def write_all(descriptor: int, data: bytes) -> None:
    """Write it whole, also where somebody made the descriptor non-blocking.  Raises OSError (``BrokenPipeError``: nobody reads)."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(descriptor, view) :]
        except BlockingIOError:
            select.select([], [descriptor], [])


def tell(text: str) -> None:
    """A line for people on stderr, if there is one; what the user or a file said in it is made harmless."""
    with contextlib.suppress(OSError):
        write_all(2, (sanitize(text) + "\n").encode())


def put(data: bytes) -> None:
    """Data on stdout, harmless where that is a terminal.  Raises StdoutClosedError where nobody reads, CloudtaskError for the rest."""
    try:
        write_all(1, harmless(data) if is_terminal(1) else data)
    except BrokenPipeError:
        raise StdoutClosedError from None
    except OSError as error:
        raise CloudtaskError(f"standard output cannot be written: {error.strerror}") from error


def harmless(data: bytes) -> bytes:
    """Text of many lines for a terminal: line ends stay, everything that a terminal would obey becomes visible."""
    return data if _TAME(data) else b"\n".join(sanitize(line).encode() for line in data.split(b"\n"))
