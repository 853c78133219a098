"""The two queues between a supervisor's loop and the thread that stands in for the agent; a pipe wakes whoever waits."""

from __future__ import annotations

import contextlib
import os
import threading
from collections import deque
from typing import Any

Frame = tuple[dict[str, Any], bytes]
"""A header, whose key ``t`` names the type, and a payload."""

_CONGESTED = 4 << 20


class FrameQueue:
    """Frames from one thread to another.  `fileno` is readable while `take` has something to give or to raise."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._room = threading.Condition(self._lock)
        self._frames: deque[Frame] = deque()
        self._bytes = 0
        self._end: str | None = None
        self._closed = False
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(self._writer, False)

    def fileno(self) -> int:
        """The descriptor to wait on."""
        return self._reader

    def put(self, header: dict[str, Any], payload: bytes = b"") -> None:
        """Queue a frame.  Never blocks."""
        with self._lock:
            if self._end is None and not self._closed:
                self._frames.append((header, payload))
                self._bytes += len(payload)
                self._wake()

    def end(self, why: str) -> None:
        """Nothing follows what is queued."""
        with self._lock:
            if self._end is None:
                self._end = why
            self._wake()

    def take(self) -> list[Frame]:
        """All frames that are queued.  Raises EOFError when there are none and none will come."""
        with self._lock:
            frames, self._bytes = list(self._frames), 0
            self._frames.clear()
            if not frames and self._end is not None:
                raise EOFError(self._end)
            if self._end is None and not self._closed:
                with contextlib.suppress(BlockingIOError):
                    while os.read(self._reader, 4096):
                        pass
            self._room.notify_all()
            return frames

    @property
    def congested(self) -> bool:
        """More is queued than should be."""
        return self._bytes > _CONGESTED

    def wait_for_room(self, seconds: float) -> None:
        """Block while congested, at most so long."""
        with self._room:
            self._room.wait_for(lambda: not self.congested or self._closed, seconds)

    def close(self) -> None:
        """Give the descriptors back.  Idempotent; nothing is queued any more."""
        with self._lock:
            if not self._closed:
                self._closed = True
                os.close(self._reader)
                os.close(self._writer)
                self._room.notify_all()

    def _wake(self) -> None:
        if not self._closed:
            with contextlib.suppress(BlockingIOError):
                os.write(self._writer, b".")
