"""Notes on machines in the journals of their sessions, for who destroys them by hand: where nobody else writes those."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable
from typing import Self

from cloudtask.errors import CloudtaskError
from cloudtask.session import records
from cloudtask.session.lock import WATCHDOG
from cloudtask.session.session import Session


class Notes:
    """Holds the sessions that it writes to, until it is closed."""

    def __init__(self) -> None:
        self._sessions: dict[str, Session] = {}
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def take(self, root: str) -> bool:
        """Hold the session in the directory ``root``; False where somebody else does, or it cannot be read."""
        if root in self._sessions:
            return True
        try:
            session = Session.open(os.path.dirname(root), os.path.basename(root), note=WATCHDOG)
        except CloudtaskError:
            return False
        self._sessions[root] = self._stack.enter_context(session)
        return True

    def launched(self, root: str, id: str) -> float:
        """When a machine was launched, in seconds since 1970; 0 where that is not known."""
        session = self._sessions.get(root)
        found = session.state.bookings.instances.get(id) if session else None
        return found.launched if found else 0.0

    def destroying(self, root: str, ids: Iterable[str], why: str) -> None:
        """Machines are about to be destroyed.  Raises StorageError."""
        if session := self._sessions.get(root):
            known = [id for id in ids if id in session.state.bookings.instances]
            if known:
                session.append(records.destroying(known, why, time.time()))
                session.log(f"# destroying {' '.join(known)}: {why}")
                session.sync()

    def destroyed(self, root: str, id: str) -> None:
        """The provider says that it is gone.  Raises StorageError."""
        session = self._sessions.get(root)
        if session and id in session.state.bookings.instances:
            session.append(records.destroyed([id], time.time()))
            session.log(f"destroyed worker {id}")
