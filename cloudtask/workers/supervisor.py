"""The process that looks after one worker: it alone speaks with the worker, and it decides nothing about jobs.

It makes contact and makes it again, sets the worker up, pulls jobs ahead as far as short ones make it worth while, writes
the worker's log, and cleans up.  It leaves when the main process closes its pipe: jobs on the worker run on under the
agent's lease.  ``supervise`` is one of the three places that catch broadly.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any, ClassVar

from cloudtask.errors import StorageError
from cloudtask.model import Attempt, Identity
from cloudtask.printable import describe_code
from cloudtask.states import Ending
from cloudtask.workers import messages as m
from cloudtask.workers.appetite import Appetite
from cloudtask.workers.contact import Background, Contact, Reached, reach
from cloudtask.workers.conversation import Conversation, Rank, read_row
from cloudtask.workers.errands import Errands
from cloudtask.workers.intake import Intake
from cloudtask.workers.ledger import Ledger
from cloudtask.workers.machine_timer import IT_IS_US
from cloudtask.workers.mailbox import Mailbox
from cloudtask.workers.preparation import OVERLAID, READY, Held, Preparation, Timed
from cloudtask.workers.reunion import compare
from cloudtask.workers.worker_log import WorkerLog

_BACKLOG_POLL = 0.01
_LAST_TRIES = 3
_LAST_ACKNOWLEDGEMENT = 10.0


def supervise(spec: m.WorkerSpec, sock: socket.socket) -> None:
    """The supervisor's main: returns when it may leave."""
    mailbox = Mailbox(sock)
    mailbox.post([m.Hello(os.getpid())])
    supervisor = Supervisor(spec, mailbox)
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: supervisor.retire("terminated by SIGTERM"))
    try:
        supervisor.run()
    except StorageError as error:
        mailbox.post([m.Unwritable(str(error))])
    except Exception:
        traceback.print_exc(file=sys.stderr)
        mailbox.post([m.Note("the supervisor died of a bug: its traceback is above", warning=True)])
    mailbox.drain(5)


class Supervisor:
    """The loop and the state of one worker's supervision."""

    def __init__(self, spec: m.WorkerSpec, mailbox: Mailbox) -> None:
        self._spec = spec
        self._mailbox = mailbox
        self._background = Background()
        self._contact = Contact(spec.known, spec.lost_timeout, spec.boot_timeout)
        self._log = WorkerLog(spec.directory, spec.number, str(spec.address))
        self._ledger = Ledger(self._log)
        self._outbox: list[object] = []
        self._intake = Intake(self._ledger, self._outbox, spec.tell_output)
        self._preparation = Preparation(spec, self._log, self._ledger, self._background)
        self._talk: Conversation | None = None
        self._connection_number = spec.first_connection
        self._epoch = spec.epoch
        self._introduced = False
        """The inventory was answered: this process and the main process agree on what the worker has."""
        self._identity: Identity | None = None
        self._slots = 1
        self._appetite = Appetite(self._ledger, ahead=spec.prefetch, cautious=spec.cautious)
        self._errands = Errands(self._ledger, self._log)
        self._told: set[str] = set()
        """What was said about how contact was made: once is enough."""
        self._goal: Callable[[], None] | None = None
        self._goal_deadline = 0.0
        self._retiring: str | None = None
        self._leaving = False
        self._failure: str | None = None
        self._machine_gone: str | None = None
        self._wake_read, self._wake_write = socket.socketpair()
        self._wake_write.setblocking(False)

    # --- the loop ----------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Look after the worker until there is nothing more to do or the main process is gone."""
        while not self._leaving:
            self._connect_when_due()
            self._wait()
            self._read_mailbox()
            self._read_background()
            self._read_worker()
            self._leave_gone_machine()
            self._keep_alive()
            self._pull()
            self._flush()
        self._flush()
        if self._talk:
            self._talk.close()

    def retire(self, why: str) -> None:
        """Called from the signal handler: only leaves a note for the loop."""
        self._retiring = self._retiring or why
        with contextlib.suppress(OSError):
            self._wake_write.send(b"\0")

    def _wait(self) -> None:
        talk = self._talk
        readers: list[Any] = [self._mailbox, self._background, self._wake_read]
        if talk:
            readers.append(talk)
        writers = [self._mailbox] if self._mailbox.backlog else []
        timeout = _BACKLOG_POLL if talk and talk.backlog else self._next_timer()
        ready, _, _ = select.select(readers, writers, [], timeout)
        if self._wake_read in ready:
            self._wake_read.recv(64)

    def _next_timer(self) -> float:
        if self._talk:
            return self._spec.heartbeat
        return min(5.0, max(0.0, self._contact.next_try - time.monotonic())) if not self._background.busy else 5.0

    def _flush(self) -> None:
        # Output stands in the worker log before the main process hears of it: its writer reads it there.
        self._log.flush()
        if self._outbox:
            self._mailbox.post(self._outbox)
            self._outbox.clear()
        else:
            self._mailbox.flush()
        if self._talk:
            self._talk.flush()

    def _note(self, text: str, warning: bool = False) -> None:
        self._log.status(0, text)
        self._outbox.append(m.Note(text, warning))

    # --- contact -----------------------------------------------------------------------------------------------------

    def _connect_when_due(self) -> None:
        if self._talk or self._background.busy or time.monotonic() < self._contact.next_try:
            return
        self._background.start(lambda: reach(self._spec))

    def _read_background(self) -> None:
        if not select.select([self._background], [], [], 0)[0]:
            return
        outcome = self._background.outcome()
        if isinstance(outcome, Reached):
            self._greet(outcome)
        elif outcome is OVERLAID:
            self._preparation.overlaid = True
            self._continue_setup()
        elif isinstance(outcome, Timed):
            self._preparation.timed = True
            if outcome.problem:
                self._note(f"no timer on this machine: {outcome.problem}", warning=outcome.problem != IT_IS_US)
            self._continue_setup()
        elif isinstance(outcome, Held):
            if outcome.problem and outcome.problem != IT_IS_US:
                self._note(f"this machine may end itself before its time: {outcome.problem}", warning=True)
            self._aim(self._ask_to_finish)
        elif isinstance(outcome, Exception):
            self._background_failed(outcome)

    def _background_failed(self, error: Exception) -> None:
        if self._talk:
            self._give_up(f"setup failed: {error}")
            return
        before = self._contact.reason
        useless = self._contact.failed(error)
        if self._contact.booting and self._contact.reason != before:
            self._log.status(0, f"not ready yet: {self._contact.reason}")
        if useless:
            self._give_up(f"unreachable: {self._contact.reason}")
        elif self._goal and self._contact.failures >= _LAST_TRIES:
            self._leave(clean=False)

    def _greet(self, reached: Reached) -> None:
        if self._leaving:
            reached.connection.close()
            return
        self._connection_number += 1
        for note in reached.notes:
            self._log.status(0, note)
        for note in set(reached.connection.notes) - self._told:
            self._told.add(note)
            self._note(note)
        # What was acknowledged need not be told again to whom it was told once: after a long run those are many rows.
        self._talk = Conversation(reached, self._spec, Rank(self._epoch, self._connection_number), everything=not self._introduced)

    def _cut(self, why: str) -> None:
        if self._talk is None:
            return
        self._talk.close()
        self._talk = None
        self._contact.cut(why)
        self._log.status(0, f"connection lost: {why}")
        if self._goal and self._failure is not None:
            self._leave(clean=False)

    def _keep_alive(self) -> None:
        if self._contact.overdue() and not self._leaving:
            self._give_up(f"unreachable: {self._contact.reason}")
        elif self._talk is None:
            if self._contact.away():
                self._outbox.append(m.Away(self._contact.reason))
            if self._contact.lost():
                self._log.status(0, f"contact lost: {self._contact.reason}")
                self._outbox.append(m.Silent(self._contact.reason))
        elif self._talk.silent():
            self._cut(f"no sign of life for {2 * self._spec.heartbeat:g} seconds")
        if self._goal_deadline and time.monotonic() > self._goal_deadline:
            self._leave(clean=False)

    # --- what the main process says ----------------------------------------------------------------------------------

    def _read_mailbox(self) -> None:
        for message in self._mailbox.receive():
            handler = self._HANDLERS[type(message)]
            handler(self, message)
        if self._mailbox.closed:
            self._leaving = True
        if self._retiring and not self._goal:
            self._begin_retiring()

    def _on_beat(self, message: m.Beat) -> None:
        self._outbox.append(m.Alive(message.number))
        if self._talk:
            self._talk.beat()

    def _on_work(self, message: m.Work) -> None:
        self._appetite.fed(len(message.jobs))
        flights = [self._ledger.add(Attempt(job, number), code, describe_code(code)) for job, number, code in message.jobs]
        if self._retiring or self._failure:
            self._intake.give_back([flight.attempt for flight in flights])
        elif self._talk and self._talk.welcomed:
            self._talk.run(flights)

    def _on_adopt(self, message: m.Adopt) -> None:
        if self._talk is None:
            return
        self._introduced = True
        for attempt in message.wanted:
            if self._ledger.find(attempt) is None:
                self._ledger.add(attempt, b"", f"job {attempt.job}").known = True
        self._talk.acknowledge(message.recorded)
        # A pre-command that an earlier supervisor began is nobody's now.
        stale = [row.attempt for row in map(read_row, self._talk.rows) if row.attempt.job < 1 and row.state in ("queued", "running")]
        self._talk.kill([*message.unwanted, *stale], str(Ending.SUPERSEDED))
        self._talk.want([flight for key in message.wanted if (flight := self._ledger.find(key))])
        self._continue_setup()

    def _on_cancel(self, message: m.Cancel) -> None:
        self._errands.cancel(message.attempts, message.why, self._talk)

    def _on_recall(self, message: m.Recall) -> None:
        if self._talk:
            self._talk.recall(message.most)

    def _on_durable(self, message: m.Durable) -> None:
        self._errands.acknowledge(message.attempts, self._talk)

    def _on_epoch(self, message: m.Epoch) -> None:
        self._epoch = max(self._epoch, message.epoch)
        if self._talk:
            self._cut("the run took a higher epoch")

    def _on_finish(self, message: m.Finish) -> None:
        if message.hold and self._talk and not self._background.busy:
            self._preparation.hold(self._talk, message.hold)
        else:
            self._aim(self._ask_to_finish)

    def _on_abort(self, message: m.Abort) -> None:
        self._aim(self._ask_to_abort)

    def _on_leave(self, message: m.Leave) -> None:
        self._leaving = True

    def _on_machine_gone(self, message: m.MachineGone) -> None:
        self._machine_gone = message.why

    # --- ending ------------------------------------------------------------------------------------------------------

    def _aim(self, goal: Callable[[], None]) -> None:
        """From now on only the end matters: ask for it now, or when contact is there again."""
        self._goal = goal
        self._intake.leaving = True
        post_time = self._spec.setup_timeout if self._spec.post else 0
        self._goal_deadline = time.monotonic() + self._spec.kill_grace + 90 + post_time
        if self._talk and self._talk.welcomed:
            goal()
        elif not self._spec.known and self._identity is None and not self._talk:
            # Never reached: nothing of ours is there.
            self._leave(clean=True)
        elif not self._talk and self._contact.failures >= _LAST_TRIES:
            self._leave(clean=False)

    def _ask_to_finish(self) -> None:
        assert self._talk
        self._errands.send_acknowledgements(self._talk)
        self._talk.send({"t": "finish"})

    def _ask_to_abort(self) -> None:
        assert self._talk
        self._errands.send_acknowledgements(self._talk)
        self._talk.send({"t": "abort"})

    def _begin_retiring(self) -> None:
        """Jobs end and go back; the main process says when to finish."""
        why, self._retiring = self._retiring or "", self._retiring
        if self._failure is None and why:
            self._outbox.append(m.Retiring(why))
            self._failure = ""
            if self._talk:
                self._talk.recall(1 << 30)
                self._talk.kill(self._ledger.attempts(), str(Ending.ABORTED))

    def _give_up(self, why: str) -> None:
        """The worker cannot be used: say so, take back what it was to do, and clean up what can be."""
        self._failure = why
        self._log.status(0, why)
        self._outbox.append(m.Failed(why))
        if self._talk and self._talk.welcomed:
            self._aim(self._ask_to_finish)
        else:
            self._leave(clean=self._identity is None and not self._spec.known)

    def _leave_gone_machine(self) -> None:
        """What its agent still told has been read by now; nothing else is there any more, and nobody needs to be asked."""
        if self._machine_gone is None or self._leaving:
            return
        self._log.status(0, f"the machine is gone: {self._machine_gone}")
        lost = [attempt for attempt in self._ledger.drop(self._ledger.attempts()) if attempt.job > 0]
        if lost:
            self._outbox.append(m.Lost(lost, self._machine_gone))
        self._leave(clean=True)

    def _leave(self, clean: bool) -> None:
        if not self._leaving:
            self._outbox.append(m.Gone(clean or self._machine_gone is not None))
        self._leaving = True

    # --- what the worker says ----------------------------------------------------------------------------------------

    def _read_worker(self) -> None:
        talk = self._talk
        if talk is None:
            return
        try:
            for header, payload in talk.receive():
                self._on_frame(header, payload)
        except EOFError as error:
            self._cut(str(error) or "closed by the worker")
        except (KeyError, TypeError, ValueError, IndexError) as error:
            self._cut(f"the worker sent nonsense: {type(error).__name__}: {error}")

    def _on_frame(self, header: dict[str, Any], payload: bytes) -> None:
        handler = self._FRAMES.get(header["t"])
        if handler:
            handler(self, header, payload)
        elif (result := self._intake.take(header, payload)) is not None and self._talk:
            self._talk.acknowledge([Attempt(result.job, result.attempt)])
            self._set_up_further(self._preparation.pre_ended(result, self._talk))

    def _frame_welcome(self, header: dict[str, Any], payload: bytes) -> None:
        assert self._talk
        self._talk.welcome(header)

    def _frame_inventory(self, header: dict[str, Any], payload: bytes) -> None:
        assert self._talk
        self._talk.take_inventory(header)
        if header["last"]:
            self._contact_made()

    def _contact_made(self) -> None:
        talk = self._talk
        assert talk and talk.agent
        was_silent = self._contact.silent
        self._contact.made()
        new_machine = self._identity is not None and talk.agent.identity != self._identity
        self._identity = talk.agent.identity
        self._slots = self._log.slots = self._intake.slots = talk.agent.slots
        self._preparation.done = talk.agent.ready
        if new_machine:
            self._preparation.restarted()
        if not self._introduced:
            self._log.status(0, f"connected: {talk.agent.describe()}")
            self._outbox.append(
                m.Inventory(
                    talk.agent.identity,
                    talk.agent.login,
                    talk.agent.home,
                    talk.agent.fresh,
                    talk.agent.slots,
                    [read_row(r) for r in talk.rows],
                )
            )
        else:
            if was_silent:
                self._outbox.append(m.Back())
            self._pick_up(new_machine)
        if self._goal:
            self._goal()

    def _pick_up(self, new_machine: bool) -> None:
        """Contact again: hold what the agent has against what it was given."""
        talk = self._talk
        assert talk and talk.agent
        found = compare(self._ledger, map(read_row, talk.rows), forgetful=new_machine or talk.agent.fresh)
        if found.lost:
            why = "the machine restarted" if new_machine or talk.agent.rebooted else "the agent died"
            self._outbox.append(m.Lost([attempt for attempt in self._ledger.drop(found.lost) if attempt.job > 0], why))
        talk.want(found.wanted)
        if self._retiring:
            self._intake.give_back([flight.attempt for flight in found.absent])
            talk.kill([flight.attempt for flight in found.wanted], str(Ending.ABORTED))
        else:
            talk.run([flight for flight in found.absent if flight.code])
        self._errands.send_cancels(talk)
        self._errands.send_acknowledgements(talk)
        self._continue_setup()

    def _frame_refused(self, header: dict[str, Any], payload: bytes) -> None:
        """The agent had it already: its row says how it stands, and reconnecting sorts it out."""
        self._cut("the agent knows an attempt already")

    def _frame_full(self, header: dict[str, Any], payload: bytes) -> None:
        self._log.status(0, f"disk full: {header['error']}")
        self._outbox.append(m.Full(str(header["error"])[:500]))

    def _frame_stuck(self, header: dict[str, Any], payload: bytes) -> None:
        self._intake.stuck(header)
        self.retire("a job could not be killed in 60 seconds")

    def _frame_note(self, header: dict[str, Any], payload: bytes) -> None:
        self._note(str(header["text"])[:2000], warning=True)

    def _frame_overtaken(self, header: dict[str, Any], payload: bytes) -> None:
        epoch = int(header["epoch"])
        if epoch > self._epoch:
            self._outbox.append(m.Overtaken(epoch))
        self._cut("the agent obeys another connection")
        self._contact.next_try = time.monotonic() + 0.5

    def _frame_done(self, header: dict[str, Any], payload: bytes) -> None:
        if self._goal and header["left"]:
            # It waits for its results to be acknowledged, which the main process does as they come in; then it says so again.
            self._goal_deadline = min(self._goal_deadline, time.monotonic() + _LAST_ACKNOWLEDGEMENT)
        elif self._goal:
            self._leave(clean=True)
        else:
            # It went on with an abort that an earlier run had asked for: what we want needs another agent.
            self._cut("the agent has ended, as an earlier run told it to")

    def _continue_setup(self) -> None:
        """The next step on the way to taking jobs."""
        if self._talk and self._introduced and self._failure is None and not self._goal:
            self._set_up_further(self._preparation.go_on(self._talk))

    def _set_up_further(self, outcome: str | None) -> None:
        if outcome == READY:
            self._outbox.append(m.Ready(self._slots))
        elif outcome and not self._goal:
            self._give_up(f"setup failed: {outcome}")

    # --- pulling -----------------------------------------------------------------------------------------------------

    def _pull(self) -> None:
        talk = self._talk
        # What is asked for before `Ready` was said is not heard: one that was set up by an earlier run may wait for its timer still.
        takes_jobs = self._preparation.done and self._preparation.timed and self._introduced and not self._spec.ask_only
        if not (talk and talk.welcomed and takes_jobs) or self._goal or self._failure is not None:
            return
        if room := self._appetite.room(self._slots, talk.round_trip):
            self._outbox.append(m.Pull(room))

    _HANDLERS: ClassVar[dict[type, Callable[[Any, Any], None]]] = {
        m.Beat: _on_beat, m.Work: _on_work, m.Adopt: _on_adopt, m.Cancel: _on_cancel, m.Recall: _on_recall, m.Durable: _on_durable,
        m.Epoch: _on_epoch, m.Finish: _on_finish, m.Abort: _on_abort, m.Leave: _on_leave, m.MachineGone: _on_machine_gone,
    }  # fmt: skip
    _FRAMES: ClassVar[dict[str, Callable[[Any, dict[str, Any], bytes], None]]] = {
        "welcome": _frame_welcome, "inventory": _frame_inventory, "refused": _frame_refused, "full": _frame_full,
        "stuck": _frame_stuck, "note": _frame_note, "overtaken": _frame_overtaken, "done": _frame_done,
    }  # fmt: skip
