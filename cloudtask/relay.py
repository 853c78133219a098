"""From the worker logs to standard output: the only thread that touches it.

A reader that does not read delays the end of the run, nothing else: what waits here are offsets, the bytes stand in the
worker logs.  ``group`` writes each settled job's output whole and once, ``line`` each attempt's lines as they come.
"""

from __future__ import annotations

import errno
import heapq
import json
import os
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from cloudtask.front import Front
from cloudtask.model import Span
from cloudtask.session.layout import index_name

_PIECE = 1 << 20
_BLOCK = 1 << 16
_LONGEST_LINE = 1 << 20


@dataclass(frozen=True, kw_only=True)
class RelayRules:
    """``directory`` is the session's; ``tag`` gives what stands before each line of a job, None for no tags."""

    directory: Path
    by_line: bool
    keep_order: bool
    tag: Callable[[int], bytes] | None


class _Whole(NamedTuple):
    job: int
    span: Span | None


class _Piece(NamedTuple):
    job: int
    attempt: int
    stream: int
    position: int
    file: str
    offset: int
    length: int


class _End(NamedTuple):
    job: int
    attempt: int
    settled: bool


class Relay(threading.Thread):
    """The writer thread.  The main process hands it places; it hands back the jobs that were written, and wakes the loop."""

    def __init__(self, rules: RelayRules, front: Front, wake: Callable[[], None], already: Callable[[int], bool]) -> None:
        super().__init__(name="relay", daemon=True)
        self._rules = rules
        self._front = front
        self._wake = wake
        self._already = already
        self._items: deque[_Whole | _Piece | _End | None] = deque()
        self._arrived = threading.Condition()
        self._relayed: list[int] = []
        self._reader = _LogReader(rules.directory)
        self._lines = _Lines(self._write)
        self._turn = 1
        self._early: list[tuple[int, Span | None]] = []
        self.failure: OSError | None = None
        """Why it stopped writing."""

    @property
    def broken(self) -> bool:
        """Nobody reads any more: the pipe is closed (EPIPE) or the terminal is gone (EIO)."""
        return self.failure is not None and self.failure.errno in (errno.EPIPE, errno.EIO, None)

    # --- called by the main process ----------------------------------------------------------------------------------

    def whole(self, *jobs: tuple[int, Span | None]) -> None:
        """These jobs are settled, and this is their output (None: they have none)."""
        self._put(*(_Whole(job, span) for job, span in jobs))

    def piece(self, job: int, attempt: int, place: tuple[int, int, str, int, int]) -> None:
        """A running attempt has written: ``(stream, position, file, offset, length)``."""
        self._put(_Piece(job, attempt, *place))

    def end(self, job: int, attempt: int, settled: bool) -> None:
        """An attempt whose pieces were relayed is over."""
        self._put(_End(job, attempt, settled))

    def take_relayed(self) -> list[int]:
        """The jobs whose output has been written since the last call."""
        with self._arrived:
            relayed, self._relayed = self._relayed, []
        return relayed

    def finish(self) -> None:
        """No more comes; then ``join`` waits until all is written."""
        self._put(None)

    def _put(self, *items: _Whole | _Piece | _End | None) -> None:
        with self._arrived:
            self._items.extend(items)
            self._arrived.notify()

    # --- the thread --------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Write until :meth:`finish`, or until nothing can be written any more."""
        try:
            while (items := self._next()) is not None:
                for item in items:
                    self._handle(item)
        except OSError as error:
            self.failure = error
            self._wake()

    def _next(self) -> list[_Whole | _Piece | _End] | None:
        with self._arrived:
            while not self._items:
                self._arrived.wait()
            if self._items[0] is None:
                return None
            items: list[_Whole | _Piece | _End] = []
            while self._items and (item := self._items[0]) is not None:
                items.append(item)
                self._items.popleft()
        return items

    def _handle(self, item: _Whole | _Piece | _End) -> None:
        if isinstance(item, _Whole):
            if self._rules.keep_order:
                heapq.heappush(self._early, (item.job, item.span))
                self._write_in_order()
            else:
                self._write_whole(item.job, item.span)
        elif isinstance(item, _Piece):
            self._lines.add(item, self._reader)
        else:
            self._lines.end(item.job, item.attempt)
            if item.settled:
                self._done(item.job)

    def _write_in_order(self) -> None:
        while True:
            while self._already(self._turn):
                self._turn += 1
            if not self._early or self._early[0][0] != self._turn:
                return
            job, span = heapq.heappop(self._early)
            self._write_whole(job, span)
            self._turn += 1

    def _write_whole(self, job: int, span: Span | None) -> None:
        if span and (span.out or span.err):
            for stream, offset, length in self._segments(span):
                end = offset + length
                while offset < end:
                    data = self._reader.read(span.file, offset, min(_PIECE, end - offset))
                    if not data:
                        break
                    offset += len(data)
                    (self._lines.write_raw if self._rules.tag else self._write)(job, stream, data)
            if self._rules.tag:
                self._lines.end(job, 0)
        self._done(job)

    def _segments(self, span: Span) -> list[tuple[int, int, int]]:
        if span.listing < 0:
            return [(1, span.offset, span.out), (2, span.offset + span.out, span.err)]
        return self._reader.index(span)

    def _write(self, job: int, stream: int, data: bytes) -> None:
        if self._rules.tag:
            tag = self._rules.tag(job) + b"\t"
            # Whole lines only come here; bytes.splitlines would cut at a carriage return as well.
            data = tag + data[:-1].replace(b"\n", b"\n" + tag) + b"\n"
        (self._front.job_output if stream == 1 else self._front.job_error_output)(data)

    def _done(self, job: int) -> None:
        with self._arrived:
            self._relayed.append(job)


class _Lines:
    """Cuts pieces of output into whole lines; what is left of a line waits for the rest."""

    def __init__(self, write: Callable[[int, int, bytes], None]) -> None:
        self._write = write
        self._rests: dict[tuple[int, int, int], bytes] = {}
        self._positions: dict[tuple[int, int, int], int] = {}

    def add(self, piece: _Piece, reader: _LogReader) -> None:
        key = (piece.job, piece.attempt, piece.stream)
        # After a supervisor was replaced the agent sends an attempt's output again from the beginning.
        skip = max(0, self._positions.get(key, 0) - piece.position)
        offset, end = piece.offset + skip, piece.offset + piece.length
        while offset < end and (data := reader.read(piece.file, offset, min(_PIECE, end - offset))):
            offset += len(data)
            self._take(key, data)
        self._positions[key] = max(self._positions.get(key, 0), piece.position + piece.length)

    def write_raw(self, job: int, stream: int, data: bytes) -> None:
        self._take((job, 0, stream), data)

    def _take(self, key: tuple[int, int, int], data: bytes) -> None:
        data = self._rests.pop(key, b"") + data
        cut = data.rfind(b"\n") + 1
        if len(data) - cut > _LONGEST_LINE:
            cut = len(data)
        if cut:
            self._write(key[0], key[2], data[:cut])
        if cut < len(data):
            self._rests[key] = data[cut:]

    def end(self, job: int, attempt: int) -> None:
        for stream in (1, 2):
            rest = self._rests.pop((job, attempt, stream), b"")
            self._positions.pop((job, attempt, stream), None)
            if rest:
                self._write(job, stream, rest + b"\n")


class _LogReader:
    """Reads worker logs by offset; small neighbouring spans come out of one read."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._descriptors: dict[str, int] = {}
        self._block = ("", 0, b"")

    def read(self, file: str, offset: int, length: int) -> bytes:
        name, start, block = self._block
        if name == file and start <= offset and offset + length <= start + len(block):
            return block[offset - start : offset - start + length]
        data = os.pread(self._open(file), max(length, _BLOCK), offset)
        if length < _BLOCK:
            self._block = (file, offset, data)
        return data[:length]

    def index(self, span: Span) -> list[tuple[int, int, int]]:
        line = bytearray()
        offset = span.listing
        while not line.endswith(b"\n"):
            piece = os.pread(self._open(index_name(span.file)), _BLOCK, offset)
            if not piece:
                return []
            cut = piece.find(b"\n") + 1 or len(piece)
            line += piece[:cut]
            offset += cut
        return [(int(stream), int(start), int(length)) for stream, start, length in json.loads(line)["segments"]]

    def _open(self, file: str) -> int:
        descriptor = self._descriptors.get(file)
        if descriptor is None:
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = self._descriptors[file] = os.open(self._directory / file, flags)
        return descriptor
