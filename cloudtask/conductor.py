"""Between the supervisors and the scheduler: what supervisors say becomes events, what the scheduler answers becomes acts.

It decides nothing: which job goes where is the scheduler's, what an inventory means is ``reconcile``'s.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

from cloudtask import scheduler as s
from cloudtask.delivery import Delivery
from cloudtask.errors import StorageError
from cloudtask.fleet import Fleet, Member
from cloudtask.instances.machine import short_id
from cloudtask.labels import Jobs, Running
from cloudtask.model import Attempt, Result
from cloudtask.reconcile import Findings, reconcile
from cloudtask.session import records
from cloudtask.states import Ending, JobState, WorkerState
from cloudtask.turn import Turn
from cloudtask.undurable import Undurable
from cloudtask.workers import messages as m

_ALL = 1 << 30


class Conductor:
    """One run's jobs and workers, brought together."""

    def __init__(self, scheduler: s.Scheduler, fleet: Fleet, turn: Turn, jobs: Jobs, delivery: Delivery) -> None:
        self._scheduler = scheduler
        self._fleet = fleet
        self._turn = turn
        self._jobs = jobs
        self._delivery = delivery
        self.at_most_once = False
        self._runs = Running(jobs)
        self._joined: set[int] = set()
        self._undurable = Undurable()
        self._sent_any = False
        self._keeps_doubt = False
        """The run ends early: what its workers may still run stays in doubt, for the next run to ask."""
        self.alarm: float | None = None
        self.finished = False
        self.epoch = 0
        self.overtaken: int | None = None
        self.unclean: list[str] = []
        self.hold = 0
        """Seconds for which launched machines stay after they were let go."""
        self.may_begin: Callable[[], bool] = lambda: True
        """Whether enough workers are ready for jobs to be sent."""
        self.on_answered: Callable[[Member], None] = lambda member: None
        self.on_left: Callable[[Member], None] = lambda member: None
        self.on_trouble: Callable[[Member], None] = lambda member: None
        """A worker cannot be reached."""
        self.on_success: Callable[[Member], None] = lambda member: None

    # --- what supervisors say ----------------------------------------------------------------------------------------

    def hear(self, member: Member, message: object, now: float) -> None:
        """Take in one message of a supervisor."""
        self._HEARD[type(message)](self, member, message, now)

    def _hello(self, member: Member, message: m.Hello, now: float) -> None:
        member.pid = message.pid

    def _alive(self, member: Member, message: m.Alive, now: float) -> None:
        """That it said anything is all that counts."""

    def _note(self, member: Member, message: m.Note, now: float) -> None:
        self._say(member, message.text, important=message.warning)

    def _inventory(self, member: Member, message: m.Inventory, now: float) -> None:
        self._turn.record(
            records.ready(
                member.number, identity=message.identity, home=message.home, slots=message.slots, login=message.login, time=time.time()
            ),
            sync=True,
        )
        member.slots = message.slots
        member.clean = False
        if not member.known:
            self._say(member, f"launched worker {short_id(member.instance)}" if member.instance else "using existing worker")
        member.known = member.answered = True
        self.on_answered(member)
        findings = reconcile(message.rows, self._scheduler.in_flight(member.number), message.fresh, self._is_over)
        self._settle_inventory(member, findings, now)
        self._turn.post(member.number, m.Adopt(findings.wanted, findings.recorded, findings.unwanted))
        self.open_gate(now)
        self._end_if_done_with(member)

    def _settle_inventory(self, member: Member, findings: Findings, now: float) -> None:
        bare = [result._replace(span=None) for result in findings.bare]
        if findings.wanted:
            self._turn.record(
                records.adopted(member.number, time.time(), running=findings.running, queued=findings.queued, held=findings.held)
            )
        if findings.adopted:
            self._act(self._scheduler.adopted(member.number, findings.adopted, now), now)
        if bare:
            self._ended(member, m.Ended(bare), now)
        if findings.lost:
            self._lost(member, m.Lost(findings.lost, "its agent is gone"), now)
        if findings.returned:
            self._returned(member, m.Returned(findings.returned), now)

    def _is_over(self, attempt: Attempt) -> bool:
        if not 1 <= attempt.job <= len(self._jobs.lines):
            return True
        return self._scheduler.state(attempt.job) >= JobState.SUCCEEDED or attempt.number <= self._scheduler.last_attempt(attempt.job)

    def _away(self, member: Member, message: m.Away, now: float) -> None:
        self._say(member, f"unreachable, still trying: {message.why}", important=True)
        self.on_trouble(member)
        member.answered = True
        self.open_gate(now)

    def open_gate(self, now: float) -> None:
        """Once every worker of earlier runs has said what it has, jobs may be sent."""
        if not self._fleet.unanswered() and self.may_begin():
            self._act(self._scheduler.release(now), now)

    def _ready(self, member: Member, message: m.Ready, now: float) -> None:
        member.idle_restarts = 0
        if member.ask_only or member.state not in (WorkerState.CONNECTING, WorkerState.SILENT):
            return
        member.move(WorkerState.READY)
        self._turn.record(records.setup(member.number, time.time()))
        self._joined.add(member.number)
        # Also when it joined before: a supervisor that was replaced while its worker was silent has no other way to say so.
        self._act(self._scheduler.worker_joined(member.number, now), now)
        self.open_gate(now)

    def _pull(self, member: Member, message: m.Pull, now: float) -> None:
        if member.state is WorkerState.READY:
            self._act(self._scheduler.pull(member.number, message.room, now), now)

    def _started(self, member: Member, message: m.Started, now: float) -> None:
        self._turn.record(records.started(member.number, message.attempts, time.time()))
        attempts = [Attempt(job, number) for job, number, _ in message.attempts]
        for attempt in attempts:
            self._say(member, self._runs.label(attempt))
        self._runs.began(attempts)
        self._act(self._scheduler.started(member.number, attempts, now), now)

    def _ended(self, member: Member, message: m.Ended, now: float) -> None:
        member.idle_restarts = 0
        ends: list[records.End] = []
        actions: list[s.Action] = []
        shown: list[tuple[Result, bool]] = []
        for result in message.results:
            attempt = Attempt(result.job, result.attempt)
            answer = self._scheduler.ended(member.number, attempt, result.ending, result.value, now)
            retry = next((action for action in answer if type(action) is s.WillRetry), None)
            settled = any(type(action) is s.Settled and action.job == result.job for action in answer)
            ends.append(records.End(result, not settled))
            self._undurable.add(member.number, attempt, result)
            self._say(member, f"{result.status()} # {self._runs.label(attempt)}", important=not result.succeeded)
            if retry:
                self._say(member, f"will retry ({retry.failures} of {retry.of})")
            self._runs.over(attempt)
            if settled or self._delivery.by_line:
                shown.append((result, settled))
            if result.succeeded:
                self.on_success(member)
            actions += answer
        self._turn.record(records.ended(member.number, ends, time.time()))
        self._delivery.ends(shown)
        self._act(actions, now, ended={result.job for result in message.results})
        if member.state is WorkerState.LEAVING:
            # It waits for nothing but this.
            self._acknowledge_now(member)
        self._end_if_done_with(member)

    def _output(self, member: Member, message: m.Output, now: float) -> None:
        self._delivery.piece(message)

    def _returned(self, member: Member, message: m.Returned, now: float) -> None:
        self._turn.record(records.returned(member.number, message.attempts))
        for attempt in message.attempts:
            self._runs.over(attempt)
        self._act(self._scheduler.returned(member.number, message.attempts, now), now)
        self._end_if_done_with(member)

    def _lost(self, member: Member, message: m.Lost, now: float) -> None:
        if message.attempts:
            counts = not member.blameless
            self._turn.record(records.lost(member.number, message.attempts, message.why, time.time(), counts=counts))
        for attempt in message.attempts:
            self._say(member, f"lost ({message.why}) # {self._runs.label(attempt)}", important=True)
            self._runs.over(attempt)
        self._act(self._scheduler.lost(member.number, message.attempts, now, counts=not member.blameless), now)
        self._end_if_done_with(member)

    def _silent(self, member: Member, message: m.Silent, now: float) -> None:
        self._turn.record(records.contact(member.number, "lost", time.time()))
        self._say(member, f"lost contact: {message.why}; its jobs may run a second time elsewhere", important=True)
        member.move(WorkerState.SILENT)
        member.answered = True
        member.reason = message.why
        self.on_trouble(member)
        self._act(self._scheduler.contact_lost(member.number, now), now)
        self._step_in(member)
        self.open_gate(now)

    def _back(self, member: Member, message: m.Back, now: float) -> None:
        self._turn.record(records.contact(member.number, "back", time.time()))
        self._say(member, "contact again")
        self._act(self._scheduler.contact_back(member.number, now), now)

    def _overtaken_by(self, member: Member, message: m.Overtaken, now: float) -> None:
        if self._sent_any:
            self.overtaken = message.epoch
        elif message.epoch >= self.epoch:
            # The journal lost its last records: take an epoch above the agent's, before anything is sent.
            self.epoch = message.epoch + 1
            self._turn.record(records.epoch(self.epoch), sync=True)
            for other in self._fleet.in_use():
                self._turn.post(other.number, m.Epoch(self.epoch))

    def _unwritable(self, member: Member, message: m.Unwritable, now: float) -> None:
        raise StorageError(message.error)

    # --- workers that go ---------------------------------------------------------------------------------------------

    def _full(self, member: Member, message: m.Full, now: float) -> None:
        self._drain_worker(member, f"disk full: {message.error}")
        self._act(self._scheduler.retire(member.number, now), now)
        self._end_if_done_with(member)

    def _retiring(self, member: Member, message: m.Retiring, now: float) -> None:
        self._drain_worker(member, f"retiring worker: {message.why}")
        self._act(self._scheduler.retire(member.number, now), now)
        self._end_if_done_with(member)

    def _failed(self, member: Member, message: m.Failed, now: float) -> None:
        member.reason = message.why
        self._drain_worker(member, message.why)
        self._act(self._scheduler.retire(member.number, now), now)

    def _drain_worker(self, member: Member, why: str) -> None:
        """It takes no more jobs; a spare steps in."""
        self._say(member, why, important=True)
        member.failure = member.failure or why
        self._turn.record(records.retired(member.number, why, time.time()))
        if member.state in (WorkerState.LEAVING, WorkerState.GONE):
            return
        member.move(WorkerState.DRAINING)
        # What waits there unstarted is better off elsewhere.
        self._turn.post(member.number, m.Recall(_ALL))
        self._step_in(member)

    def _step_in(self, member: Member) -> None:
        spare = self._fleet.spare()
        if spare and not member.ask_only and not self.finished and not self._keeps_doubt:
            self.begin(spare)

    def machine_gone(self, member: Member, why: str, now: float, *, blameless: bool) -> None:
        """The provider says that a worker's machine is not there any more: what it had is lost, at once."""
        if member.state is WorkerState.GONE or member.machine_gone:
            return
        member.machine_gone, member.blameless, member.reason = True, blameless, why
        if member.state is not WorkerState.LEAVING:
            self._drain_worker(member, f"its machine is gone: {why}")
            self._act(self._scheduler.retire(member.number, now), now)
        self._turn.post(member.number, m.MachineGone(why))

    def machine_going(self, member: Member, why: str, now: float) -> None:
        """The provider is about to take a worker's machine: it gets nothing more, and what is lost with it is not the jobs' doing."""
        member.blameless = True
        if member.state in (WorkerState.CONNECTING, WorkerState.READY, WorkerState.SILENT):
            self._drain_worker(member, f"its machine is taken back: {why}")
            self._act(self._scheduler.retire(member.number, now), now)
            self._end_if_done_with(member)

    def adopt(self, worker: int, attempts: list[tuple[Attempt, bool]], now: float, *, destroyed: bool = False) -> None:
        """The journal says that these may be on a worker; one that is not there any more has lost them.

        ``destroyed``: we destroyed its machine, so that is not the jobs' doing.
        """
        if worker in {member.number for member in self._fleet}:
            self._act(self._scheduler.adopted(worker, attempts, now), now)
            return
        self._scheduler.adopted(worker, attempts, now)
        gone = [attempt for attempt, _ in attempts]
        why = "its machine was destroyed" if destroyed else "its worker is unknown"
        self._turn.record(records.lost(worker, gone, why, time.time(), counts=not destroyed))
        self._act(self._scheduler.lost(worker, gone, now, counts=not destroyed), now)

    def begin(self, member: Member) -> None:
        """Start to use a worker: the journal knows of it before it is contacted."""
        key = not member.address.local
        # At once, so that nobody takes it for a spare any more, and that a resume waits for its answer.
        member.move(WorkerState.CONNECTING)
        transport = self._fleet.transport_of(member)
        self._turn.record(records.worker(member.number, member.address, transport=transport, key=key, instance=member.instance))
        self._turn.afterwards(lambda: self._start(member))

    def _start(self, member: Member) -> None:
        if self.finished or self._keeps_doubt:
            member.move(WorkerState.GONE)
            self.on_left(member)
        else:
            self._fleet.start(member)

    def _gone(self, member: Member, message: m.Gone, now: float) -> None:
        if message.clean:
            self._turn.record(records.released(member.number, time.time()))
        elif not member.instance:
            self.unclean.append(str(member.address))
        self._fleet.hang_up(member)
        self._write_off(member, now)

    def _write_off(self, member: Member, now: float) -> None:
        """A worker is gone for this run."""
        member.move(WorkerState.GONE)
        self._joined.discard(member.number)
        if not self._keeps_doubt:
            self._act(self._scheduler.retire(member.number, now), now)
            if left := self._scheduler.in_flight(member.number):
                self._lost(member, m.Lost(left, member.reason or "its worker is gone"), now)
            self._act(self._scheduler.worker_left(member.number, now), now)
        if not self.finished and not self._keeps_doubt and not self._fleet.using_enough():
            self._step_in(member)
        member.answered = True
        self.on_left(member)
        self.open_gate(now)

    def supervisor_died(self, member: Member, now: float) -> None:
        """Its pipe ended without a farewell."""
        was_leaving = member.state is WorkerState.LEAVING
        if was_leaving or member.machine_gone or not self._fleet.may_restart(member):
            self._fleet.hang_up(member)
            self._say(member, "its supervisor died", important=True)
            if not member.instance:
                self.unclean.append(str(member.address))
            member.reason = member.reason or "its supervisor died"
            member.failure = member.failure or member.reason
            self._write_off(member, now)
            return
        self._say(member, "its supervisor died; starting another", important=True)
        if member.number in self._joined:
            self._act(self._scheduler.worker_restarted(member.number, now), now)
        self._fleet.restart(member)

    def _end_if_done_with(self, member: Member) -> None:
        """A draining worker, or one of an earlier run, is let go with its last job."""
        draining = member.state is WorkerState.DRAINING or (member.ask_only and member.answered)
        if draining and not self._scheduler.in_flight(member.number):
            self.let_go(member)

    def let_go(self, member: Member) -> None:
        """Clean the worker up: everything it delivered is on disk first."""
        if member.state in (WorkerState.LEAVING, WorkerState.GONE) or not member.mailbox:
            return
        member.move(WorkerState.LEAVING)
        self._acknowledge_now(member)
        self._turn.post(member.number, m.Finish(self.hold if member.instance and not member.failure else 0))

    def _acknowledge_now(self, member: Member) -> None:
        self._turn.record(b"", sync=True)
        self._turn.post(member.number, m.Durable(self._undurable.take(member.number)))

    def abort(self, now: float) -> None:
        """End everything that runs, and clean up."""
        self._keeps_doubt = True
        self._scheduler.abort(now)
        for member in self._fleet.in_use():
            if member.state is not WorkerState.LEAVING:
                member.move(WorkerState.LEAVING)
            self._acknowledge_now(member)
            self._turn.post(member.number, m.Abort())

    def give_up(self) -> None:
        """Nobody is left to run what is pending: let everybody go."""
        self._keeps_doubt = self.finished = True
        for member in self._fleet.in_use():
            self.let_go(member)

    def leave(self) -> None:
        """Let go of all supervisors at once; agents go on with what they were told."""
        for member in self._fleet.in_use():
            self._turn.post(member.number, m.Leave())

    # --- what the scheduler answers ----------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """The scheduler's alarm went off."""
        self.alarm = None
        self._act(self._scheduler.tick(now), now)

    def drain(self, now: float) -> None:
        """Start nothing more."""
        self._act(self._scheduler.drain(now), now)

    def _act(self, actions: Iterable[s.Action], now: float, ended: Iterable[int] = ()) -> None:
        for action in actions:
            self._DONE[type(action)](self, action, ended)

    def _send(self, action: s.Send, ended: Iterable[int]) -> None:
        self._sent_any = True
        jobs = self._jobs
        self._turn.record(records.sent(action.worker, action.attempts, time.time()), sync=self.at_most_once)
        self._turn.post(action.worker, m.Work([(a.job, a.number, jobs.code(a.job)) for a in action.attempts]))

    def _settled(self, action: s.Settled, ended: Iterable[int]) -> None:
        if action.ending in (Ending.UNKNOWN, Ending.POISON):
            self._turn.record(records.settled(action.job, action.attempt, action.ending, time.time()))
            self._turn.say(f"job {action.job}: {action.ending} # {self._jobs.label(action.job)}", important=True)
            if action.job not in ended:
                self._delivery.nothing(action.job)

    def _will_retry(self, action: s.WillRetry, ended: Iterable[int]) -> None:
        """It was said where the attempt's end was."""

    def _back_to_queue(self, action: s.BackToQueue, ended: Iterable[int]) -> None:
        """Nothing to do: the records of what brought it back say it all."""

    def _cancel(self, action: s.Cancel, ended: Iterable[int]) -> None:
        self._turn.post(action.worker, m.Cancel(list(action.attempts), str(action.why)))

    def _recall(self, action: s.Recall, ended: Iterable[int]) -> None:
        self._turn.post(action.worker, m.Recall(action.count))

    def _retire_worker(self, action: s.RetireWorker, ended: Iterable[int]) -> None:
        member = self._fleet[action.worker]
        self._drain_worker(member, f"terminating worker after {action.strikes} strikes")
        self._end_if_done_with(member)

    def _release_worker(self, action: s.ReleaseWorker, ended: Iterable[int]) -> None:
        self.let_go(self._fleet[action.worker])

    def _alarm(self, action: s.Alarm, ended: Iterable[int]) -> None:
        self.alarm = action.at if self.alarm is None else min(self.alarm, action.at)

    def _ignored(self, action: s.Ignored, ended: Iterable[int]) -> None:
        self._turn.say(f"# ignored from {self._fleet[action.worker].label}: job {action.attempt.job} {action.said}", important=False)

    def _finished(self, action: s.Finished, ended: Iterable[int]) -> None:
        self.finished = True
        for member in self._fleet.in_use():
            self.let_go(member)

    # --- odds --------------------------------------------------------------------------------------------------------

    def acknowledge(self, sync: Callable[[], None]) -> None:
        """Tell the agents what is on disk for good, so that they may forget it."""
        if not self._undurable:
            return
        sync()
        for number, attempts in self._undurable.take_all().items():
            self._turn.post(number, m.Durable(attempts))

    @property
    def running(self) -> int:
        """How many attempts have started and not ended, as far as is known."""
        return len(self._runs)

    @property
    def much_undurable(self) -> bool:
        """So much output waits on the workers that it is time to acknowledge."""
        return self._undurable.much

    def _say(self, member: Member, text: str, important: bool = False) -> None:
        self._turn.say(f"{member.label}: {text}", important)

    _HEARD: ClassVar[dict[type, Callable[[Any, Member, Any, float], None]]] = {
        m.Hello: _hello, m.Alive: _alive, m.Note: _note, m.Inventory: _inventory, m.Away: _away, m.Ready: _ready, m.Pull: _pull,
        m.Started: _started, m.Ended: _ended, m.Output: _output, m.Returned: _returned, m.Lost: _lost, m.Silent: _silent, m.Back: _back,
        m.Overtaken: _overtaken_by, m.Full: _full, m.Retiring: _retiring, m.Failed: _failed, m.Gone: _gone,
        m.Unwritable: _unwritable,
    }  # fmt: skip
    _DONE: ClassVar[dict[type, Callable[[Any, Any, Iterable[int]], None]]] = {
        s.Send: _send, s.Settled: _settled, s.WillRetry: _will_retry, s.BackToQueue: _back_to_queue, s.Cancel: _cancel, s.Recall: _recall,
        s.RetireWorker: _retire_worker, s.ReleaseWorker: _release_worker, s.Alarm: _alarm, s.Finished: _finished,
        s.Ignored: _ignored,
    }  # fmt: skip
