"""What one turn of the main loop does, collected and then done in the one right order.

First the journal, then what the records announce (messages to supervisors), then what people see.  So nothing is sent and
nothing is shown that the journal does not know.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence


class Turn:
    """Collects records, messages, status lines and what is to happen after them."""

    def __init__(
        self,
        append: Callable[[bytes], None],
        sync: Callable[[], None],
        post: Callable[[int, Sequence[object]], None],
        say: Callable[[list[tuple[str, bool]]], None],
    ) -> None:
        self._append = append
        self._sync = sync
        self._post = post
        self._say = say
        self._records: list[bytes] = []
        self._messages: dict[int, list[object]] = {}
        self._lines: list[tuple[str, bool]] = []
        self._afterwards: list[Callable[[], None]] = []
        self._must_sync = False

    def record(self, record: bytes, sync: bool = False) -> None:
        """A line for the journal; ``sync``: it must be on disk before anything it announces is done."""
        self._records.append(record)
        self._must_sync = self._must_sync or sync

    def post(self, worker: int, message: object) -> None:
        """A message for a worker's supervisor."""
        self._messages.setdefault(worker, []).append(message)

    def say(self, line: str, important: bool = False) -> None:
        """A status line for the log and the user; important ones are shown on a terminal too."""
        self._lines.append((line, important))

    def afterwards(self, act: Callable[[], None]) -> None:
        """Something to do when all else is done."""
        self._afterwards.append(act)

    def commit(self) -> None:
        """Do it all.  Raises StorageError where the journal cannot be written; then nothing else was done."""
        if self._records:
            self._append(b"".join(self._records))
            self._records.clear()
        if self._must_sync:
            self._sync()
            self._must_sync = False
        messages, self._messages = self._messages, {}
        for worker, items in messages.items():
            self._post(worker, items)
        if self._lines:
            lines, self._lines = self._lines, []
            self._say(lines)
        acts, self._afterwards = self._afterwards, []
        for act in acts:
            act()
