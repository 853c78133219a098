"""What ended and may not be on disk yet: agents forget an attempt only when it is."""

from __future__ import annotations

from cloudtask.model import Attempt, Result

_MANY_BYTES = 64 << 20


class Undurable:
    """Attempts whose ends were journalled since the last sync, by worker, and how much output they had."""

    def __init__(self) -> None:
        self._attempts: dict[int, list[Attempt]] = {}
        self._bytes = 0

    def __bool__(self) -> bool:
        return bool(self._attempts)

    def add(self, worker: int, attempt: Attempt, result: Result) -> None:
        """Once this is on disk the agent may forget it."""
        self._attempts.setdefault(worker, []).append(attempt)
        if result.span:
            self._bytes += result.span.out + result.span.err

    def take(self, worker: int) -> list[Attempt]:
        """Those of one worker, which are on disk now."""
        return self._attempts.pop(worker, [])

    def take_all(self) -> dict[int, list[Attempt]]:
        """All of them."""
        attempts, self._attempts, self._bytes = self._attempts, {}, 0
        return attempts

    @property
    def much(self) -> bool:
        """So much output waits on the workers that it is time to sync."""
        return self._bytes > _MANY_BYTES
