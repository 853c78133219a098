"""What rsync runs in the place of ``ssh``: hands its remote command to the supervisor, which has the connection, and pumps bytes.

Run as ``python rsh.py SOCKET HOST COMMAND...``, for each overlay once.  Standard library only, and imports nothing of the package,
so that it starts in 20 ms.  Says the command's words (a count and then lengths, 4 bytes each, big-endian), then copies stdin to the
socket and the socket to stdout.  Its exit status is the command's, which the supervisor leaves in ``SOCKET.status`` before it closes:
rsync believes it more than its own eyes.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import sys
import threading
from collections.abc import Sequence

NUMBER = struct.Struct(">I")
STATUS_SUFFIX = ".status"
NO_CONTACT = 255
"""The exit status where the command's is not known, as ssh has it."""
_CHUNK = 1 << 16


def pack_words(words: Sequence[bytes]) -> bytes:
    """The words as they go over the socket."""
    return NUMBER.pack(len(words)) + b"".join(NUMBER.pack(len(word)) + word for word in words)


def read_words(stream: socket.socket) -> list[bytes]:
    """The words from the socket.  Blocks; raises EOFError where the other end leaves before the last one."""
    return [_read(stream, _number(stream)) for _ in range(_number(stream))]


def _number(stream: socket.socket) -> int:
    return int(NUMBER.unpack(_read(stream, NUMBER.size))[0])


def _read(stream: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        piece = stream.recv(size - len(data))
        if not piece:
            raise EOFError
        data += piece
    return bytes(data)


def _send_stdin(stream: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := os.read(0, _CHUNK):
            stream.sendall(data)
        stream.shutdown(socket.SHUT_WR)


def _receive_to_stdout(stream: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := stream.recv(_CHUNK):
            view = memoryview(data)
            while view:
                view = view[os.write(1, view) :]


def main(arguments: Sequence[str]) -> None:
    """Connect, say the command, copy until the supervisor closes, and exit as the command did."""
    path, _host, *words = arguments
    stream = socket.socket(socket.AF_UNIX)
    stream.connect(path)
    stream.sendall(pack_words([os.fsencode(word) for word in words]))
    threading.Thread(target=_send_stdin, args=(stream,), daemon=True).start()
    _receive_to_stdout(stream)
    try:
        with open(path + STATUS_SUFFIX) as status:
            sys.exit(int(status.read()))
    except (FileNotFoundError, ValueError):
        sys.exit(NO_CONTACT)


if __name__ == "__main__":
    main(sys.argv[1:])
