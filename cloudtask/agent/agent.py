"""The agent itself: who it obeys, what is due when, and one turn of its loop."""

import os
import sys
import time

from . import codec, guardian, keys, system
from .config import Config
from .courier import Courier
from .departure import HELD, LEFT, STAYING, Departure
from .ending import Marks
from .link import Gone, Link
from .runner import LOOK_EVERY, NEVER, Runner
from .stillness import Stillness
from .store import Store
from .switchboard import Switchboard
from .verbs import VERBS

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
_ENOUGH = 256 * 1024
"""Free bytes below which the disk counts as full."""


class Agent:
    """One worker of one session.  ``survives``: a logout does not kill it."""

    def __init__(self, of: "Home", listener: "socket.socket", survives: bool, directory: str) -> None:
        self.home = of
        self.now = time.monotonic()
        self.survives = survives
        self.session, _, number = of.key.partition("~")[0].rpartition(".")
        self.worker = int(number) if number.isdigit() else 0
        self._marks = Marks(self.session, self.worker)
        self._guardian = guardian.Guardian(of, self._marks)
        self.board = Switchboard(of, listener)
        self.store = Store(of)
        self.runner = Runner(self.store, directory)
        self.courier = Courier(self.store)
        self.departure = Departure(self)
        self._stillness = Stillness(of.file("spool"))
        self.config: "Config | None" = None
        self._lease_end = self.now + 3600.0
        self._hold_until = 0.0
        """The lease is over, and until then its results are kept; 0: it is not."""
        self._next_look = self._next_second = self._next_check = 0.0
        self._told_full = False
        self._haunted: "list[list[int]]" = []
        """Attempts of an earlier agent that could not be ended."""
        self._connect_rooms()

    def _connect_rooms(self) -> None:
        self.board.on_frame, self.board.on_gone, self.board.on_child = self._on_frame, self._on_gone, self._on_child
        self.runner.started, self.runner.ended = self._started, self.courier.ended
        self.runner.returned, self.runner.note = self.courier.returned, self.courier.note
        self.runner.endings.stuck = self.courier.stuck
        self.runner.worried = self.check_disk

    def begin(self) -> None:
        """Before any work: end what an agent before us left running, and remove the keys that others left."""
        past = self.store.past
        if past.session and not self.home.rebooted and not guardian.end_jobs(self.home, self._marks, past.session):
            self._haunted = [[job, number] for job, number in past.open]
        self.store.journal.add('["agent",%d]' % os.getsid(0))
        self.store.flush()
        self._guardian.start()
        if os.path.exists(keys.path()):
            self._try_keys(lambda: keys.sweep(self.home, self.session))

    def run(self) -> None:
        """Until the departure is through."""
        while self.departure.phase != LEFT:
            self._turn()
        self._guardian.goodbye()
        self.board.close(self.courier.link, 10)

    def _turn(self) -> None:
        self.board.wait(self._patience())
        self.now = time.monotonic()
        self._timers(self.now)
        self.runner.fill_slots()
        self.store.flush()
        self._deliver()
        before = STAYING
        while self.departure.phase != before:
            before = self.departure.phase
            self.departure.step(self.now)
            self._deliver()

    def _patience(self) -> int:
        """Milliseconds until something is due."""
        if self.runner.summing or self.board.hung_up or self.courier.due(self.now, self.runner.hungry):
            return 0
        rooms = self.runner.next_limit(), self.courier.due_at(), self.departure.due_at()
        due = min(self._next_check, self._hold_until or self._lease_end, *rooms)
        if self.runner.running:
            due = min(due, self._next_look, self._next_second)
        return max(0, min(60000, int((due - time.monotonic()) * 1000) + 1))

    # --- what happens ------------------------------------------------------------------------------------------------

    def _on_child(self) -> None:
        for pid in self.runner.reap():
            if pid == self._guardian.pid:
                try:
                    self._guardian.start()
                except OSError as error:
                    self.courier.note("no guardian: %s" % error)

    def _on_gone(self, link: Link) -> None:
        if link is self.courier.link:
            self.courier.disconnect()

    def _on_frame(self, link: Link, header: "dict[str, object]", payload: bytes) -> None:
        try:
            self._act_on(link, str(header["t"]), header, payload)
        except (codec.ProtocolError, Gone):
            raise
        except Exception:
            complain(self.home)  # a bug; whatever a peer sends, the jobs run on
            raise codec.ProtocolError("the agent failed over a frame; see %s" % self.home.file("trouble"))

    def _act_on(self, link: Link, kind: str, header: "dict[str, object]", payload: bytes) -> None:
        if kind == "hello":
            self._hello(link, header)
            return
        verb = VERBS.get(kind)
        if verb is None or link is not self.courier.link:
            raise codec.ProtocolError("no such frame: %.40s" % kind if verb is None else "a frame before hello")
        self.now = time.monotonic()
        verb(self, header, payload)

    # --- who is obeyed -----------------------------------------------------------------------------------------------

    def _hello(self, link: Link, header: "dict[str, object]") -> None:
        codec.whole(header.get("version"), 1)
        rank = codec.whole(header.get("epoch")), codec.whole(header.get("connection"))
        config = Config(rank[0], header.get("config"))
        if (config.session, config.worker) != (self.session, self.worker):
            raise codec.ProtocolError("this is the agent of %s.%d" % (self.session, self.worker))
        highest = self._highest()
        if rank < highest or (rank == highest and link is not self.courier.link):
            link.tell({"t": "overtaken", "epoch": highest[0]})
            self.board.dismiss(link)
            return
        for other in self.board.links:
            if other is not link and other.rank and not other.leaving:
                other.tell({"t": "overtaken", "epoch": rank[0]})
                self.board.dismiss(other)
        link.rank, link.leave_by = rank, 0.0
        self._obey(link, config, highest[0], header)

    def _highest(self) -> "tuple[int, int]":
        epoch, connection = self.home.state.get("epoch", 0), self.home.state.get("connection", -1)
        return (epoch, connection) if isinstance(epoch, int) and isinstance(connection, int) else (0, -1)

    def _obey(self, link: Link, config: Config, epoch_before: int, header: "dict[str, object]") -> None:
        """Take over the settings, and tell all that is known.  On a connection that has said hello before, nothing is asked for again."""
        assert link.rank
        if link is not self.courier.link:
            self.store.forget_staged()
            self.courier.connect(link)
        self.config = config
        self.runner.configure(config)
        self.departure.come_back()
        self._welcome(epoch_before, header.get("acked") is not False)
        self.home.remember(epoch=link.rank[0], connection=link.rank[1], grace=config.grace)
        self.renew_lease()
        self.check_disk()
        if config.public_key and not self.departure.under_way:
            self._authorise(config.public_key)

    def _welcome(self, epoch: int, acked: bool) -> None:
        self.courier.tell(
            {
                "t": "welcome", "version": VERSION, "epoch": epoch, "pid": os.getpid(), "cpus": system.processors(),
                "python": sys.version.split()[0], "identity": self.home.identity, "fresh": self.home.fresh,
                "rebooted": self.home.rebooted, "ready": bool(self.home.state.get("ready")), "survives": self.survives,
                "root": os.getuid() == 0, "home": self.home.path, "leaving": self.departure.under_way,
            }
        )  # fmt: skip
        self.courier.inventory(acked)
        self.home.fresh = False
        if not self.survives:
            self.courier.note("this machine ends what a logout leaves behind: jobs will not survive a cut of the connection")
        if self._haunted:
            self.courier.tell({"t": "stuck", "jobs": self._haunted})
        self._told_full = False

    def _authorise(self, public_key: str) -> None:
        self._try_keys(lambda: keys.authorise(self.home, self.session, public_key))

    def _try_keys(self, act: "Callable[[], None]") -> None:
        try:
            act()
        except keys.KeyTrouble as trouble:
            self.courier.note(str(trouble))

    @property
    def refuses_work(self) -> str:
        """Why nothing new is taken; empty when it is."""
        if self.departure.under_way:
            return "leaving"
        if self._hold_until:
            return "the lease is over"
        return "full" if self.runner.full else ""

    # --- time --------------------------------------------------------------------------------------------------------

    def _timers(self, now: float) -> None:
        self.runner.check_limits(now)
        self.runner.sum_further()
        if self.runner.running and now >= self._next_look:
            self._look(now)
        if self.runner.running and now >= self._next_second:
            self._each_second(now)
        if now >= self._next_check or self.board.hung_up:
            self._next_check = now + _CHECK_EVERY
            self.board.check_socket()
            self._each_second(now)
            self.board.drop_the_late(now)
        if now >= (self._hold_until or self._lease_end):
            self._lease_is_over(now)

    def _look(self, now: float) -> None:
        """See what the running attempts have written.  While they write nothing the kernel is asked to say when they do."""
        was_still = self._stillness.kept
        seen = self.runner.look()
        if self._stillness.observe(seen, now) and not was_still:
            self.board.watch(self._stillness.fd, self._disturbed)
            if self.runner.look() != seen:
                self._stillness.end()  # written before the watch was up
        self._next_look = now + (_STILL if self._stillness.kept else LOOK_EVERY)
        for attempt in self.runner.running.values():
            self.courier.written(attempt)

    def _disturbed(self) -> None:
        self._stillness.end()
        self._next_look = self._next_second = 0.0

    def _started(self, attempt: "Attempt") -> None:
        if self._stillness.kept:
            self._disturbed()
        self.courier.started(attempt)

    def _each_second(self, now: float) -> None:
        if now - self._next_second > 1:
            self.runner.each_second()  # nothing ran for a while: what was known then says nothing
        self._next_second = now + (_STILL if self._stillness.kept else 1)
        self.runner.each_second()
        self.check_disk()

    def renew_lease(self) -> None:
        """The controller lives."""
        if self.config is not None:
            self._lease_end = self.now + self.config.lease
            self.home.renew_lease(self.config.lease)
            self._hold_until = 0.0

    def _lease_is_over(self, now: float) -> None:
        """Finish what runs, keep the results for a day, then go."""
        if not self._hold_until:
            self.runner.empty_queue("the lease is over")
            self._hold_until = now + HELD
        if self.runner.idle and (now >= self._hold_until or not self.store.left()):
            self.departure.begin(keep=False)
            self._lease_end, self._hold_until = NEVER, 0.0

    # --- disk --------------------------------------------------------------------------------------------------------

    def check_disk(self) -> None:
        """Stop taking work when the disk is full, and take it again when it is not."""
        free = system.free_bytes(self.home.path)
        if not self.store.flush() or 0 <= free < _ENOUGH:
            self.runner.full = self.runner.full or self.store.trouble or "only %d bytes are free" % free
        elif self.runner.full and self.store.journal.keep_reserve():
            self.runner.full = ""
            self._told_full = False

    def _tell_full(self) -> None:
        if not self._told_full and self.courier.link:
            self._told_full = True
            self.courier.tell({"t": "full", "error": "%s: %s" % (self.home.path, self.runner.full)})
        self.runner.empty_queue("full")

    # --- telling -----------------------------------------------------------------------------------------------------

    def _deliver(self) -> None:
        if self.runner.full:
            self._tell_full()
        link = self.courier.link
        if link is None:
            return
        try:
            while not link.blocked:
                if self.courier.due(self.now, self.runner.hungry):
                    self.courier.flush()
                if link.empty:
                    break
                self.board.write(link)
        except Gone:
            self.board.drop(link)


def complain(of: "Home") -> None:
    """Put a traceback into the home, where somebody may look for it.  Always a bug."""
    import traceback  # 3 ms that no start needs to wait for

    try:
        fd = os.open(of.file("trouble"), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "w") as file:
            traceback.print_exc(file=file)
    except OSError:
        pass
