"""The agent itself: who it obeys, what is due when, and one turn of its loop."""

import os
import sys
import time

from . import codec, guardian, keys, system
from .config import Config
from .departure import LEFT, STAYING, Departure
from .disk import Disk
from .ending import Marks
from .lease import Lease
from .link import Gone, Link
from .rooms import Rooms
from .runner import LOOK_EVERY
from .stillness import Stillness
from .switchboard import Switchboard
from .verbs import VERBS, Desk

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from .attempt import Attempt
    from .home import Home

VERSION = 1
_CHECK_EVERY = 60.0
_STILL = 10.0
"""Seconds between looks at jobs that the kernel watches for us."""


class Agent:
    """One worker of one session.  ``survives``: a logout does not kill it.  ``directory``: where the login began."""

    def __init__(self, of: "Home", listener: "socket.socket", survives: bool, directory: str) -> None:
        self._home = of
        self._survives = survives
        self._board = Switchboard(of, listener)
        self._rooms = Rooms(of, directory)
        self._departure = Departure(self._rooms)
        self._lease = Lease(self._rooms, self._departure)
        self._disk = Disk(self._rooms)
        self._desk = Desk(self._rooms, self._departure, self._lease, self._disk)
        self._stillness = Stillness(of.file("spool"))
        self._marks = Marks(self._rooms.session, self._rooms.worker)
        self._guardian = guardian.Guardian(of, self._marks)
        self._next_look = self._next_second = self._next_check = 0.0
        self._haunted: "list[list[int]]" = []
        """Attempts of an earlier agent that could not be ended."""
        self._board.on_frame, self._board.on_gone, self._board.on_child = self._on_frame, self._on_gone, self._on_child
        self._rooms.runner.started = self._started

    def begin(self) -> None:
        """Before any work: end what an agent before us left running, and remove the keys that others left."""
        store = self._rooms.store
        past = store.past
        if past.session and not self._home.rebooted and not guardian.end_jobs(self._home, self._marks, past.session):
            self._haunted = [[job, number] for job, number in past.open]
        store.journal.add('["agent",%d]' % os.getsid(0))
        store.flush()
        self._guardian.start()
        if os.path.exists(keys.path()):
            self._try_keys(lambda: keys.sweep(self._home, self._rooms.session))

    def run(self) -> None:
        """Until the departure is through."""
        while self._departure.phase != LEFT:
            self._turn()
        self._guardian.goodbye()
        self._board.close(self._rooms.courier.link, 10)

    def _turn(self) -> None:
        self._board.wait(self._patience())
        self._rooms.now = now = time.monotonic()
        self._timers(now)
        self._rooms.runner.fill_slots()
        self._rooms.store.flush()
        self._deliver(now)
        before = STAYING
        while self._departure.phase != before:
            before = self._departure.phase
            self._departure.step(now)
            self._deliver(now)

    def _patience(self) -> int:
        """Milliseconds until something is due."""
        runner, courier = self._rooms.runner, self._rooms.courier
        if runner.summing or self._board.hung_up or courier.due(self._rooms.now, runner.hungry):
            return 0
        due = min(self._next_check, runner.next_limit(), courier.due_at(), self._departure.due_at(), self._lease.due_at())
        if runner.running:
            due = min(due, self._next_look, self._next_second)
        return max(0, min(60000, int((due - time.monotonic()) * 1000) + 1))

    # --- what happens ------------------------------------------------------------------------------------------------

    def _on_child(self) -> None:
        for pid in self._rooms.runner.reap():
            if pid == self._guardian.pid:
                try:
                    self._guardian.start()
                except OSError as error:
                    self._rooms.courier.note("no guardian: %s" % error)

    def _on_gone(self, link: Link) -> None:
        if link is self._rooms.courier.link:
            self._rooms.courier.disconnect()

    def _on_frame(self, link: Link, header: "dict[str, object]", payload: bytes) -> None:
        try:
            self._act_on(link, str(header["t"]), header, payload)
        except (codec.ProtocolError, Gone):
            raise
        except Exception:
            complain(self._home)  # a bug; whatever a peer sends, the jobs run on
            raise codec.ProtocolError("the agent failed over a frame; see %s" % self._home.file("trouble"))

    def _act_on(self, link: Link, kind: str, header: "dict[str, object]", payload: bytes) -> None:
        self._rooms.now = time.monotonic()
        if kind == "hello":
            self._hello(link, header)
            return
        verb = VERBS.get(kind)
        if verb is None or link is not self._rooms.courier.link:
            raise codec.ProtocolError("no such frame: %.40s" % kind if verb is None else "a frame before hello")
        verb(self._desk, header, payload)

    # --- who is obeyed -----------------------------------------------------------------------------------------------

    def _hello(self, link: Link, header: "dict[str, object]") -> None:
        codec.whole(header.get("version"), 1)
        rank = codec.whole(header.get("epoch")), codec.whole(header.get("connection"))
        config = Config(rank[0], header.get("config"))
        if (config.session, config.worker) != (self._rooms.session, self._rooms.worker):
            raise codec.ProtocolError("this is the agent of %s.%d" % (self._rooms.session, self._rooms.worker))
        highest = self._highest()
        if rank < highest or (rank == highest and link is not self._rooms.courier.link):
            link.tell({"t": "overtaken", "epoch": highest[0]})
            self._board.dismiss(link)
            return
        for other in self._board.links:
            if other is not link and other.rank and not other.leaving:
                other.tell({"t": "overtaken", "epoch": rank[0]})
                self._board.dismiss(other)
        link.rank, link.leave_by = rank, 0.0
        self._obey(link, config)
        self._welcome(highest[0], header.get("acked") is not False)
        self._home.remember(epoch=rank[0], connection=rank[1], grace=config.grace)
        if config.public_key and not self._departure.under_way:
            self._authorise(config.public_key)

    def _highest(self) -> "tuple[int, int]":
        epoch, connection = self._home.state.get("epoch", 0), self._home.state.get("connection", -1)
        return (epoch, connection) if isinstance(epoch, int) and isinstance(connection, int) else (0, -1)

    def _obey(self, link: Link, config: Config) -> None:
        """Take over the settings.  A connection that says hello again has asked for what it wants already."""
        rooms = self._rooms
        if link is not rooms.courier.link:
            rooms.store.forget_staged()
            rooms.courier.connect(link)
        rooms.config = config
        rooms.runner.configure(config)
        self._departure.come_back()
        self._lease.renew()
        self._disk.check()
        self._disk.tell_again()

    def _welcome(self, epoch: int, acked: bool) -> None:
        courier, home = self._rooms.courier, self._home
        courier.tell(
            {
                "t": "welcome", "version": VERSION, "epoch": epoch, "pid": os.getpid(), "cpus": system.processors(),
                "python": sys.version.split()[0], "identity": home.identity, "fresh": home.fresh, "rebooted": home.rebooted,
                "ready": bool(home.state.get("ready")), "survives": self._survives, "root": os.getuid() == 0, "home": home.path,
                "leaving": self._departure.under_way,
            }
        )  # fmt: skip
        courier.inventory(acked)
        home.fresh = False
        if not self._survives:
            courier.note("this machine ends what a logout leaves behind: jobs will not survive a cut of the connection")
        if self._haunted:
            courier.tell({"t": "stuck", "jobs": self._haunted})

    def _authorise(self, public_key: str) -> None:
        self._try_keys(lambda: keys.authorise(self._home, self._rooms.session, public_key))

    def _try_keys(self, act: "Callable[[], None]") -> None:
        try:
            act()
        except keys.KeyTrouble as trouble:
            self._rooms.courier.note(str(trouble))

    # --- time --------------------------------------------------------------------------------------------------------

    def _timers(self, now: float) -> None:
        runner = self._rooms.runner
        runner.check_limits(now)
        runner.sum_further()
        if runner.running and now >= self._next_look:
            self._look(now)
        if runner.running and now >= self._next_second:
            self._each_second(now)
        if now >= self._next_check or self._board.hung_up:
            self._next_check = now + _CHECK_EVERY
            self._board.check_socket()
            self._each_second(now)
            self._board.drop_the_late(now)
        self._lease.step(now)

    def _look(self, now: float) -> None:
        """See what the running attempts have written.  While they write nothing the kernel is asked to say when they do."""
        runner = self._rooms.runner
        was_still = self._stillness.kept
        seen = runner.look()
        if self._stillness.observe(seen, now) and not was_still:
            self._board.watch(self._stillness.fd, self._disturbed)
            if runner.look() != seen:
                self._stillness.end()  # written before the watch was up
        self._next_look = now + (_STILL if self._stillness.kept else LOOK_EVERY)
        for attempt in runner.running.values():
            self._rooms.courier.written(attempt)

    def _disturbed(self) -> None:
        self._stillness.end()
        self._next_look = self._next_second = 0.0

    def _started(self, attempt: "Attempt") -> None:
        if self._stillness.kept:
            self._disturbed()
        self._rooms.courier.started(attempt)

    def _each_second(self, now: float) -> None:
        if now - self._next_second > 1:
            self._rooms.runner.each_second()  # nothing ran for a while: what was known then says nothing
        self._next_second = now + (_STILL if self._stillness.kept else 1)
        self._rooms.runner.each_second()
        self._disk.check()

    # --- telling -----------------------------------------------------------------------------------------------------

    def _deliver(self, now: float) -> None:
        self._disk.tell()
        courier = self._rooms.courier
        link = courier.link
        if link is None:
            return
        try:
            while not link.blocked:
                if courier.due(now, self._rooms.runner.hungry):
                    courier.flush()
                if link.empty:
                    break
                self._board.write(link)
        except Gone:
            self._board.drop(link)


def complain(of: "Home") -> None:
    """Put a traceback into the home, where somebody may look for it.  Always a bug."""
    import traceback  # 3 ms that no start needs to wait for

    try:
        fd = os.open(of.file("trouble"), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "w") as file:
            traceback.print_exc(file=file)
    except OSError:
        pass
