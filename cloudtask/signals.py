"""Signals as notes: a handler only writes down which one came, and wakes the loop."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator

STOP = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Signals:
    """The signals that came and were not taken yet."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._noted: list[int] = []

    def __bool__(self) -> bool:
        return bool(self._noted)

    def take(self) -> list[int]:
        """Those that came since the last time."""
        noted, self._noted = self._noted, []
        return noted

    @contextlib.contextmanager
    def caught(self) -> Iterator[None]:
        """While this lasts they are noted; those that were ignored at the start (nohup) stay ignored."""
        before = {}
        for number in (*STOP, signal.SIGUSR1):
            if signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, self._note)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: object) -> None:
        self._noted.append(number)
        self._wake()
