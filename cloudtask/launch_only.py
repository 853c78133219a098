"""Launching machines for somebody else to use: a session without jobs, which ends when so many machines are handed over.

A machine is handed over when a login to it worked.  First its line goes to whoever asked, then ``kept`` into the journal: a machine whose
line is not out is still the session's, and the session's watchdog destroys it when this process dies in between.  The other way round
it would cost money without anybody knowing of it; this way a line may stand there whose machine is gone.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from cloudtask import closing
from cloudtask.instances.demand import Need
from cloudtask.instances.knocking import Knocking, LogIn, Opened
from cloudtask.instances.machine import Machine, Phase
from cloudtask.instances.machine_file import address_in_file, worker_line
from cloudtask.instances.orders import Customer
from cloudtask.instances.pool import Pool, Terms
from cloudtask.model import Address
from cloudtask.plan import Launch
from cloudtask.session import records
from cloudtask.session.session import Session
from cloudtask.signals import STOP, Signals
from cloudtask.turn import Turn

CONFIRM_SECONDS = 300.0
"""How long the end waits for the provider to say that what was not handed over is gone; after that the watchdog goes on."""

ALL_THERE, SOME_MISSING = 0, 1
_BEAT_SECONDS = 5.0
_LONGEST_WAIT = 1.0


@dataclass(frozen=True, kw_only=True)
class Handover:
    """What is wanted: ``count`` machines of ``launch``, each with ``public_key`` authorised and given out by ``hand_out``, a line each
    (raises OSError where nobody gets it).  ``log_in`` is how a machine is proven to be ready; ``user`` the login where neither the
    provider nor the ssh configuration says; ``say`` shows a status line (important ones always)."""

    count: int
    launch: Launch
    public_key: str
    user: str | None
    log_in: LogIn
    hand_out: Callable[[str], None]
    say: Callable[[str, bool], None]


class LaunchOnly:
    """One launch.  ``session`` is new, and a watchdog looks after it."""

    def __init__(self, wanted: Handover, session: Session) -> None:
        self._wanted = wanted
        self._session = session
        self._wake_read, self._wake_write = socket.socketpair()
        self._wake_read.setblocking(False)
        self._wake_write.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._wake_read, selectors.EVENT_READ)
        self._signals = Signals(self._wake)
        self._turn = Turn(lambda data: _nothing(session.append(data)), session.sync, lambda worker, messages: None, self._say)
        self._knocking = Knocking(wanted.log_in, self._wake, wanted.launch.boot_timeout)
        self._pool = Pool(self._terms(), wanted.launch.make, session.state.bookings, self._turn, self._wake)
        self._pool.on_ready = self._runs
        self._pool.on_gone = self._gone
        self._addresses: dict[str, Address] = {}
        self._handed = 0
        self._ended = 0.0
        self._stopped_by = 0
        self._leaving = False
        self._next_beat = 0.0

    def _terms(self) -> Terms:
        launch = self._wanted.launch
        keep_for = launch.keep_for or 0.0
        customer = Customer(
            session=self._session.uid,
            public_key=self._wanted.public_key,
            label=launch.label,
            boot_timeout=launch.boot_timeout,
            provider=launch.provider,
            offer=launch.offer,
            abilities=launch.abilities,
            keep_for=keep_for,
        )
        return Terms(customer=customer, limits=launch.limits, boot_timeout=launch.boot_timeout, keep_for=keep_for)

    def run(self) -> int:
        """To the end; returns the exit status.  Raises StorageError."""
        now = time.time()
        self._turn.record(records.run(1, epoch=1, pid=os.getpid(), host=socket.gethostname(), time=now, kind="new"), sync=True)
        self._turn.commit()
        with self._signals.caught():
            try:
                while not self._is_over():
                    self._go_round()
                return self._end()
            finally:
                self._pool.shut()
                self._selector.close()

    # --- one turn of the loop ----------------------------------------------------------------------------------------

    def _go_round(self) -> None:
        if self._selector.select(self._wait()):
            with contextlib.suppress(BlockingIOError):
                self._wake_read.recv(4096)
        now = time.monotonic()
        self._act_on_signals()
        if now >= self._next_beat:
            self._session.beat()
            self._next_beat = now + _BEAT_SECONDS
        self._pool.step(Need(workers=self._handed, attempts=self._wanted.count - self._handed), _still_to_come, now)
        for opened in self._knocking.step(now):
            self._answered(opened)
        self._turn.commit()
        self._end_where_nothing_is_to_come()
        self._turn.commit()

    def _wait(self) -> float:
        now = time.monotonic()
        due = min(self._pool.due_at(), self._knocking.due_at(), self._next_beat)
        return max(0.0, min(_LONGEST_WAIT, due - now))

    def _act_on_signals(self) -> None:
        for number in self._signals.take():
            if number not in STOP:
                continue
            if self._stopped_by:
                self._leaving = True
                return
            self._stopped_by = number
            name = signal.Signals(number).name
            self._turn.say(f"# caught {name}, stopping launch" + (f"; {self._handed} handed over stay" if self._handed else ""), True)
            self._close(f"caught {name}")

    def _end_where_nothing_is_to_come(self) -> None:
        if self._ended:
            return
        if self._handed >= self._wanted.count:
            self._close("as many as were asked for are there")
        elif not self._pool.coming and not self._pool.register.phased(Phase.SERVING) and not self._pool.may_order(_still_to_come):
            why = self._pool.demand.stopped or "no more are allowed"
            self._turn.say(f"# launching no more machines: {why}", True)
            self._close(why)

    def _close(self, why: str) -> None:
        """Nothing more is wanted: what is not handed over is destroyed."""
        if self._ended:
            return
        self._ended = time.monotonic()
        self._pool.close(why)
        for machine in self._pool.register.phased(Phase.SERVING):
            self._knocking.forget(machine.id)
            self._pool.let_go(machine, why)

    def _is_over(self) -> bool:
        if self._leaving or not self._ended:
            return self._leaving
        return self._pool.settled or time.monotonic() - self._ended > CONFIRM_SECONDS

    # --- machines ----------------------------------------------------------------------------------------------------

    def _runs(self, machine: Machine, address: Address) -> None:
        if self._ended:
            self._pool.let_go(machine, "nothing more is wanted")
            return
        self._addresses[machine.id] = address_in_file(machine, address, self._wanted.user)
        self._knocking.begin(machine.id, self._addresses[machine.id], time.monotonic())

    def _gone(self, machine: Machine, why: str, reclaimed: bool) -> None:
        reason = self._knocking.forget(machine.id)
        self._turn.say(f"# instance {machine.id}: {why}" + (f" ({reason})" if reason else ""), not self._ended)

    def _answered(self, opened: Opened) -> None:
        machine = self._pool.register.machines[opened.id]
        if machine.phase is not Phase.SERVING or self._ended:
            return
        if opened.failure:
            self._turn.say(f"# instance {machine.id} cannot be used: {opened.failure}", True)
            self._pool.let_go(machine, opened.failure)
            return
        for note in opened.notes:
            self._turn.say(f"# instance {machine.id}: {note}", True)
        self._hand_over(machine, self._addresses[machine.id])

    def _hand_over(self, machine: Machine, address: Address) -> None:
        try:
            self._wanted.hand_out(worker_line(machine, address, self._session.uid))
        except (OSError, ValueError) as error:
            why = f"the list of machines cannot be written: {getattr(error, 'strerror', None) or error}"
            self._turn.say(f"# {why}", True)
            self._close(why)
            return
        self._handed += 1
        self._pool.answered(machine)
        self._turn.say(f"{address}: launched worker {machine.id}")
        self._pool.let_go(machine, "")
        self._turn.commit()

    # --- the end -----------------------------------------------------------------------------------------------------

    def _end(self) -> int:
        status = self._exit_status()
        unconfirmed = self._pool.unconfirmed
        if not self._leaving:
            self._turn.record(records.finished(1, status, time.time()), sync=True)
        for line, important in closing.machines(self._pool.bill(), unconfirmed, self._handed):
            self._turn.say(line, important)
        if unconfirmed:
            self._turn.say(f"# the watchdog goes on until they are gone: {' '.join(unconfirmed)}", True)
        self._turn.commit()
        return status

    def _exit_status(self) -> int:
        if self._stopped_by:
            return 128 + self._stopped_by
        enough = min(self._wanted.count, self._wanted.launch.min_split or self._wanted.count)
        return ALL_THERE if self._handed >= enough else SOME_MISSING

    def _say(self, lines: list[tuple[str, bool]]) -> None:
        self._session.log("\n".join(line for line, _ in lines))
        for line, important in lines:
            self._wanted.say(line, important)

    def _wake(self) -> None:
        with contextlib.suppress(OSError):
            self._wake_write.send(b"\0")


def _still_to_come(_: int) -> Literal["coming"]:
    """How every machine stands that runs and is not handed over."""
    return "coming"


def _nothing(_: object) -> None:
    return None
