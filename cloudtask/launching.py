"""Between the pool of machines and the run: machines that are ready become workers, workers that are done with become machines to destroy.

It decides nothing: how many machines there are to be is `instances.demand`'s, which job goes where the scheduler's.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import replace
from typing import Literal

from cloudtask import closing
from cloudtask.conductor import Conductor
from cloudtask.errors import UsageError
from cloudtask.fleet import Fleet, Member
from cloudtask.instances.demand import Need
from cloudtask.instances.machine import Machine, Phase
from cloudtask.instances.machine_file import MachineFile, worker_line
from cloudtask.instances.pool import Pool
from cloudtask.model import Address
from cloudtask.plan import Launch
from cloudtask.scheduler import Scheduler
from cloudtask.states import WorkerState
from cloudtask.turn import Turn

CONFIRM_SECONDS = 300.0
"""How long a run waits at its end for the provider to say that everything is gone; after that the watchdog goes on."""

_TELL_SECONDS = 5.0
_TAKES_JOBS = (WorkerState.CONNECTING, WorkerState.READY)


class Launching:
    """One run's launched workers."""

    def __init__(self, launch: Launch, pool: Pool, fleet: Fleet, conductor: Conductor, scheduler: Scheduler, turn: Turn) -> None:
        self._launch = launch
        self.pool = pool
        self._fleet = fleet
        self._conductor = conductor
        self._scheduler = scheduler
        self._turn = turn
        self._next_number = 0
        self._ended = 0.0
        self._told = False
        self._spent = False
        self._listed: MachineFile | None = None
        """The file of --keep, once there is a machine to list; held until this process ends."""
        self._enough = launch.min_split is None
        pool.on_ready = self._begin
        pool.on_gone = self._gone
        pool.on_destroyed = self._destroyed
        pool.on_reclaim = self._going
        pool.on_kept = self._kept
        conductor.on_answered = self._answered
        conductor.on_left = self._left
        conductor.on_success = self._succeeded
        conductor.on_trouble = self._ask_about
        conductor.may_begin = self._may_begin
        conductor.hold = int(launch.keep_for or 0)

    def start(self, next_number: int, ready: Iterable[int], now: float) -> None:
        """Take up what earlier runs left; ``next_number`` is the next worker's, ``ready`` are the workers that answered once."""
        self._next_number = next_number
        self.pool.take_up(set(ready), now, needed=self._scheduler.needs_workers > 0)

    # --- one turn ----------------------------------------------------------------------------------------------------

    def step(self, now: float, *, over: bool) -> None:
        """Go on; ``over``: nothing more is to be run."""
        if over and not self._ended:
            self._ended = now
            self.pool.close("the run is over")
        elif self._scheduler.stopped:
            # Drained: what boots still would have nothing to do.
            self.pool.close("nothing more is started")
        was = self.pool.demand.stopped
        self.pool.step(self._need(), self._standing, now)
        if self.pool.demand.stopped and not was and not over:
            self._turn.say(f"# launching no more machines: {self.pool.demand.stopped}", important=True)
        self._keep_to_budget(now, over)
        self._say_what_is_awaited(now)

    def _keep_to_budget(self, now: float, over: bool) -> None:
        bill = self.pool.bill()
        if over or self._spent or not self.pool.demand.over_budget(bill.dollars):
            return
        self._spent = True
        self.pool.demand.stop(f"--max-cost is reached ({closing.money(bill)})")
        self._turn.say(f"# --max-cost is reached ({closing.money(bill)}): starting nothing more", important=True)
        self._conductor.drain(now)

    def _need(self) -> Need:
        listed = [member for member in self._fleet if not member.instance and not member.ask_only]
        slots = self._launch.slots or 1
        standing = [self._standing(member.number) for member in listed]
        return Need(
            workers=len(standing) - standing.count("none"),
            joining=standing.count("coming"),
            # Until enough are ready, those that have attempts of an earlier run count as coming.
            attempts=self._scheduler.needs_workers + (0 if self._enough else self._scheduler.active),
            slots=max(1, slots),
        )

    def _standing(self, worker: int) -> Literal["serving", "coming", "none"]:
        member = self._fleet[worker]
        if member.ask_only or member.state not in _TAKES_JOBS:
            return "none"
        return "serving" if member.state is WorkerState.READY and self._enough else "coming"

    def due_at(self) -> float:
        """When `step` has something to do, if nothing else happens (monotonic)."""
        return self.pool.due_at()

    # --- machines become workers -------------------------------------------------------------------------------------

    def _begin(self, machine: Machine, address: Address) -> None:
        machine.worker, self._next_number = self._next_number, self._next_number + 1
        if self._launch.user:
            address = replace(address, user=self._launch.user)
        member = self._fleet.add(Member(machine.worker, address, instance=machine.id))
        member.boot_deadline = machine.since + self._launch.boot_timeout
        self._conductor.begin(member)

    def _gone(self, machine: Machine, why: str, reclaimed: bool) -> None:
        self._conductor.machine_gone(self._fleet[machine.worker], why, time.monotonic(), blameless=reclaimed)

    def _destroyed(self, machine: Machine) -> None:
        """What a worker of an earlier run had is lost with its machine, which that run was done with: nobody waits for an answer."""
        self._conductor.machine_gone(self._fleet[machine.worker], "an earlier run was done with it", time.monotonic(), blameless=True)

    def _going(self, machine: Machine, why: str) -> None:
        if machine.worker:
            self._conductor.machine_going(self._fleet[machine.worker], why, time.monotonic())

    def _kept(self, machine: Machine) -> None:
        """List it in the file of --keep, once the journal knows that it stays."""
        member, path = self._fleet[machine.worker], self._launch.keep
        line = worker_line(machine, member.address, self.pool.register.session)
        if path:
            self._turn.afterwards(lambda: self._list(path, line))

    def _list(self, path: str, line: str) -> None:
        try:
            self._listed = self._listed or MachineFile.create(path)
            self._listed.add(line)
        except (OSError, UsageError) as error:
            self._turn.say(f"# {path} cannot be written: {error}; this stays: {line}", important=True)

    def _answered(self, member: Member) -> None:
        if machine := self._machine(member):
            self.pool.answered(machine)

    def _left(self, member: Member) -> None:
        if machine := self._machine(member):
            self.pool.let_go(machine, member.failure)

    def _ask_about(self, member: Member) -> None:
        """The provider knows whether a worker that cannot be reached is there."""
        if member.instance:
            self.pool.look()

    def _succeeded(self, member: Member) -> None:
        if member.instance:
            self.pool.demand.good_job()

    def _machine(self, member: Member) -> Machine | None:
        return self.pool.register.machines.get(member.instance or "")

    # --- what the run wants to know ----------------------------------------------------------------------------------

    def _may_begin(self) -> bool:
        """Once enough workers are ready jobs are sent, and go on being sent."""
        if not self._enough:
            ready = sum(member.state is WorkerState.READY for member in self._fleet)
            self._enough = ready >= self._least()
        return self._enough

    def _least(self) -> int:
        """How many workers have to be ready: --min-split, but no more than there are jobs for, since no more are launched."""
        jobs = self._scheduler.needs_workers + self._scheduler.active
        return min(self._launch.min_split or 0, -(-jobs // max(1, self._launch.slots)))

    def hopeful(self) -> bool:
        """Some machine comes, or could be had."""
        if self.pool.coming > 0:
            return True
        return self._scheduler.needs_workers > 0 and (self._some_leave() or self.pool.may_order(self._standing))

    def _some_leave(self) -> bool:
        """Some machine is about to make room for another."""
        return not self.pool.demand.stopped and any(member.instance and member.state is WorkerState.LEAVING for member in self._fleet)

    def too_few(self) -> str:
        """Why --min-split cannot be reached; empty while it can, or was."""
        if self._enough or self.hopeful():
            return ""
        possible = sum(member.state in _TAKES_JOBS or member.state is WorkerState.SPARE for member in self._fleet)
        if possible >= self._least():
            return ""
        return f"--min-split={self._launch.min_split} cannot be reached: {possible} workers are to be had"

    def ended(self, now: float) -> bool:
        """Nothing is left to wait for, or it was waited for long enough."""
        return self.pool.settled or (self._ended > 0 and now - self._ended > CONFIRM_SECONDS)

    def _say_what_is_awaited(self, now: float) -> None:
        if self._told or not self._ended or now - self._ended < _TELL_SECONDS or self._fleet.in_use():
            return
        self._told = True
        left = self.pool.register.phased(Phase.DOOMED, Phase.LEAVING)
        if left:
            self._turn.say(f"# waiting for {' '.join(machine.name for machine in left)} to be gone", important=True)

    def last_lines(self) -> list[closing.Line]:
        """The proof, for the end of the run."""
        left = self.pool.unconfirmed
        if not self._launch.abilities.destroys:
            return closing.hosts(self.pool.bill(), left, self._launch.idle_timeout)
        watched = [(f"# the watchdog goes on until they are gone: {' '.join(left)}", True)] if left else []
        return closing.machines(self.pool.bill(), left, len(self.pool.kept)) + watched
