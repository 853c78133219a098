"""Calls to a provider, which block, beside a loop that must not: each in a thread, with a deadline, answered by a message.

A lane is one thread with one provider object of its own, and does one call at a time.  A call that is not back at its deadline
counts as unanswered: its thread is left behind (a daemon, so that it holds up nobody), and the lane begins afresh.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import NamedTuple, TypeVar, cast

from cloudtask.errors import CloudtaskError, ProviderBusyError
from cloudtask.providers import Provider

DEADLINE = 180.0
"""Seconds after which a call counts as unanswered."""

Work = Callable[[Provider], object]
Answer = Callable[[object], None]
Answered = TypeVar("Answered")


class Waiting:
    """For who may wait: a call like that of a lane, with the same deadline; what it raises is always a CloudtaskError."""

    def __init__(self, make: Callable[[], Provider]) -> None:
        self._done = threading.Event()
        self._lane = Lane(make, self._done.set)

    def call(self, work: Callable[[Provider], Answered]) -> Answered:
        """What it returned.  Raises what it raised, or ProviderBusyError where that was no CloudtaskError."""
        answers: list[object] = []
        self._lane.start(work, answers.append, time.monotonic())
        while not answers:
            self._done.wait(1.0)
            self._done.clear()
            self._lane.collect(time.monotonic())
        if isinstance(answers[0], CloudtaskError):
            raise answers[0]
        return cast("Answered", answers[0])

    def close(self) -> None:
        """Let the thread end."""
        self._lane.close()


class _Call(NamedTuple):
    number: int
    answer: Answer
    deadline: float


class Lane:
    """One call at a time; its outcome (what it returned, or the CloudtaskError that it raised) is handed over by `collect`."""

    def __init__(self, make: Callable[[], Provider], wake: Callable[[], None]) -> None:
        self._make = make
        self._wake = wake
        self._outcomes: queue.SimpleQueue[tuple[int, object]] = queue.SimpleQueue()
        self._jobs: queue.SimpleQueue[tuple[int, Work] | None] | None = None
        self._call: _Call | None = None
        self._number = 0

    @property
    def busy(self) -> bool:
        """A call is under way."""
        return self._call is not None

    def start(self, work: Work, answer: Answer, now: float) -> None:
        """Begin a call; ``answer`` gets its outcome, in the thread that calls `collect`."""
        assert self._call is None, "a lane does one call at a time"
        if self._jobs is None:
            self._jobs = queue.SimpleQueue()
            threading.Thread(target=self._serve, args=(self._jobs,), daemon=True).start()
        self._number += 1
        self._call = _Call(self._number, answer, now + DEADLINE)
        self._jobs.put((self._number, work))

    def collect(self, now: float) -> None:
        """Hand over the outcome of the call, where there is one or its time is over."""
        while not self._outcomes.empty():
            number, outcome = self._outcomes.get()
            if self._call and number == self._call.number:
                self._settle(outcome)
        if self._call and now >= self._call.deadline:
            self.close()
            self._settle(ProviderBusyError(f"the provider did not answer within {DEADLINE:.0f} seconds"))

    def close(self) -> None:
        """Let the thread end when its call does."""
        if self._jobs:
            self._jobs.put(None)
        self._jobs = None

    def _settle(self, outcome: object) -> None:
        assert self._call
        answer, self._call = self._call.answer, None
        answer(outcome)

    def _serve(self, jobs: queue.SimpleQueue[tuple[int, Work] | None]) -> None:
        provider: Provider | None = None
        while (job := jobs.get()) is not None:
            number, work = job
            try:
                provider = provider or self._make()
                outcome: object = work(provider)
            except CloudtaskError as error:
                outcome = error
            except Exception as error:
                # A provider may be a stranger's, and its SDK's errors are many: whatever it is, nobody knows what was done.
                outcome = ProviderBusyError(f"{type(error).__name__}: {error}".splitlines()[0])
                provider = None
            self._outcomes.put((number, outcome))
            self._wake()
