"""A full disk: nothing new starts, what waits is given back, and work is taken again when there is room."""

from . import system

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .rooms import Rooms

_ENOUGH = 256 * 1024
"""Free bytes below which the disk counts as full."""


class Disk:
    """Watches the disk that the home is on."""

    def __init__(self, rooms: "Rooms") -> None:
        self._rooms = rooms
        self._told = False
        rooms.runner.worried = self.check

    def check(self) -> None:
        """Stop taking work when the disk is full, and take it again when it is not."""
        runner, store = self._rooms.runner, self._rooms.store
        free = system.free_bytes(self._rooms.home.path)
        if not store.flush() or 0 <= free < _ENOUGH:
            runner.full = runner.full or store.trouble or "only %d bytes are free" % free
        elif runner.full and store.journal.keep_reserve():
            runner.full = ""
            self._told = False

    def tell(self) -> None:
        """If it is full: say so once to each controller, and give back what waits."""
        rooms = self._rooms
        if not rooms.runner.full:
            return
        if not self._told and rooms.courier.link:
            self._told = True
            rooms.courier.tell({"t": "full", "error": "%s: %s" % (rooms.home.path, rooms.runner.full)})
        rooms.runner.empty_queue("full")

    def tell_again(self) -> None:
        """Another controller listens now."""
        self._told = False
