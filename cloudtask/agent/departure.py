"""How an agent leaves: on `abort`, on `finish`, or when its lease is over.  It can do all of it alone.

The jobs end, what waits is given back, the clean-up command runs, the key line goes; then the home, at once where the controller has
every result on its disk, else when it has, or a day later.
"""

import time

from . import keys
from .attempt import POST, Attempt, key_of
from .config import as_bytes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .rooms import Rooms

HELD = 86400.0
"""Seconds for which results are kept that nobody fetches."""
FAREWELL = 30.0
"""Seconds for which the last output may take to reach a controller that is connected."""
STAYING, ENDING, CLEANING, TELLING, WAITING, LEFT = range(6)


class Departure:
    """``phase``: not begun; jobs are ending; the clean-up command runs; the last output is sent; results wait; gone."""

    def __init__(self, rooms: "Rooms") -> None:
        self._rooms = rooms
        self.phase = STAYING
        self._until = 0.0
        self._held = HELD

    def begin(self, keep: bool = True) -> None:
        """Abort or finish.  Once begun it goes through, whatever becomes of the connection.  ``keep``: results may be fetched later."""
        if self.phase == STAYING:
            self._held = HELD if keep else 0.0
            self.phase = ENDING
            self._rooms.runner.empty_queue("aborted")
            everything = list(self._rooms.runner.running.values())
            self._rooms.runner.end(everything, "aborted", time.monotonic())

    @property
    def under_way(self) -> bool:
        """True from the beginning until all that is left to do is to wait for acknowledgements."""
        return self.phase not in (STAYING, WAITING)

    def come_back(self) -> None:
        """A controller has come for the results after all, and may send new jobs."""
        if self.phase == WAITING:
            self.phase = STAYING

    def step(self, now: float) -> None:
        """Go on as far as can be gone now."""
        if self.phase == ENDING and self._rooms.runner.idle:
            self._run_post()
            self.phase = CLEANING
        if self.phase == CLEANING and self._rooms.runner.idle:
            self._clean()
            self._until = now + FAREWELL
            self.phase = TELLING
        if self.phase == TELLING and (self._rooms.courier.quiet or now >= self._until):
            self._until = now + self._held
            self.phase = WAITING
            if self._rooms.store.left():
                self._done()
        if self.phase == WAITING and (now >= self._until or not self._rooms.store.left()):
            # Gone first, then said: whoever hears of it may look.
            self._rooms.home.remove()
            self._done()
            self.phase = LEFT

    def due_at(self) -> float:
        """When `step` has something to do though nothing happens."""
        return self._until if self.phase in (TELLING, WAITING) else float("inf")

    def _run_post(self) -> None:
        rooms = self._rooms
        if rooms.config is None or not rooms.config.post:
            return
        number = rooms.config.epoch
        while rooms.store.knows(key_of(POST, number)):
            number += 1
        code = as_bytes(rooms.config.post)
        rooms.runner.submit(Attempt(POST, number, rooms.config.post_timeout, code, rooms.courier.serial))

    def _clean(self) -> None:
        rooms = self._rooms
        rooms.home.remember(ready=False)
        try:
            if rooms.home.state.get("key"):
                keys.withdraw(rooms.home, rooms.session)
        except keys.KeyTrouble as trouble:
            rooms.courier.note(str(trouble))

    def _done(self) -> None:
        self._rooms.courier.tell({"t": "done", "left": self._rooms.store.left()})
