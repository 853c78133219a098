"""What a run says, on stderr: plain status lines, or on a terminal a progress bar with failures and warnings above it.

A thread of its own writes, so that a stderr that nobody reads never holds the run up; only the end waits for it.  The jobs' output is
written by whoever brings it (the relay's thread).  Both share one lock, so that no line breaks into another.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Mapping
from typing import NamedTuple

from cloudtask.cli.bar import Bar
from cloudtask.cli.streams import harmless, is_terminal, write_all
from cloudtask.front import Front
from cloudtask.printable import sanitize

STDOUT, STDERR = 1, 2
_MOST_WAITING = 20_000
_REDRAW_SECONDS = 0.2
_BATCH_SECONDS = 0.02
_LEAVING_SECONDS = 0.5
_CLEAR = b"\r\x1b[2K"


class Look(NamedTuple):
    """How a run is shown: ``bar`` on a terminal that can draw one, ``every_line`` of status or only the important ones."""

    bar: bool
    every_line: bool


def choose_look(quiet: bool, terminal: bool, environ: Mapping[str, str]) -> Look:
    """The look for this stderr."""
    if quiet:
        return Look(bar=False, every_line=False)
    draws = terminal and environ.get("TERM", "dumb") not in ("", "dumb")
    return Look(bar=draws, every_line=not draws)


def open_front(quiet: bool, environ: Mapping[str, str]) -> Front:
    """The front for this process's own streams."""
    return StreamFront(choose_look(quiet, is_terminal(STDERR), environ))


class StreamFront:
    """A :class:`~cloudtask.front.Front` on two descriptors."""

    def __init__(self, look: Look, out: int = STDOUT, err: int = STDERR) -> None:
        self._look = look
        self._out = _Stream(out)
        self._err = _Stream(err)
        self._lines: deque[str] = deque()
        self._dropped = 0
        self._figures: tuple[int, int, int, int] | None = None
        self._closing = False
        self._changed = threading.Condition()
        self._screen = threading.Lock()
        self._drawn = False
        self._writer = threading.Thread(target=self._write, name="stderr", daemon=True)
        self._writer.start()

    # --- called by the run -------------------------------------------------------------------------------------------

    def say(self, line: str, *, important: bool = False) -> None:
        """See :class:`~cloudtask.front.Front`."""
        if not (important or self._look.every_line):
            return
        with self._changed:
            if important or len(self._lines) < _MOST_WAITING:
                self._lines.append(line)
            else:
                self._dropped += 1
            if len(self._lines) == 1:
                self._changed.notify()

    def progress(self, done: int, failed: int, running: int, total: int) -> None:
        """See :class:`~cloudtask.front.Front`."""
        if self._look.bar:
            with self._changed:
                self._figures = (done, failed, running, total)

    def job_output(self, data: bytes) -> None:
        """See :class:`~cloudtask.front.Front`."""
        # A stdout that is no terminal has no part in the screen: while nobody reads it, stderr goes on.
        with self._screen if self._out.is_terminal else contextlib.nullcontext():
            self._clear_bar(self._out.is_terminal)
            self._out.write(data)

    def job_error_output(self, data: bytes) -> None:
        """See :class:`~cloudtask.front.Front`."""
        with self._screen:
            self._clear_bar(True)
            self._err.try_write(data)

    def close(self, *, wait: bool = True) -> None:
        """See :class:`~cloudtask.front.Front`."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._writer.join(None if wait else _LEAVING_SECONDS)

    # --- the thread --------------------------------------------------------------------------------------------------

    def _write(self) -> None:
        bar = Bar(self._err.descriptor) if self._look.bar else None
        closing = False
        while not closing:
            lines, closing = self._next(_REDRAW_SECONDS if bar else None)
            picture = bar.draw(self._figures) if bar and self._figures and not closing else b""
            with self._screen:
                self._show("".join(f"{sanitize(line)}\n" for line in lines).encode(), picture)

    def _next(self, wait: float | None) -> tuple[list[str], bool]:
        with self._changed:
            # Lines come by the thousand: to take them in batches costs a run far less than to wake up for each.
            self._changed.wait_for(lambda: self._closing, _BATCH_SECONDS)
            self._changed.wait_for(lambda: self._lines or self._closing, wait)
            lines = list(self._lines)
            self._lines.clear()
            if self._dropped:
                lines.append(f"# {self._dropped} status lines are not shown, as nobody read them in time; the session's log has them")
                self._dropped = 0
            return lines, self._closing

    def _show(self, text: bytes, picture: bytes) -> None:
        """Lines and bar in one write, so that nothing flickers."""
        if self._drawn:
            text = _CLEAR + text
        elif picture or (text and self._look.bar):
            text = self._err.fresh_line(self._out) + text
        self._drawn = bool(picture)
        if text or picture:
            self._err.write_raw(text + picture)

    def _clear_bar(self, in_the_way: bool) -> None:
        if self._drawn and in_the_way:
            self._err.write_raw(_CLEAR)
            self._drawn = False


class _Stream:
    """A descriptor that jobs' output goes to.  On a terminal the output is harmless, and no character is cut in two."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.is_terminal = is_terminal(descriptor)
        self._rest = b""
        self._mid_line = False
        self._broken = False

    def write(self, data: bytes) -> None:
        """Raises OSError."""
        if self.is_terminal:
            data, self._rest = _cut(self._rest + data)
            data = harmless(data)
        if data:
            write_all(self.descriptor, data)
            self._mid_line = not data.endswith(b"\n")

    def try_write(self, data: bytes) -> None:
        """Nothing happens where nobody reads any more."""
        if not self._broken:
            try:
                self.write(data)
            except OSError:
                self._broken = True

    def write_raw(self, data: bytes) -> None:
        """Our own text: as it stands, and never an error."""
        if not self._broken:
            try:
                write_all(self.descriptor, data)
            except OSError:
                self._broken = True

    def fresh_line(self, other: _Stream) -> bytes:
        """What it takes to stand at the beginning of a line on a terminal that ``other`` writes to as well."""
        if not (self._mid_line or (other.is_terminal and other._mid_line)):
            return b""
        self._mid_line = other._mid_line = False
        return b"\n"


def _cut(data: bytes) -> tuple[bytes, bytes]:
    """Whole characters, and the bytes of one that is still incomplete (RFC 3629: at most three)."""
    for back in range(1, min(3, len(data)) + 1):
        byte = data[-back]
        if byte >= 0xC0:
            length = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return (data[:-back], data[-back:]) if back < length else (data, b"")
        if byte < 0x80:
            break
    return data, b""
