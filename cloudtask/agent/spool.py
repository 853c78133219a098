"""The output of attempts on the worker's disk, from the first byte until the controller has it.

While an attempt runs, stdout and stderr each go to a fresh file ``<job>.<attempt>.<1|2>`` opened with O_APPEND.  When it has ended, a
stream of at most `SMALL` bytes moves into a *segment*, a file shared by many attempts, so that short jobs leave no files behind;
a longer one stays where it is.  The *place* of an ended stream, as the journal has it, is ``null`` where the stream is empty, ``0`` for
the file of its own, or ``[segment, offset]``.  Acknowledged files and segments are removed.
"""

import os
import zlib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

SMALL = 16 * 1024
"""Bytes up to which an ended stream moves into a segment."""
CHUNK = 64 * 1024
"""Bytes of one `out` frame."""
_SEGMENT = 4 << 20
_STEP = 1 << 20
_REMEMBERED = 8 << 20
_CREATE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC


class Stream:
    """stdout or stderr of one attempt.

    ``length`` is the size when last looked at, and final once the attempt has ended; ``sent`` is how much of it the current
    connection has; ``crc`` covers the first ``summed`` bytes; ``cut``: it was longer than it may be.
    """

    __slots__ = ("crc", "cut", "data", "fd", "length", "name", "place", "sent", "summed")

    def __init__(self, name: str, fd: int) -> None:
        self.name = name
        self.fd = fd
        self.length = self.summed = self.crc = self.sent = 0
        self.cut = False
        self.place: "Any" = None
        self.data: "bytes | None" = b""

    @property
    def unsent(self) -> int:
        """Bytes that are there and that the connection has not."""
        return self.length - self.sent


class Segments:
    """Files that hold the small outputs of many ended attempts; each goes when none of its outputs is needed any more."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._numbers: "dict[int, int]" = {}
        taken = [int(name[1:]) for name in os.listdir(directory) if name[0] == "s" and name[1:].isdigit()]
        self._current = max(taken) + 1 if taken else 1
        self._fd = -1
        self._written = 0
        self._pending = bytearray()

    def path(self, number: int) -> str:
        """The file of a segment."""
        return os.path.join(self._directory, "s%d" % number)

    def add(self, data: bytes) -> "list[int]":
        """Queue a stream's bytes; returns their place.  They are on disk after `flush`."""
        place = [self._current, self._written + len(self._pending)]
        self._pending += data
        self.hold(self._current)
        return place

    def flush(self) -> None:
        """Write what is queued.  Raises OSError; then the rest stays queued and can be read."""
        if not self._pending:
            return
        if self._fd < 0:
            self._fd = os.open(self.path(self._current), _CREATE, 0o600)
        while self._pending:
            written = os.write(self._fd, self._pending)
            self._written += written
            del self._pending[:written]
        if self._written >= _SEGMENT:
            self._roll()

    def _roll(self) -> None:
        os.close(self._fd)
        old, self._fd, self._written = self._current, -1, 0
        self._current += 1
        if not self._numbers.get(old):
            self._drop(old)

    def _drop(self, number: int) -> None:
        self._numbers.pop(number, None)
        remove(self.path(number))

    def read(self, number: int, offset: int, size: int) -> bytes:
        """Bytes of a segment, also those that are only queued."""
        if number == self._current and offset >= self._written:
            start = offset - self._written
            return bytes(self._pending[start : start + size])
        return read_file(self.path(number), offset, size)

    def hold(self, number: int) -> None:
        """One more stream needs this segment."""
        self._numbers[number] = self._numbers.get(number, 0) + 1

    def release(self, number: int) -> None:
        """One stream less needs it."""
        self._numbers[number] = self._numbers.get(number, 0) - 1
        if self._numbers[number] > 0:
            return
        if number != self._current:
            self._drop(number)
        elif self._written >= _SEGMENT // 4 and not self._pending:
            self._roll()


class Spool:
    """All output of one home, below ``directory``."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self.segments = Segments(directory)
        self._remembered = 0

    def create(self, job: int, number: int) -> "tuple[Stream, Stream]":
        """Two fresh files for an attempt that is about to run.  Raises OSError."""
        base = "%s/%d.%d." % (self._directory, job, number)
        out = Stream(base + "1", os.open(base + "1", _CREATE, 0o600))
        try:
            return out, Stream(base + "2", os.open(base + "2", _CREATE, 0o600))
        except OSError:
            self.discard(out)
            raise

    def restore(self, name: str, length: int, crc: int, place: "Any") -> Stream:
        """The stream of an attempt that ended under an earlier agent."""
        stream = Stream(os.path.join(self._directory, name), -1)
        stream.length = stream.summed = length
        stream.crc, stream.place = crc, place
        if length:
            stream.data = None
        if isinstance(place, list):
            self.segments.hold(place[0])
        return stream

    def look(self, stream: Stream, limit: int) -> None:
        """See how much a running attempt has written; what is over ``limit`` bytes is cut off, so that no disk fills."""
        size = os.fstat(stream.fd).st_size
        if size > limit:
            stream.cut = True
            size = limit
            os.ftruncate(stream.fd, limit)
        stream.length = size

    def settle(self, stream: Stream, limit: int) -> bool:
        """Nobody of the attempt writes any more.  True when length and checksum are final, else call `sum_further` until it says so."""
        data = os.pread(stream.fd, SMALL + 1, 0)
        if len(data) > SMALL:
            self.look(stream, limit)
            if stream.length > SMALL:
                stream.place, stream.data = 0, None
                return False
            data = data[: stream.length]
        elif len(data) > limit:
            stream.cut, data = True, data[:limit]
        self.discard(stream)
        stream.length = stream.summed = len(data)
        stream.crc = zlib.crc32(data)
        if data:
            stream.place = self.segments.add(data)
            self._remembered += len(data)
            stream.data = data
            if self._remembered > _REMEMBERED:
                self.forget(stream)
        return True

    def sum_further(self, stream: Stream) -> bool:
        """Take another piece of a long stream into the checksum; True when it is complete."""
        if stream.summed < stream.length:
            piece = self.read(stream, stream.summed, min(_STEP, stream.length - stream.summed))
            self.sum_sent(stream, piece)
        if stream.summed < stream.length:
            return False
        if stream.fd >= 0:
            os.close(stream.fd)
            stream.fd = -1
        return True

    def sum_sent(self, stream: Stream, piece: bytes) -> None:
        """``piece`` was read at ``summed`` for another reason: take it into the checksum now."""
        stream.crc = zlib.crc32(piece, stream.crc)
        stream.summed += len(piece)

    def read(self, stream: Stream, position: int, size: int) -> bytes:
        """Exactly ``size`` bytes; zeros where the disk has lost them, which the checksum will show."""
        if stream.data:
            return stream.data[position : position + size]
        if stream.fd >= 0:
            data = os.pread(stream.fd, size, position)
        elif isinstance(stream.place, list):
            data = self.segments.read(stream.place[0], stream.place[1] + position, size)
        else:
            data = read_file(stream.name, position, size)
        return data.ljust(size, b"\0")

    def forget(self, stream: Stream) -> None:
        """The bytes of a small stream need not be in memory any more."""
        if stream.data and stream.place is not None:
            self._remembered -= len(stream.data)
            stream.data = None

    def whole(self, stream: Stream) -> bool:
        """True when the bytes on disk still have the recorded length and checksum.  Reads all of them."""
        crc = position = 0
        while position < stream.length:
            piece = self.read(stream, position, min(_STEP, stream.length - position))
            crc = zlib.crc32(piece, crc)
            position += len(piece)
        return crc == stream.crc

    def there(self, stream: Stream) -> bool:
        """True when the file is long enough to hold the stream."""
        if stream.place is None:
            return stream.length == 0
        name, offset = (stream.name, 0) if stream.place == 0 else (self.segments.path(stream.place[0]), stream.place[1])
        try:
            return os.path.getsize(name) >= offset + stream.length
        except OSError:
            return False

    def discard(self, stream: Stream) -> None:
        """Close and remove a stream's own file."""
        if stream.fd >= 0:
            os.close(stream.fd)
            stream.fd = -1
        remove(stream.name)

    def drop(self, stream: Stream) -> None:
        """The controller has it."""
        self.forget(stream)
        if isinstance(stream.place, list):
            self.segments.release(stream.place[0])
        elif stream.place == 0:
            self.discard(stream)
        stream.place, stream.data, stream.length = None, b"", 0

    def tidy(self, needed: "set[str]") -> None:
        """Remove the files of attempts that the last agent did not see end.  ``needed``: names that stay."""
        for name in os.listdir(self._directory):
            if name not in needed:
                remove(os.path.join(self._directory, name))


def remove(path: str) -> None:
    """Remove a file if it is there."""
    try:
        os.unlink(path)
    except OSError:
        pass


def read_file(path: str, offset: int, size: int) -> bytes:
    """Bytes of a file; fewer, or none, where there are not so many."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.pread(fd, size, offset)
    except OSError:
        return b""
    finally:
        os.close(fd)
