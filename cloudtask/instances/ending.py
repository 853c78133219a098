"""The end of machines: journalled, then asked for, and asked for again until the provider says that they are gone."""

from __future__ import annotations

import time

from cloudtask.errors import CloudtaskError
from cloudtask.instances.calls import Lane
from cloudtask.instances.machine import Machine, Phase, Register
from cloudtask.session import records
from cloudtask.turn import Turn

_LONGEST_WAIT = 60.0


class Ending:
    """Destroys what is doomed, as many at a time as there are."""

    def __init__(self, register: Register, lane: Lane, turn: Turn) -> None:
        self._register = register
        self._lane = lane
        self._turn = turn
        self._starting = False

    def step(self, now: float) -> None:
        """Ask for the end of what is doomed."""
        doomed = [machine for machine in self._register.phased(Phase.DOOMED) if now >= machine.ask_after]
        if not doomed or self._lane.busy or self._starting:
            return
        for why in dict.fromkeys(machine.why for machine in doomed):
            ids = [machine.id for machine in doomed if machine.why == why and not machine.asked_at]
            if ids:
                self._register.write(records.destroying(ids, why, time.time()), sync=True)
        self._starting = True
        self._turn.afterwards(lambda: self._ask(doomed))

    def _ask(self, doomed: list[Machine]) -> None:
        self._starting = False
        ids = [machine.id for machine in doomed]
        now = time.monotonic()
        for machine in doomed:
            machine.phase, machine.asked_at = Phase.LEAVING, now
        self._lane.start(lambda provider: provider.destroy(ids), lambda outcome: self._answered(doomed, outcome), now)

    def _answered(self, doomed: list[Machine], outcome: object) -> None:
        if not isinstance(outcome, CloudtaskError):
            return
        now = time.monotonic()
        for machine in doomed:
            if machine.phase is Phase.LEAVING:
                machine.refusals += 1
                machine.phase = Phase.DOOMED
                machine.ask_after = now + min(_LONGEST_WAIT, 0.5 * 2 ** min(machine.refusals, 10))
        names = " ".join(machine.id for machine in doomed)
        self._register.say(f"# failed to destroy worker {names}: {outcome}", important=doomed[0].refusals == 1)
