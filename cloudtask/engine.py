"""The main process of a run: opens the session, starts the workers' supervisors, and goes round its loop until all is done.

``execute`` is the only door.  It puts the rooms together; nothing here is global.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import shlex
import signal
import socket
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from cloudtask import closing
from cloudtask import scheduler as s
from cloudtask.conductor import Conductor
from cloudtask.delivery import Delivery
from cloudtask.enlistment import Enlistment
from cloudtask.errors import OvertakenError, SessionError, StorageError
from cloudtask.fleet import Fleet, Member
from cloudtask.front import Front
from cloudtask.instances.orders import Customer, check_place, timer_of
from cloudtask.instances.pool import Pool, Terms
from cloudtask.labels import Jobs
from cloudtask.launching import Launching
from cloudtask.plan import Launch, Plan
from cloudtask.relay import Relay, RelayRules
from cloudtask.session import keys, records
from cloudtask.session.lock import WATCHDOG, is_held
from cloudtask.session.session import NewSession, Session
from cloudtask.signals import Signals
from cloudtask.specs import Specs
from cloudtask.states import JobState, WorkerState
from cloudtask.turn import Turn
from cloudtask.version import VERSION
from cloudtask.workers import messages as m
from cloudtask.workers.forkserver import ForkServer

_BEAT_SECONDS = 5.0
_GUARD_SECONDS = 20.0
"""How often a run looks whether its watchdog is there."""

_ACKNOWLEDGE_SECONDS = 5.0
_PROGRESS_SECONDS = 0.1
_RELAYED_SECONDS = 1.0
_READER_SECONDS = 2.0
_HARVEST_SECONDS = 60.0

EXIT_PENDING = 3
EXIT_FAILED = 1
EXIT_STDOUT_CLOSED = 141


def execute(plan: Plan, front: Front, forkserver: ForkServer, guard: Callable[[str], None]) -> int:
    """Do what the plan says; returns the exit status.  ``forkserver`` is closed at the end.

    ``guard`` starts a watchdog over a session's directory: called before the first machine is ordered.

    Raises CloudtaskError for what is expected to go wrong: before anything was started, or (StorageError, OvertakenError) in
    the middle, when everything that can be saved is.
    """
    try:
        with _open(plan, front) as session:
            return Run(plan, front, session, forkserver, guard).execute()
    finally:
        forkserver.close()


def _open(plan: Plan, front: Front) -> Session:
    sessions = plan.settings.sessions
    if plan.lines is not None:
        new = NewSession(jobs=plan.lines, mode=plan.settings.input, values=plan.saved, sources=plan.sources, version=VERSION)
        return Session.create(sessions, new)
    assert plan.session is not None
    if plan.kind == "harvest":
        return Session.open(sessions, plan.session, note=WATCHDOG)
    return Session.open(sessions, plan.session, on_wait=lambda line: front.say(line, important=True))


class Run:
    """One process's turn at a session."""

    def __init__(self, plan: Plan, front: Front, session: Session, forkserver: ForkServer, guard: Callable[[str], None]) -> None:
        self._plan = plan
        self._settings = plan.settings
        self._front = front
        self._guard = guard
        self._session = session
        self._began = time.monotonic()
        self._selector = selectors.DefaultSelector()
        self._wake_read, self._wake_write = socket.socketpair()
        self._wake_read.setblocking(False)
        self._wake_write.setblocking(False)
        self._selector.register(self._wake_read, selectors.EVENT_READ)
        self._signals = Signals(self._wake)
        self._stopped_by: int | None = None
        self._leaving = False
        self._hurried = False
        """A signal came while all that was left was to wait for a reader."""
        self._specs = Specs(settings=plan.settings, session=session)
        self._timers: dict[str, float] = {}
        self._run_number = session.state.runs + 1
        self._jobs = Jobs(command=plan.command, lines=session.jobs() if plan.lines is None else plan.lines)
        self._fleet = Fleet(forkserver, self._selector, self._make_spec)
        self._turn = Turn(lambda data: _nothing(session.append(data)), session.sync, self._fleet.post, self._say)
        self._relay: Relay | None = None
        self._launching: Launching | None = None
        self._scheduler: s.Scheduler
        self._conductor: Conductor

    # --- the whole of it ---------------------------------------------------------------------------------------------

    def execute(self) -> int:
        """Run to the end; returns the exit status."""
        retried = self._retried()
        if not retried and self._plan.kind != "new" and not self._pending():
            return self._already_finished()
        self._begin(retried)
        with self._signals.caught():
            try:
                while not self._is_over():
                    self._go_round()
                return self._end()
            except (StorageError, OvertakenError):
                self._post_without_record()
                raise
            finally:
                if self._launching:
                    self._launching.pool.shut()
                self._fleet.close()
                self._finish_output()

    def _go_round(self) -> None:
        """One turn of the loop: what came in, what is due, and then all of it written, sent and shown."""
        self._hear_all(self._selector.select(self._next_timer()))
        self._act_on_signals()
        self._act_on_timers()
        if self._launching:
            self._launching.step(time.monotonic(), over=self._has_ended)
        self._turn.commit()
        self._give_up_if_hopeless()
        self._turn.commit()

    @property
    def _has_ended(self) -> bool:
        """Nothing more is to be run; what is left is to clean up."""
        return self._conductor.finished or self._stopped_by is not None

    def _is_over(self) -> bool:
        if self._leaving or not self._has_ended or self._fleet.in_use():
            return self._leaving
        return self._launching is None or self._launching.ended(time.monotonic())

    # --- beginning ---------------------------------------------------------------------------------------------------

    def _retried(self) -> list[int]:
        if self._plan.kind != "retry":
            return []
        return list(self._session.state.jobs(JobState.FAILED))

    def _pending(self) -> bool:
        if self._session.state.counts().pending or self._session.state.bookings.unsettled:
            return True
        if any(worker.ready for worker in self._session.state.workers.values()):
            # All jobs are settled, but an agent was not told so, or did not say that it has gone.
            return True
        return self._settings.output != "none" and next(self._session.state.unrelayed(), None) is not None

    def _already_finished(self) -> int:
        counts = self._session.state.counts()
        self._front.say(f"session {self._session.number} finished", important=True)
        return EXIT_FAILED if counts.timeouts + counts.errors else 0

    def _begin(self, retried: list[int]) -> None:
        session, plan = self._session, self._plan
        epoch = session.state.epoch + 1
        record = records.run(
            self._run_number, epoch=epoch, pid=os.getpid(), host=socket.gethostname(), time=time.time(), kind=plan.kind, retry=retried
        )
        if plan.lines is None and plan.kind != "harvest":
            provider, region = (plan.launch.provider, plan.launch.offer.region) if plan.launch else (None, "")
            check_place(session.state.bookings, session.number, provider, region)
            session.save_conf(plan.saved, plan.sources)
        session.append(record)
        session.sync()
        session.state.apply("run", json.loads(record), 0)
        self._relay = self._make_relay()
        self._announce()
        if plan.launch or not all(worker.local for worker in (*plan.workers, *plan.spares)):
            self._specs.public_key = keys.make_key(session.uid)
        self._scheduler = self._make_scheduler()
        delivery = Delivery(self._relay, self._turn, by_line=self._settings.output == "line")
        self._conductor = Conductor(self._scheduler, self._fleet, self._turn, self._jobs, delivery)
        self._conductor.epoch = epoch
        self._conductor.at_most_once = self._settings.at_most_once
        if self._relay:
            self._relay.start()
            for result in session.unrelayed():
                self._relay.whole((result.job, result.span))
        self._launching = self._make_launching(plan.launch) if plan.launch else None
        self._enlist()
        now = time.monotonic()
        self._timers = dict.fromkeys(("beat", "guard", "acknowledge", "progress", "relayed"), now)
        self._conductor.open_gate(now)
        self._turn.commit()

    def _announce(self) -> None:
        stamp = time.strftime("%Y-%m-%d %H:%M:%S")
        self._say([(f"{stamp} :: session {self._session.number} (pid {os.getpid()})", False), ("", False)])
        if self._plan.kind in ("resume", "retry"):
            counts = self._session.state.counts()
            finished = counts.ok + counts.errors + counts.timeouts
            self._say([(f"session {self._session.number}: resuming ({counts.pending} pending, {finished} finished)", False)])
        if self._session.cut:
            self._say([(f"# cut off a torn last line of {self._session.cut} bytes from the journal", True)])

    def _make_scheduler(self) -> s.Scheduler:
        settings, state = self._settings, self._session.state
        policy = s.Policy(
            retries=settings.retries,
            strikes=settings.strikes,
            retry_delay=settings.retry_delay,
            at_most_once=settings.at_most_once,
            halt=settings.halt,
        )
        settled = ((job, outcome == "exit 0") for job, outcome in state.settled())
        scheduler = s.Scheduler(
            policy, state.header.jobs, settled, _used(state.attempts), failures=_used(state.failures), losses=_used(state.losses)
        )
        scheduler.hold(self._began)
        return scheduler

    def _make_launching(self, launch: Launch) -> Launching:
        customer = Customer(
            session=self._session.uid,
            public_key=launch.public_key or self._specs.public_key or "",
            label=launch.label,
            boot_timeout=launch.boot_timeout,
            provider=launch.provider,
            offer=launch.offer,
            abilities=launch.abilities,
        )
        terms = Terms(customer=customer, limits=launch.limits, boot_timeout=launch.boot_timeout, keep_for=launch.keep_for)
        if launch.abilities.destroys and not launch.abilities.timer:
            self._specs.timer = timer_of(launch.boot_timeout)
        pool = Pool(terms, launch.make, self._session.state.bookings, self._turn, self._wake)
        return Launching(launch, pool, self._fleet, self._conductor, self._scheduler, self._turn)

    def _make_relay(self) -> Relay | None:
        settings = self._settings
        if settings.output == "none":
            return None
        jobs = self._jobs
        state = self._session.state
        shown = bytes(
            1 if state.job_states[job] >= JobState.SUCCEEDED and state.relayed[job] else 0 for job in range(len(state.job_states))
        )
        rules = RelayRules(
            directory=Path(self._session.paths.root),
            by_line=settings.output == "line",
            keep_order=settings.keep_order,
            tag=(lambda job: jobs.command.label(jobs.lines[job - 1])) if settings.tag else None,
        )
        return Relay(rules, self._front, self._wake, lambda job: 0 < job < len(shown) and bool(shown[job]))

    def _enlist(self) -> None:
        enlistment = Enlistment(self._plan, self._session.state, self._fleet, self._conductor)
        enlistment.enlist()
        enlistment.take_up(time.monotonic())
        if self._launching:
            self._guard(self._session.paths.root)
            self._launching.start(enlistment.next_number, enlistment.answered, time.monotonic())

    def _make_spec(self, member: Member) -> m.WorkerSpec:
        return self._specs.make(member, epoch=self._conductor.epoch, transport=self._fleet.transport_of(member))

    # --- the steps of a turn -----------------------------------------------------------------------------------------

    def _hear_all(self, events: list[tuple[selectors.SelectorKey, int]]) -> None:
        now = time.monotonic()
        for key, _ in events:
            member = key.data
            if member is None:
                with contextlib.suppress(BlockingIOError):
                    self._wake_read.recv(4096)
                continue
            for message in self._fleet.receive(member):
                self._conductor.hear(member, message, now)
            if member.mailbox and member.mailbox.closed:
                self._conductor.supervisor_died(member, now)
        if self._conductor.overtaken is not None:
            number = self._session.number
            raise OvertakenError(
                f"session {number}: somebody else runs it (epoch {self._conductor.overtaken}); nothing more is started here"
            )
        if self._relay and self._relay.failure and self._stopped_by is None:
            why = self._relay.failure.strerror or str(self._relay.failure)
            way_out = f"cannot be written: {why}; the results are kept, make room and --resume"
            self._say([(f"# standard output {'was closed: ending' if self._relay.broken else way_out}", True)])
            self._stop(0)

    def _act_on_signals(self) -> None:
        for number in self._signals.take():
            if number == signal.SIGUSR1:
                self._say([("# caught SIGUSR1: starting nothing more", True)])
                self._conductor.drain(time.monotonic())
            elif self._stopped_by is None:
                self._say([(f"# caught {signal.Signals(number).name} termination signal", True)])
                self._stop(number)
            else:
                self._conductor.leave()
                if self._launching:
                    self._launching.pool.give_up()
                self._leaving = True

    def _stop(self, number: int) -> None:
        """End the run: by a signal, or (0) because nobody reads standard output any more."""
        self._stopped_by = number
        self._conductor.abort(time.monotonic())

    def _act_on_timers(self) -> None:
        now = time.monotonic()
        if self._conductor.alarm is not None and now >= self._conductor.alarm:
            self._conductor.tick(now)
        if self._due("beat", min(_BEAT_SECONDS, self._settings.heartbeat), now):
            self._session.beat()
            self._fleet.beat()
        if self._launching and self._due("guard", _GUARD_SECONDS, now):
            self._look_after_the_watchdog(self._session.paths.root)
        if self._due("acknowledge", _ACKNOWLEDGE_SECONDS, now) or self._conductor.much_undurable:
            self._conductor.acknowledge(self._session.sync)
        if self._due("progress", _PROGRESS_SECONDS, now):
            self._show_progress()
        if self._due("relayed", _RELAYED_SECONDS, now):
            self._record_relayed()

    def _look_after_the_watchdog(self, root: str) -> None:
        """It was killed, or never came up: what dies next would leave machines that nobody sees to."""
        with contextlib.suppress(OSError, SessionError):
            if not is_held(root, WATCHDOG):
                self._say([("# there is no watchdog over this session: starting one", True)])
                self._guard(root)

    def _due(self, name: str, interval: float, now: float) -> bool:
        if now - self._timers[name] < interval:
            return False
        self._timers[name] = now
        return True

    def _next_timer(self) -> float:
        wait = min(_BEAT_SECONDS, self._settings.heartbeat, 1.0)
        if self._conductor.alarm is not None:
            wait = min(wait, max(0.0, self._conductor.alarm - time.monotonic()))
        if self._launching:
            wait = min(wait, max(0.0, self._launching.due_at() - time.monotonic()))
        return wait

    def _show_progress(self) -> None:
        jobs = self._scheduler
        self._front.progress(jobs.succeeded + jobs.failed, jobs.failed, self._conductor.running, self._session.state.header.jobs)

    def _record_relayed(self) -> None:
        if self._relay and (relayed := self._relay.take_relayed()):
            self._turn.record(records.relayed(relayed))

    def _give_up_if_hopeless(self) -> None:
        """No usable worker is left, none is to be had, and nothing that still runs can be waited for."""
        if self._has_ended:
            return
        if self._plan.kind == "harvest":
            self._end_harvest()
            return
        if self._launching and (few := self._launching.too_few()):
            self._say([(f"# {few}", True)])
            self._conductor.give_up()
        elif not self._fleet.hopeful() and not (self._launching and self._launching.hopeful()):
            self._give_up()

    def _end_harvest(self) -> None:
        """All that can be had is fetched: the rest is ended."""
        if not self._fleet.unanswered() or time.monotonic() - self._began > _HARVEST_SECONDS:
            self._stop(0)

    def _give_up(self) -> None:
        if any(
            member.state is WorkerState.DRAINING or (member.ask_only and member.state is WorkerState.CONNECTING) for member in self._fleet
        ):
            return
        silent = [str(member.address) for member in self._fleet if member.state is WorkerState.SILENT]
        where = f"; could not reach the agents on {', '.join(silent)}" if silent else ""
        self._say([(f"# no usable worker is left{where}", True)])
        self._conductor.give_up()

    # --- ending ------------------------------------------------------------------------------------------------------

    def _end(self) -> int:
        if self._relay:
            self._relay.finish()
            if not self._leaving and not self._relay.failure:
                self._await_reader(self._relay)
        self._record_relayed()
        status = self._exit_status()
        if not self._leaving:
            self._turn.record(records.finished(self._run_number, status, time.time()), sync=True)
        self._turn.commit()
        self._show_progress()
        if not self._conductor.unclean and not self._leaving:
            keys.remove_key(self._session.uid)
        self._sum_up()
        return status

    def _await_reader(self, relay: Relay) -> None:
        """Until standard output has been read.  A signal ends the waiting; a resume shows what was not shown."""
        told_at = time.monotonic() + _READER_SECONDS
        while relay.is_alive() and not self._hurried:
            relay.join(0.1)
            if self._due("beat", _BEAT_SECONDS, time.monotonic()):
                # A watchdog may look on still, and who waits for a reader is not frozen.
                self._session.beat()
            self._record_relayed()
            self._turn.commit()
            if self._signals:
                self._stopped_by, self._hurried = self._signals.take()[0], True
            elif time.monotonic() > told_at:
                told_at = float("inf")
                self._say([("# all jobs are done; waiting for standard output to be read", True)])

    def _exit_status(self) -> int:
        if self._stopped_by:
            return 128 + self._stopped_by
        if self._relay and self._relay.failure:
            return EXIT_STDOUT_CLOSED if self._relay.broken else EXIT_PENDING
        if self._scheduler.succeeded + self._scheduler.failed < self._session.state.header.jobs:
            return EXIT_PENDING
        return EXIT_FAILED if self._scheduler.failed else 0

    def _sum_up(self) -> None:
        jobs, total = self._scheduler, self._session.state.header.jobs
        tally = closing.Tally(
            total=total,
            succeeded=jobs.succeeded,
            failed=jobs.failed,
            timeouts=self._session.state.counts().timeouts + jobs.timeouts,
            elapsed=time.monotonic() - self._began,
        )
        # A number means something only in the directory that it counts in.
        where = f" --sessions={shlex.quote(self._settings.sessions)}" if self._plan.sources.get("sessions") != "default" else ""
        lines = [closing.not_cleaned(self._conductor.unclean, self._session.number)] if self._conductor.unclean else []
        lines += closing.last_lines(self._session.number, tally, where)
        self._say(lines + (self._launching.last_lines() if self._launching else []))

    def _finish_output(self) -> None:
        self._selector.close()
        self._front.close(wait=not (self._leaving or self._hurried))

    def _post_without_record(self) -> None:
        for member in self._fleet.in_use():
            self._fleet.post(member.number, [m.Leave()])

    # --- odds --------------------------------------------------------------------------------------------------------

    def _say(self, lines: list[tuple[str, bool]]) -> None:
        self._session.log("\n".join(line for line, _ in lines))
        for line, important in lines:
            self._front.say(line, important=important)

    def _wake(self) -> None:
        with contextlib.suppress(OSError):
            self._wake_write.send(b"\0")


def _used(numbers: Iterable[int]) -> dict[int, int]:
    """The jobs that have used up any, of an array indexed by job."""
    return {job: number for job, number in enumerate(numbers) if number}


def _nothing(_: object) -> None:
    return None
