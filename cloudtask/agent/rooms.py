"""What the parts of one agent share.  It decides nothing."""

import time

from .courier import Courier
from .runner import Runner
from .store import Store

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .config import Config
    from .home import Home


class Rooms:
    """One worker's home, attempts, slots, and the voice to its controller.

    ``config`` comes with the first hello.  ``now`` is the monotonic time of this turn.  ``directory`` is where the login began.
    """

    def __init__(self, home: "Home", directory: str) -> None:
        self.home = home
        self.session, _, number = home.key.partition("~")[0].rpartition(".")
        self.worker = int(number) if number.isdigit() else 0
        self.store = Store(home)
        self.runner = Runner(self.store, directory)
        self.courier = Courier(self.store)
        self.config: "Config | None" = None
        self.now = time.monotonic()
        self.runner.started, self.runner.ended = self.courier.started, self.courier.ended
        self.runner.returned, self.runner.note = self.courier.returned, self.courier.note
        self.runner.endings.stuck = self.courier.stuck
