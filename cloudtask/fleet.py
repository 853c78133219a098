"""The workers' life as the main process sees it: their supervisors started, heard, replaced and let go, and the spares.

It decides nothing about jobs.  A launched machine comes in here once it runs; `launching` brings the two together.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

from cloudtask.model import Address
from cloudtask.states import WORKER_MOVES, WorkerState
from cloudtask.workers import messages as m
from cloudtask.workers.forkserver import ForkServer
from cloudtask.workers.mailbox import Mailbox

SILENT_SUPERVISOR_SECONDS = 30.0
RESTARTS_WITHOUT_PROGRESS = 3
_CONNECTIONS_PER_SUPERVISOR = 10_000

_UNUSED = frozenset({WorkerState.SPARE, WorkerState.GONE})


class Member:
    """One worker and, while it is in use, its supervisor."""

    def __init__(
        self, number: int, address: Address, *, ask_only: bool = False, known: bool = False, instance: str | None = None
    ) -> None:
        self.number = number
        self.address = address
        self.instance = instance
        """The id of the machine that was launched for it."""
        self.ask_only = ask_only
        self.known = known
        self.state = WorkerState.SPARE
        self.mailbox: Mailbox | None = None
        self.pid = 0
        self.slots = 1
        self.starts = 0
        self.idle_restarts = 0
        self.heard = 0.0
        self.answered = False
        """Its inventory was settled, or it turned out that none can be had: it no longer holds up a resume."""
        self.clean = not known
        """Nothing of ours is on the worker, as far as we know."""
        self.reason = ""
        self.failure = ""
        """Why it was retired, or lost; empty for one that was simply done with."""
        self.boot_deadline: float | None = None
        """Until when (monotonic) a launched machine may take to answer."""
        self.machine_gone = False
        self.blameless = False
        """Attempts that are lost with it are not the jobs' doing: the provider took its machine."""

    def move(self, state: WorkerState) -> None:
        """Change state; an illegal move is a bug."""
        if state is not self.state:
            assert state in WORKER_MOVES[self.state], f"worker {self.number}: {self.state} -> {state}"
            self.state = state

    @property
    def label(self) -> str:
        """``host (pid)`` as status lines begin."""
        return f"{self.address} ({self.pid})"

    @property
    def in_use(self) -> bool:
        """It has a supervisor, or will get one again."""
        return self.state not in _UNUSED


class Fleet:
    """All workers of a run."""

    def __init__(self, forkserver: ForkServer, selector: selectors.BaseSelector, make_spec: Callable[[Member], m.WorkerSpec]) -> None:
        self._forkserver = forkserver
        self._selector = selector
        self._make_spec = make_spec
        self._members: dict[int, Member] = {}
        self._beats = 0
        self.split = 0
        """How many workers the jobs are split amongst."""
        self.remote_transport = "ssh"

    def __iter__(self) -> Iterator[Member]:
        return iter(self._members.values())

    def __getitem__(self, number: int) -> Member:
        return self._members[number]

    def add(self, member: Member) -> Member:
        """One more worker, as a spare."""
        self._members[member.number] = member
        return member

    def start(self, member: Member) -> None:
        """Give a worker a supervisor."""
        member.move(WorkerState.CONNECTING)
        member.starts += 1
        member.pid = 0
        member.mailbox = Mailbox(self._forkserver.fork(self._make_spec(member)))
        member.heard = time.monotonic()
        self._selector.register(member.mailbox, selectors.EVENT_READ, member)

    def transport_of(self, member: Member) -> str:
        """The name of the transport that reaches a worker; ``local`` needs no ssh."""
        return "local" if member.address.local else member.address.transport or self.remote_transport

    @staticmethod
    def first_connection(member: Member) -> int:
        """Connection numbers rise over all supervisors that a worker gets in a run."""
        return member.starts * _CONNECTIONS_PER_SUPERVISOR

    def post(self, number: int, messages: Sequence[object]) -> None:
        """Say something to a worker's supervisor; to one that has died it is lost, and its successor will ask."""
        member = self._members[number]
        if member.mailbox:
            member.mailbox.post(messages)
            self._watch_backlog(member)

    def _watch_backlog(self, member: Member) -> None:
        if member.mailbox is None:
            return
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if member.mailbox.backlog else 0)
        self._selector.modify(member.mailbox, events, member)

    def receive(self, member: Member) -> list[object]:
        """What a supervisor said.  Its end is told by ``member.mailbox.closed``."""
        if member.mailbox is None:
            return []
        if member.mailbox.backlog:
            member.mailbox.flush()
            self._watch_backlog(member)
        messages = member.mailbox.receive()
        if messages:
            member.heard = time.monotonic()
        return messages

    def hang_up(self, member: Member) -> None:
        """The supervisor is gone, or is to go: close its pipe."""
        if member.mailbox:
            self._selector.unregister(member.mailbox)
            member.mailbox.close()
            member.mailbox = None

    def may_restart(self, member: Member) -> bool:
        """Three supervisors in a row without progress are enough."""
        member.idle_restarts += 1
        return member.idle_restarts <= RESTARTS_WITHOUT_PROGRESS

    def restart(self, member: Member) -> None:
        """A supervisor died: give the worker another one, which finds the agent again."""
        self.hang_up(member)
        member.known = True
        self.start(member)

    def beat(self) -> None:
        """Tell every supervisor that the main process lives, and end those that have been silent for 30 s."""
        self._beats += 1
        for member in self.in_use():
            self.post(member.number, [m.Beat(self._beats)])
            if time.monotonic() - member.heard > SILENT_SUPERVISOR_SECONDS and member.pid:
                # The pipe's end then tells the loop, which replaces it.
                with contextlib.suppress(ProcessLookupError):
                    os.kill(member.pid, signal.SIGKILL)

    def in_use(self) -> list[Member]:
        """The workers that have a supervisor."""
        return [member for member in self if member.mailbox]

    def spare(self) -> Member | None:
        """The next listed worker that is not in use."""
        return next((member for member in self if member.state is WorkerState.SPARE and not member.ask_only and not member.instance), None)

    def using_enough(self) -> bool:
        """As many workers are in use as the split asks for."""
        return sum(member.in_use and not member.ask_only and member.state is not WorkerState.SILENT for member in self) >= self.split

    def unanswered(self) -> Iterable[Member]:
        """Workers of earlier runs that have not said yet what they have."""
        return [member for member in self if member.known and not member.answered and member.in_use]

    def hopeful(self) -> bool:
        """Some worker takes jobs, or may yet."""
        usable = (WorkerState.CONNECTING, WorkerState.READY)
        return any(member.state in usable and not member.ask_only for member in self) or self.spare() is not None

    def close(self) -> None:
        """Let all supervisors go; those that still run leave at once."""
        for member in self.in_use():
            self.hang_up(member)
        self._forkserver.close()
