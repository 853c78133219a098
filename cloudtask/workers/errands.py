"""What the agent is to be told whatever becomes of the connection: attempts to end, and results that it may forget.

A cut may swallow what was sent, so all that is not done with is sent again over the next connection.
"""

from __future__ import annotations

from collections.abc import Iterable

from cloudtask.model import Attempt
from cloudtask.workers.conversation import Conversation
from cloudtask.workers.ledger import Ledger
from cloudtask.workers.worker_log import WorkerLog


class Errands:
    """One worker's."""

    def __init__(self, ledger: Ledger, log: WorkerLog) -> None:
        self._ledger = ledger
        self._log = log
        self._acknowledgements: list[Attempt] = []
        self._cancelled: dict[Attempt, str] = {}

    def cancel(self, attempts: Iterable[Attempt], why: str, talk: Conversation | None) -> None:
        """End these."""
        self._cancelled.update(dict.fromkeys(attempts, why))
        self.send_cancels(talk)

    def acknowledge(self, attempts: Iterable[Attempt], talk: Conversation | None) -> None:
        """The journal has these on disk: the agent may forget them once the worker log is on disk too."""
        self._acknowledgements.extend(attempts)
        self.send_acknowledgements(talk)

    def send_cancels(self, talk: Conversation | None) -> None:
        """For every attempt that the worker still has; for every connection anew."""
        if talk and talk.welcomed:
            self._cancelled = {attempt: why for attempt, why in self._cancelled.items() if self._ledger.find(attempt)}
            for attempt, why in self._cancelled.items():
                talk.kill([attempt], why)

    def send_acknowledgements(self, talk: Conversation | None) -> None:
        """Once each: an agent that did not hear it delivers its result again."""
        if self._acknowledgements and talk and talk.welcomed:
            self._log.sync()
            talk.acknowledge(self._acknowledgements)
            self._acknowledgements = []
