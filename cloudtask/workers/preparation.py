"""Making a worker ready for jobs: the machine's timer, where it has to be started; then the overlay and the pre-command, each once for as
long as the agent's home lives."""

from __future__ import annotations

import os
import time
from typing import NamedTuple

from cloudtask.model import Attempt, Result
from cloudtask.printable import describe_code
from cloudtask.workers import messages as m
from cloudtask.workers.contact import Background
from cloudtask.workers.conversation import Conversation
from cloudtask.workers.ledger import Ledger
from cloudtask.workers.machine_timer import hold_machine, start_timer
from cloudtask.workers.setup import apply_overlay
from cloudtask.workers.worker_log import WorkerLog

READY = "ready"
_FOR_EVER = 10 * 365 * 86400.0
OVERLAID = object()
"""What the background call returns when the overlay is in place."""


class Timed(NamedTuple):
    """What it returns for the timer: why there is none, or nothing."""

    problem: str


class Held(NamedTuple):
    """The same for holding the machine."""

    problem: str


class Preparation:
    """The steps, and which of them are done."""

    def __init__(self, spec: m.WorkerSpec, log: WorkerLog, ledger: Ledger, background: Background) -> None:
        self._spec = spec
        self._log = log
        self._ledger = ledger
        self._background = background
        self.timed = spec.timer is None or spec.ask_only
        """The machine's timer runs, or cannot be had.  A machine that was started again needs it again."""
        self.overlaid = spec.overlay is None
        self.done = False

    def go_on(self, talk: Conversation) -> str | None:
        """Begin the next step that is not done; ``ready`` when there is none."""
        if not self.timed:
            if not self._background.busy:
                self._start_timer(talk)
            return None
        if self.done or self._spec.ask_only:
            return READY
        if not self.overlaid:
            if not self._background.busy:
                self._start_overlay(talk)
            return None
        if self._spec.pre:
            self._start_pre(talk)
            return None
        return self._complete(talk)

    def _start_timer(self, talk: Conversation) -> None:
        connection, script = talk.connection, self._spec.timer or ""
        self._background.start(lambda: Timed(start_timer(connection, script)))

    def hold(self, talk: Conversation, seconds: int) -> None:
        """Hold the machine, though nobody uses it."""
        connection = talk.connection
        self._background.start(lambda: Held(hold_machine(connection, seconds)))

    def restarted(self) -> None:
        """The machine booted anew."""
        self.timed = self._spec.timer is None or self._spec.ask_only

    def _start_overlay(self, talk: Conversation) -> None:
        assert self._spec.overlay
        connection, overlay = talk.connection, self._spec.overlay
        deadline = time.monotonic() + (self._spec.setup_timeout or _FOR_EVER)

        def apply() -> object:
            apply_overlay(connection, overlay, self._log_output, deadline)
            return OVERLAID

        self._log.status(0, f"overlay {overlay}")
        self._background.start(apply)

    def _log_output(self, data: bytes) -> None:
        self._log.output(0, data)

    def _start_pre(self, talk: Conversation) -> None:
        assert self._spec.pre
        if any(attempt.job == m.PRE_JOB for attempt in self._ledger.attempts()):
            return
        # A number that no earlier conversation can have used: an agent never starts an attempt twice.
        attempt = Attempt(m.PRE_JOB, talk.serial)
        code = os.fsencode(self._spec.pre)
        self._log.status(0, f"pre: {describe_code(code)}")
        talk.run([self._ledger.add(attempt, code, "pre")])

    def pre_ended(self, result: Result, talk: Conversation) -> str | None:
        """``ready``, or what went wrong.  The end of ``post`` is only logged."""
        name = "pre" if result.job == m.PRE_JOB else "post"
        self._log.status(0, f"{result.describe()} # {name}")
        if name == "post":
            return None
        return self._complete(talk) if result.succeeded else f"pre-command: {result.describe()}"

    def _complete(self, talk: Conversation) -> str:
        self.done = True
        talk.send({"t": "ready"})
        return READY
