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
from collections.abc import Iterable, Iterator
from pathlib import Path

from cloudtask import scheduler as s
from cloudtask.conductor import Conductor, Jobs
from cloudtask.errors import OvertakenError, StorageError
from cloudtask.fleet import Fleet, Member
from cloudtask.front import Front
from cloudtask.model import Address, Attempt
from cloudtask.plan import Plan
from cloudtask.relay import Relay, RelayRules
from cloudtask.session import keys, records
from cloudtask.session.session import NewSession, Session
from cloudtask.states import JobState, WorkerState
from cloudtask.transports import ConnectOptions
from cloudtask.turn import Turn
from cloudtask.units import format_elapsed
from cloudtask.version import VERSION
from cloudtask.workers import messages as m
from cloudtask.workers.forkserver import ForkServer

_BEAT_SECONDS = 5.0
_ACKNOWLEDGE_SECONDS = 5.0
_PROGRESS_SECONDS = 0.1
_RELAYED_SECONDS = 1.0
_READER_SECONDS = 2.0
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

EXIT_PENDING = 3
EXIT_FAILED = 1
EXIT_STDOUT_CLOSED = 141


def execute(plan: Plan, front: Front, forkserver: ForkServer) -> int:
    """Do what the plan says; returns the exit status.  ``forkserver`` is closed at the end.

    Raises CloudtaskError for what is expected to go wrong: before anything was started, or (StorageError, OvertakenError) in
    the middle, when everything that can be saved is.
    """
    try:
        with _open(plan) as session:
            return Run(plan, front, session, forkserver).execute()
    finally:
        forkserver.close()


def _open(plan: Plan) -> Session:
    sessions = plan.settings.sessions
    if plan.lines is not None:
        new = NewSession(jobs=plan.lines, mode=plan.settings.input, values=plan.saved, sources=plan.sources, version=VERSION)
        return Session.create(sessions, new)
    assert plan.session is not None
    return Session.open(sessions, plan.session)


class Run:
    """One process's turn at a session."""

    def __init__(self, plan: Plan, front: Front, session: Session, forkserver: ForkServer) -> None:
        self._plan = plan
        self._settings = plan.settings
        self._front = front
        self._session = session
        self._began = time.monotonic()
        self._selector = selectors.DefaultSelector()
        self._wake_read, self._wake_write = socket.socketpair()
        self._wake_read.setblocking(False)
        self._wake_write.setblocking(False)
        self._selector.register(self._wake_read, selectors.EVENT_READ)
        self._signals: list[int] = []
        self._stopped_by: int | None = None
        self._leaving = False
        self._hurried = False
        """A signal came while all that was left was to wait for a reader."""
        self._public_key: str | None = None
        self._timers: dict[str, float] = {}
        self._run_number = session.state.runs + 1
        self._jobs = Jobs(command=plan.command, lines=session.jobs() if plan.lines is None else plan.lines)
        self._fleet = Fleet(forkserver, self._selector, self._make_spec)
        self._turn = Turn(lambda data: _nothing(session.append(data)), session.sync, self._fleet.post, self._say)
        self._relay: Relay | None = None
        self._scheduler: s.Scheduler
        self._conductor: Conductor

    # --- the whole of it ---------------------------------------------------------------------------------------------

    def execute(self) -> int:
        """Run to the end; returns the exit status."""
        retried = self._retried()
        if not retried and self._plan.kind != "new" and not self._pending():
            return self._already_finished()
        self._begin(retried)
        with self._signals_caught():
            try:
                while not self._is_over():
                    self._go_round()
                return self._end()
            except (StorageError, OvertakenError):
                self._post_without_record()
                raise
            finally:
                self._fleet.close()
                self._finish_output()

    def _go_round(self) -> None:
        """One turn of the loop: what came in, what is due, and then all of it written, sent and shown."""
        self._hear_all(self._selector.select(self._next_timer()))
        self._act_on_signals()
        self._act_on_timers()
        self._turn.commit()
        self._give_up_if_hopeless()
        self._turn.commit()

    def _is_over(self) -> bool:
        return self._leaving or ((self._conductor.finished or self._stopped_by is not None) and not self._fleet.in_use())

    # --- beginning ---------------------------------------------------------------------------------------------------

    def _retried(self) -> list[int]:
        if self._plan.kind != "retry":
            return []
        return list(self._session.state.jobs(JobState.FAILED))

    def _pending(self) -> bool:
        if self._session.state.counts().pending:
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
        if plan.lines is None:
            session.save_conf(plan.saved, plan.sources)
        session.append(record)
        session.sync()
        session.state.apply("run", json.loads(record), 0)
        self._relay = self._make_relay()
        self._announce()
        if not all(worker.local for worker in (*plan.workers, *plan.spares)):
            self._public_key = keys.make_key(session.uid)
        self._scheduler = self._make_scheduler()
        self._conductor = Conductor(self._scheduler, self._fleet, self._turn, self._jobs, self._relay)
        self._conductor.epoch = epoch
        self._conductor.by_line = self._settings.output == "line"
        self._conductor.at_most_once = self._settings.at_most_once
        if self._relay:
            self._relay.start()
            for result in session.unrelayed():
                self._relay.whole((result.job, result.span))
        self._enlist()
        now = time.monotonic()
        self._timers = dict.fromkeys(("beat", "acknowledge", "progress", "relayed"), now)
        self._conductor.open_gate(now)
        self._turn.commit()

    def _announce(self) -> None:
        stamp = time.strftime("%Y-%m-%d %H:%M:%S")
        self._say([(f"{stamp} :: session {self._session.number} (pid {os.getpid()})", False), ("", False)])
        if self._plan.kind != "new":
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
        """Bring listed workers and those of earlier runs together, by address; the same host twice is two workers."""
        state = self._session.state
        known = {number: record for number, record in sorted(state.workers.items()) if record.ready or state.in_doubt.get(number)}
        fresh_number = state.highest_worker
        self._fleet.split = len(self._plan.workers)
        self._fleet.remote_transport = self._settings.transport
        members = []
        for index, address in enumerate((*self._plan.workers, *self._plan.spares)):
            number = next((n for n, record in known.items() if _same_host(record.address, address)), None)
            if number is None:
                fresh_number += 1
                member = Member(fresh_number, address)
            else:
                known.pop(number)
                member = Member(number, address, known=True)
            members.append(self._fleet.add(member))
            if index < len(self._plan.workers) or member.known:
                self._conductor.begin(member)
        for number, record in known.items():
            self._conductor.begin(self._fleet.add(Member(number, record.address, ask_only=True, known=True)))
        now = time.monotonic()
        for number, doubtful in state.in_doubt.items():
            self._take_up(number, doubtful, now)

    def _take_up(self, number: int, doubtful: dict[Attempt, bool], now: float) -> None:
        """What the journal says may be on a worker is taken to be there until the worker is asked."""
        if doubtful:
            self._conductor.adopt(number, list(doubtful.items()), now)

    def _make_spec(self, member: Member) -> m.WorkerSpec:
        settings, session, address = self._settings, self._session, member.address
        local = address.local
        return m.WorkerSpec(
            number=member.number,
            address=address,
            transport=self._fleet.transport_of(member),
            connect=ConnectOptions(
                user=settings.user,
                identity=settings.ssh_identity,
                ssh_config=settings.ssh_config,
                session_key=None if local else keys.key_path(session.uid),
                heartbeat=settings.heartbeat,
                directory=os.getcwd() if local else None,
            ),
            session=session.uid,
            directory=session.paths.root,
            epoch=self._conductor.epoch,
            first_connection=self._fleet.first_connection(member),
            slots=address.slots if address.slots is not None else settings.slots,
            timeout=settings.timeout,
            setup_timeout=settings.setup_timeout,
            kill_grace=settings.kill_grace,
            lease=settings.lease,
            heartbeat=settings.heartbeat,
            lost_timeout=settings.lost_timeout,
            max_output=settings.max_output,
            prefetch=not settings.at_most_once,
            cautious=bool(settings.strikes),
            tell_output=settings.output == "line",
            env=tuple(item if "=" in item else f"{item}={os.environ[item]}" for item in settings.env),
            workdir=settings.workdir,
            pre=settings.pre,
            post=settings.post,
            overlay=settings.overlay,
            public_key=self._public_key,
            ask_only=member.ask_only,
            known=member.known,
        )

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
        signals, self._signals = self._signals, []
        for number in signals:
            if number == signal.SIGUSR1:
                self._say([("# caught SIGUSR1: starting nothing more", True)])
                self._conductor.drain(time.monotonic())
            elif self._stopped_by is None:
                self._say([(f"# caught {signal.Signals(number).name} termination signal", True)])
                self._stop(number)
            else:
                self._conductor.leave()
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
            self._fleet.beat()
        if self._due("acknowledge", _ACKNOWLEDGE_SECONDS, now) or self._conductor.much_undurable:
            self._conductor.acknowledge(self._session.sync)
        if self._due("progress", _PROGRESS_SECONDS, now):
            self._show_progress()
        if self._due("relayed", _RELAYED_SECONDS, now):
            self._record_relayed()

    def _due(self, name: str, interval: float, now: float) -> bool:
        if now - self._timers[name] < interval:
            return False
        self._timers[name] = now
        return True

    def _next_timer(self) -> float:
        wait = min(_BEAT_SECONDS, self._settings.heartbeat, 1.0)
        if self._conductor.alarm is not None:
            wait = min(wait, max(0.0, self._conductor.alarm - time.monotonic()))
        return wait

    def _show_progress(self) -> None:
        jobs = self._scheduler
        self._front.progress(jobs.succeeded + jobs.failed, jobs.failed, self._conductor.running, self._session.state.header.jobs)

    def _record_relayed(self) -> None:
        if self._relay and (relayed := self._relay.take_relayed()):
            self._turn.record(records.relayed(relayed))

    def _give_up_if_hopeless(self) -> None:
        """No usable worker is left, none is to be had, and nothing that still runs can be waited for."""
        if self._conductor.finished or self._stopped_by is not None or self._fleet.hopeful():
            return
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
        self._sum_up(status)
        return status

    def _await_reader(self, relay: Relay) -> None:
        """Until standard output has been read.  A signal ends the waiting; a resume shows what was not shown."""
        told_at = time.monotonic() + _READER_SECONDS
        while relay.is_alive() and not self._hurried:
            relay.join(0.1)
            self._record_relayed()
            self._turn.commit()
            if self._signals:
                self._stopped_by, self._hurried = self._signals[0], True
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

    def _sum_up(self, status: int) -> None:
        jobs, total = self._scheduler, self._session.state.header.jobs
        timeouts = self._session.state.counts().timeouts + jobs.timeouts
        if self._conductor.unclean:
            hosts = ", ".join(sorted(set(self._conductor.unclean)))
            why = f"the agent there removes itself when its lease is over, or --resume={self._session.number} asks it"
            self._say([(f"# not cleaned up: {hosts}: {why}", True)])
        pending = total - jobs.succeeded - jobs.failed
        stamp = time.strftime("%Y-%m-%d %H:%M:%S")
        elapsed = format_elapsed(time.monotonic() - self._began)
        figures = f"{pending} pending, {timeouts} timeouts, {jobs.failed - timeouts} errors, {jobs.succeeded} OK"
        line = f"{stamp} :: session {self._session.number} ({elapsed}): {total - jobs.succeeded}/{total} !OK - {figures}"
        self._say([("", False), (line, True)])
        if pending:
            # A number means something only in the directory that it counts in.
            where = f" --sessions={shlex.quote(self._settings.sessions)}" if self._plan.sources.get("sessions") != "default" else ""
            self._say([(f"# resume with: cloudtask --resume={self._session.number}{where}", True)])

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

    @contextlib.contextmanager
    def _signals_caught(self) -> Iterator[None]:
        """Signals only leave a note for the loop; those that were ignored at the start (nohup) stay ignored."""
        before = {}
        for number in (*_STOP_SIGNALS, signal.SIGUSR1):
            if signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, self._note_signal)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note_signal(self, number: int, frame: object) -> None:
        self._signals.append(number)
        self._wake()


def _used(numbers: Iterable[int]) -> dict[int, int]:
    """The jobs that have used up any, of an array indexed by job."""
    return {job: number for job, number in enumerate(numbers) if number}


def _same_host(known: Address, listed: Address) -> bool:
    return (known.host, known.port, known.user, known.local) == (listed.host, listed.port, listed.user, listed.local)


def _nothing(_: object) -> None:
    return None
