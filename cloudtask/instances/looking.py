"""Asking the provider how machines stand: often while some boot or leave, seldom while all serve."""

from __future__ import annotations

import time
from collections.abc import Callable

from cloudtask.errors import CloudtaskError
from cloudtask.instances.calls import Lane
from cloudtask.instances.machine import Machine, Phase, Register
from cloudtask.providers import Instance, InstanceState

QUICKEST, SLOWEST = 0.05, 5.0
"""Seconds between two looks while something is about to change: a fifth of the time since the last change, within these."""

SERVING_SECONDS = 10.0
FIND_SECONDS = 30.0
_ABSENCES = 2
AGAIN_SECONDS = 5.0
"""After so long a machine that is still there is destroyed again."""


class Looking:
    """Describes all machines, and lists what the provider has for orders in doubt."""

    def __init__(self, register: Register, lane: Lane, settles: float) -> None:
        self._register = register
        self._lane = lane
        self._settles = settles
        self._next_look = 0.0
        self._next_find = 0.0
        self.listed_at = 0.0
        """When the provider was asked last what it has for the session, and said it or did not."""
        self._changed = time.monotonic()
        self._complained = False
        self._failures = 0
        self.on_running: Callable[[Machine], None] = lambda machine: None
        self.on_gone: Callable[[Machine, str, bool], None] = lambda machine, why, reclaimed: None
        self.on_destroyed: Callable[[Machine], None] = lambda machine: None
        self.on_reclaim: Callable[[Machine, str], None] = lambda machine, why: None
        self.on_found: Callable[[list[Instance]], None] = lambda instances: None

    def soon(self) -> None:
        """Something is about to change: look now."""
        self._changed = time.monotonic()
        self._next_look = 0.0

    def list_soon(self) -> None:
        """The end waits for it."""
        self._next_find = 0.0

    def step(self, now: float, doubtful: bool) -> None:
        """Ask what is due.  ``doubtful``: there are orders that may have brought machines that nobody knows of."""
        if self._lane.busy:
            return
        if doubtful and now >= self._next_find:
            self._next_find = now + FIND_SECONDS
            session = self._register.session
            self._lane.start(lambda provider: provider.find(session), self._listed, now)
            return
        if now >= self._next_look:
            self._next_look = float("inf")
            if ids := [machine.id for machine in self._register if not machine.over]:
                self._lane.start(lambda provider: provider.describe(ids), self._described, now)

    def due_at(self) -> float:
        """When `step` has something to do, if nothing else happens."""
        return float("inf") if self._lane.busy else self._next_look

    def _listed(self, outcome: object) -> None:
        self.listed_at = time.monotonic()
        if isinstance(outcome, list):
            self.on_found(outcome)
        else:
            self._complain(outcome)

    def _described(self, outcome: object) -> None:
        now = time.monotonic()
        if not isinstance(outcome, list):
            self._complain(outcome)
            self._failures += 1
            self._next_look = now + min(SLOWEST, 0.25 * 2 ** min(self._failures, 5))
            return
        self._complained, self._failures = False, 0
        for instance in outcome:
            machine = self._register.machines.get(instance.id)
            if machine and not machine.over:
                self._take_in(machine, instance, now)
        self._next_look = now + self._interval(now)

    def _complain(self, outcome: object) -> None:
        why = outcome if isinstance(outcome, CloudtaskError) else f"it answers with {type(outcome).__name__}"
        self._register.say(f"# the provider cannot say how machines stand: {why}", important=not self._complained)
        self._complained = True

    def _interval(self, now: float) -> float:
        if self._register.phased(Phase.BOOTING, Phase.DOOMED, Phase.LEAVING):
            return min(SLOWEST, max(QUICKEST, (now - self._changed) / 5))
        return SERVING_SECONDS

    def _take_in(self, machine: Machine, instance: Instance, now: float) -> None:
        if machine.instance is None or machine.instance.state is not instance.state:
            self._changed = now
        machine.instance, machine.looked_at = instance, now
        machine.absences = machine.absences + 1 if instance.state is InstanceState.ABSENT else 0
        if self._is_gone(machine, instance, now):
            self._went(machine, instance)
        elif machine.phase is Phase.LEAVING:
            if instance.exists and instance.state is not InstanceState.LEAVING and now - machine.asked_at > AGAIN_SECONDS:
                machine.phase = Phase.DOOMED
        elif instance.state in (InstanceState.STOPPED, InstanceState.LEAVING) and machine.phase in (Phase.BOOTING, Phase.SERVING):
            why = instance.note or f"the provider says that it is {instance.state.value}"
            self.on_gone(machine, instance.reclaimed or why, bool(instance.reclaimed))
            self._register.doom(machine, why)
        elif instance.reclaimed and not machine.reclaim_told and machine.phase in (Phase.BOOTING, Phase.SERVING):
            machine.reclaim_told = True
            self.on_reclaim(machine, instance.reclaimed)
        elif machine.phase is Phase.BOOTING and instance.state is InstanceState.RUNNING and instance.host:
            self.on_running(machine)

    def _is_gone(self, machine: Machine, instance: Instance, now: float) -> bool:
        if instance.state is InstanceState.GONE:
            return True
        return machine.absences >= _ABSENCES and now - machine.since >= self._settles

    def _went(self, machine: Machine, instance: Instance) -> None:
        if machine.phase in (Phase.BOOTING, Phase.SERVING):
            why = instance.reclaimed or instance.note or "the provider says that it is gone"
            self.on_gone(machine, why, bool(instance.reclaimed))
        elif machine.worker:
            self.on_destroyed(machine)
        self._register.gone(machine, time.time())
