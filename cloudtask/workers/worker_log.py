"""The logs of one worker, as a person follows them with ``tail -f``.

``<n>.log`` holds the worker's own story and, where it has one slot, its jobs; with several slots each has ``<n>.<slot>.log``.
Status lines begin with ``# ``; between them stands each job's output as it came, byte for byte.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

from cloudtask.errors import StorageError
from cloudtask.model import Span
from cloudtask.session.layout import index_name, worker_log_name

Segment = tuple[int, int, int]
"""``(stream, offset, length)``: a piece of output in a log; stream 1 is standard output, 2 standard error."""


class _LogFile:
    """An append-only file that knows its size, written in batches."""

    def __init__(self, path: Path) -> None:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        self._path = path
        with _storage(path):
            self._descriptor = os.open(path, flags, 0o600)
        self.end = os.fstat(self._descriptor).st_size
        self._pending: list[bytes] = []
        self._at_line_start = True
        self._dirty = False

    def append(self, data: bytes) -> int:
        """Queue data; returns the offset at which it will stand."""
        offset = self.end
        self._pending.append(data)
        self.end += len(data)
        self._at_line_start = data.endswith(b"\n")
        return offset

    def append_line(self, line: bytes) -> None:
        """Queue a line on a line of its own."""
        self.append(line if self._at_line_start else b"\n" + line)

    def flush(self) -> None:
        if not self._pending:
            return
        data = memoryview(b"".join(self._pending))
        self._pending.clear()
        self._dirty = True
        with _storage(self._path):
            while data:
                data = data[os.write(self._descriptor, data) :]

    def sync(self) -> None:
        self.flush()
        if self._dirty:
            with _storage(self._path):
                os.fdatasync(self._descriptor)
            self._dirty = False


@contextlib.contextmanager
def _storage(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error.strerror or error}; make room, then --resume") from error


class WorkerLog:
    """All log files of one worker.  What is appended reaches the disk with :meth:`flush`, and for good with :meth:`sync`.

    A full disk raises StorageError.
    """

    def __init__(self, directory: str, worker: int, host: str) -> None:
        """``directory`` is the session's."""
        self._directory = Path(directory)
        self._worker = worker
        self._host = host.encode("utf-8", "surrogateescape")
        self._files: dict[str, _LogFile] = {}
        self._second = 0
        self._stamp = b""
        self.slots = 1

    def status(self, slot: int, text: str) -> None:
        """A ``# time [host] text`` line."""
        line = b"# %b [%b] %b\n" % (self._now(), self._host, text.encode("utf-8", "backslashreplace"))
        self._open(self.name_of(slot)).append_line(line)

    def output(self, slot: int, data: bytes) -> tuple[str, int]:
        """Append a job's output; returns the file and the offset."""
        name = self.name_of(slot)
        return name, self._open(name).append(data)

    def name_of(self, slot: int) -> str:
        """The file that a slot's jobs are logged in, as in `Span.file`; slot 0 is the worker itself."""
        return worker_log_name(self._worker, slot if slot and self.slots > 1 else None)

    def span(self, file: str, segments: list[Segment], key: tuple[int, int]) -> Span:
        """One :class:`Span` for all of an attempt's segments; scattered ones are listed in the ``.index`` file."""
        out = sum(length for stream, _, length in segments if stream == 1)
        err = sum(length for stream, _, length in segments if stream == 2)
        if not segments:
            return Span(file, 0, 0, 0)
        start = segments[0][1]
        if _contiguous(segments):
            return Span(file, start, out, err)
        entry = {"job": key[0], "attempt": key[1], "segments": segments}
        index = self._open(index_name(file)).append(json.dumps(entry, separators=(",", ":")).encode() + b"\n")
        return Span(file, start, out, err, index)

    def flush(self) -> None:
        """Write what was appended."""
        for file in self._files.values():
            file.flush()

    def sync(self) -> None:
        """Write it and wait until it is on disk."""
        for file in self._files.values():
            file.sync()

    def _open(self, name: str) -> _LogFile:
        file = self._files.get(name)
        if file is None:
            file = self._files[name] = _LogFile(self._directory / name)
        return file

    def _now(self) -> bytes:
        second = int(time.time())
        if second != self._second:
            self._second = second
            self._stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(second)).encode()
        return self._stamp


def _contiguous(segments: list[Segment]) -> bool:
    """True for one piece of output followed at once by one of errors (either may be missing)."""
    if len(segments) == 1:
        return True
    first, second = segments[0], segments[1]
    return len(segments) == 2 and first[0] == 1 and second[0] == 2 and first[1] + first[2] == second[1]


def add_segment(segments: list[Segment], stream: int, offset: int, length: int) -> None:
    """Append a piece, joined to the last one where it follows it."""
    if not length:
        return
    if segments:
        last_stream, last_offset, last_length = segments[-1]
        if last_stream == stream and last_offset + last_length == offset:
            segments[-1] = (stream, last_offset, last_length + length)
            return
    segments.append((stream, offset, length))
