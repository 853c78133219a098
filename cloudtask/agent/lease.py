"""The lease: how long the agent goes on without a sign of life of the main process."""

from .departure import HELD
from .runner import NEVER

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .departure import Departure
    from .rooms import Rooms

_FIRST = 3600.0
"""Seconds for which an agent waits for its first hello."""


class Lease:
    """When it is over the agent finishes what it runs, keeps the results for a day, and goes."""

    def __init__(self, rooms: "Rooms", departure: "Departure") -> None:
        self._rooms = rooms
        self._departure = departure
        self._end = rooms.now + _FIRST
        self._hold_until = 0.0

    @property
    def over(self) -> bool:
        """True from its end until a controller comes."""
        return self._hold_until > 0

    def renew(self) -> None:
        """The controller lives."""
        if self._rooms.config is not None:
            self._end = self._rooms.now + self._rooms.config.lease
            self._rooms.home.renew_lease(self._rooms.config.lease)
            self._hold_until = 0.0

    def due_at(self) -> float:
        """When `step` has something to do."""
        return self._hold_until or self._end

    def step(self, now: float) -> None:
        """Do what its end asks for, if it has come."""
        if now < self._end:
            return
        if not self._hold_until:
            self._rooms.runner.empty_queue("the lease is over")
            self._hold_until = now + HELD
        if self._rooms.runner.idle and (now >= self._hold_until or not self._rooms.store.left()):
            self._departure.begin(keep=False)
            self._end, self._hold_until = NEVER, 0.0
        elif now >= self._hold_until:
            self._hold_until = now + 60  # something runs that cannot be ended
