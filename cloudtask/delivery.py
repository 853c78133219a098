"""What of the jobs' output goes to standard output, and when: after the journal knows of it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from cloudtask.model import Result
from cloudtask.relay import Relay
from cloudtask.turn import Turn
from cloudtask.workers import messages as m


class Delivery:
    """Hands results to the relay (None: nothing is shown); ``by_line`` as they come, else each job's whole output at its end."""

    def __init__(self, relay: Relay | None, turn: Turn, *, by_line: bool) -> None:
        self._relay = relay
        self._turn = turn
        self.by_line = by_line

    def ends(self, shown: Sequence[tuple[Result, bool]]) -> None:
        """Attempts that ended, and whether each one's job is settled by it."""
        relay = self._relay
        if relay is None or not shown:
            return
        if not self.by_line:
            self._turn.afterwards(lambda: relay.whole(*((result.job, result.span) for result, _ in shown)))
            return
        for result, settled in shown:
            self._turn.afterwards(partial(relay.end, result.job, result.attempt, settled))

    def nothing(self, job: int) -> None:
        """A job was settled without an output of its own."""
        if relay := self._relay:
            self._turn.afterwards(lambda: relay.whole((job, None)))

    def piece(self, message: m.Output) -> None:
        """A piece of a running attempt's output."""
        relay = self._relay
        if relay and self.by_line:
            place = (message.stream, message.position, message.file, message.offset, message.length)
            self._turn.afterwards(lambda: relay.piece(message.job, message.attempt, place))
