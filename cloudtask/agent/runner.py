"""Queue and slots: starts attempts, reaps them, keeps their time limits, and concludes their results."""

import heapq
import os
import signal
import time
from collections import deque

from . import ending, processes, system
from .attempt import CALM, QUEUED, RUNNING, Attempt

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from .config import Config
    from .store import Store

LONGEST_ARGUMENT = 100 * 1024
"""Code up to this many bytes is an argument of the shell (execve takes 128 KiB), longer code stands in a file."""
LOOK_EVERY = 0.2
"""Seconds between two looks at the output of what runs."""
_SUMS_A_TURN = 4
NEVER = float("inf")


class Runner:
    """``started``, ``ended``, ``returned``, ``stuck``, ``note`` are called with what happens; see `courier.Courier`."""

    def __init__(self, store: "Store", directory: str) -> None:
        self.store = store
        self.queue: "deque[Attempt]" = deque()
        self.running: "dict[int, Attempt]" = {}
        self.summing: "deque[Attempt]" = deque()
        self.full = ""
        """Why nothing may start: the disk."""
        self.started: "Callable[[Attempt], None]" = _nobody
        self.ended: "Callable[[Attempt], None]" = _nobody
        self.returned: "Callable[[list[Attempt], str], None]" = _nobody_returned
        self.note: "Callable[[str], None]" = _nobody_noted
        self.worried: "Callable[[], None]" = _nothing
        """Called when something failed, and a full disk may be why."""
        self.endings = ending.Endings(self._settle, _nobody)
        self._starter = processes.Starter()
        self._login_directory = directory
        self._directory = directory
        self._slots: "list[int]" = []
        self._count = 0
        self._config: "Config | None" = None
        self._environment: "dict[bytes, bytes]" = {}
        self._nearest = NEVER
        self._kills_known = self._kills_before = system.out_of_memory_kills()

    # --- what the controller may change ------------------------------------------------------------------------------

    def configure(self, config: "Config") -> None:
        """Take over the settings of a hello.  What runs keeps those that it was started with."""
        self._config = config
        self.endings.grace = config.grace
        self.endings.marks = ending.Marks(config.session, config.worker)
        self._environment = config.environment()
        self._directory = os.path.join(self._login_directory, os.path.expanduser(config.workdir or ""))
        if config.workdir is None:
            try:
                os.chdir(self._login_directory)
            except OSError:
                pass  # somebody removed it; jobs run where we are
        self._count = config.slots or system.processors()
        busy = {attempt.slot for attempt in self.running.values()}
        self._slots = [slot for slot in range(1, self._count + 1) if slot not in busy]

    def submit(self, attempt: Attempt) -> None:
        """Queue an attempt.  Set-up and clean-up commands go first and take no slot."""
        self.store.admit(attempt)
        if attempt.job < 0:
            self._start_these([attempt])
        else:
            self.queue.append(attempt)

    def take_back(self, attempts: "list[Attempt]", why: str) -> None:
        """These never will start."""
        if not attempts:
            return
        for attempt in attempts:
            self.store.forget(attempt)
        self.returned(attempts, why)

    def empty_queue(self, why: str, count: int = -1) -> None:
        """Give back up to ``count`` attempts that wait, newest first; all with -1."""
        taken: "list[Attempt]" = []
        while self.queue and count != len(taken):
            taken.append(self.queue.pop())
        self.take_back(taken, why)

    def end(self, attempts: "list[Attempt]", why: str, now: float) -> None:
        """End what runs, give back what waits."""
        waiting = {attempt for attempt in attempts if attempt.state == QUEUED}
        if waiting:
            self.queue = deque(attempt for attempt in self.queue if attempt not in waiting)
            self.take_back(list(waiting), why)
        for attempt in attempts:
            if attempt.state == RUNNING:
                self.endings.ask(attempt, why, now)

    @property
    def idle(self) -> bool:
        """Nothing runs, waits or is being concluded, but for what cannot be ended."""
        return not (self.queue or self.summing) and all(attempt.stuck for attempt in self.running.values())

    @property
    def hungry(self) -> bool:
        """A slot is free and nothing waits for it."""
        return not self.queue and len(self._slots) > 0

    # --- starting ----------------------------------------------------------------------------------------------------

    def fill_slots(self) -> None:
        """Start as much of the queue as there are slots for."""
        if not self.queue or not self._slots or self.full:
            return
        batch = []
        while self.queue and self._slots:
            attempt = self.queue.popleft()
            attempt.slot = heapq.heappop(self._slots)
            batch.append(attempt)
        self._start_these(batch)

    def _start_these(self, batch: "list[Attempt]") -> None:
        assert self._config is not None
        if not self.store.begin(batch, self._config.epoch):
            self._disk_is_full(self.store.trouble, batch)
            return
        for number, attempt in enumerate(batch):
            try:
                attempt.out, attempt.err = self.store.spool.create(attempt.job, attempt.number)
            except OSError as error:
                for late in batch[number:]:
                    self.store.take_back(late)
                self._disk_is_full(error.strerror or str(error), batch[number:])
                return
            self._start(attempt)

    def _disk_is_full(self, reason: str, batch: "list[Attempt]") -> None:
        self.full = reason or "no space"
        for attempt in batch:
            self._free(attempt)
        self.take_back(batch, "full")

    def _start(self, attempt: Attempt) -> None:
        attempt.state = RUNNING
        attempt.began = time.monotonic()
        try:
            self._enter_directory(attempt)
            attempt.pid = self._starter.start(self._arguments(attempt), self._variables(attempt), attempt.out.fd, attempt.err.fd)
        except (OSError, ValueError) as error:
            where = getattr(error, "filename", None)
            self.note("a job could not be started: %s%s" % (getattr(error, "strerror", None) or error, ": %s" % where if where else ""))
            attempt.why = "unstarted"
            self._settle(attempt)
            return
        self.running[attempt.pid] = attempt
        if attempt.timeout:
            attempt.deadline = attempt.began + attempt.timeout
            self._nearest = min(self._nearest, attempt.deadline)
        self.started(attempt)

    def _enter_directory(self, attempt: Attempt) -> None:
        # posix_spawn knows no directory: the child's is ours.  Each time anew, because a job may replace the directory.
        assert self._config is not None
        if self._config.workdir is None:
            return
        try:
            os.chdir(self._directory)
        except OSError:
            if attempt.job > 0:
                raise
            os.chdir(self._login_directory)  # the set-up command may be there to make it

    def _arguments(self, attempt: Attempt) -> "list[bytes]":
        if attempt.code is not None and len(attempt.code) > LONGEST_ARGUMENT:
            path = self.store.code_path(attempt.job, attempt.number)
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with os.fdopen(fd, "wb") as file:
                file.write(attempt.code)
            attempt.code = None
        if attempt.code is None:
            return [b"/bin/sh", os.fsencode(self.store.code_path(attempt.job, attempt.number))]
        return [b"/bin/sh", b"-c", attempt.code]

    def _variables(self, attempt: Attempt) -> "dict[bytes, bytes]":
        environment = self._environment
        environment[b"CLOUDTASK_ATTEMPT"] = b"%d" % attempt.number
        environment[b"CLOUDTASK_SLOT"] = b"%d" % attempt.slot
        if attempt.job > 0:
            environment[b"CLOUDTASK_JOB"] = b"%d" % attempt.job
            return environment
        return {name: value for name, value in environment.items() if name != b"CLOUDTASK_JOB"}

    # --- ending ------------------------------------------------------------------------------------------------------

    def reap(self) -> "list[int]":
        """Take the status of all children that have exited; returns those that are no attempt's."""
        strangers: "list[int]" = []
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return strangers
            if pid == 0:
                return strangers
            attempt = self.running.get(pid)
            if attempt is None:
                strangers.append(pid)
                continue
            now = time.monotonic()
            attempt.status = status
            attempt.seconds = now - attempt.began
            attempt.cpu = usage.ru_utime + usage.ru_stime
            attempt.memory = usage.ru_maxrss
            if attempt.phase == CALM and not system.group_lives(pid):
                self._settle(attempt)
            else:
                self.endings.shell_gone(attempt, now)

    def _settle(self, attempt: Attempt) -> None:
        """All its processes are gone: free the slot, then see to the output."""
        assert self._config is not None
        self.running.pop(attempt.pid, None)
        self._free(attempt)
        most = self._config.max_output
        done = self.store.spool.settle(attempt.out, most)
        if self.store.spool.settle(attempt.err, most) and done:
            self._conclude(attempt)
        else:
            self.summing.append(attempt)

    def _free(self, attempt: Attempt) -> None:
        if 0 < attempt.slot <= self._count:
            heapq.heappush(self._slots, attempt.slot)

    def sum_further(self) -> None:
        """Go on with the checksums of long outputs, for some milliseconds."""
        for _ in range(_SUMS_A_TURN):
            if not self.summing:
                return
            attempt = self.summing[0]
            if self.store.spool.sum_further(attempt.out) and self.store.spool.sum_further(attempt.err):
                self.summing.popleft()
                self._conclude(attempt)
            else:
                self.summing.rotate(-1)

    def _conclude(self, attempt: Attempt) -> None:
        word, value = self._judge(attempt)
        attempt.conclude(word, value)
        self.store.end(attempt)
        self.ended(attempt)
        if value:
            self.worried()

    def _judge(self, attempt: Attempt) -> "tuple[str, int]":
        """The ending and its value."""
        if attempt.why or attempt.status is None:
            return attempt.why or "unstarted", 0
        number = os.WTERMSIG(attempt.status) if os.WIFSIGNALED(attempt.status) else 0
        value = number or os.WEXITSTATUS(attempt.status)
        if value in (signal.SIGKILL, 128 + signal.SIGKILL) and system.out_of_memory_kills() > self._kills_before:
            return "oom", signal.SIGKILL
        return ("signal" if number else "exit"), value

    # --- time --------------------------------------------------------------------------------------------------------

    def check_limits(self, now: float) -> None:
        """End what runs for longer than it may, and go on with what is being ended."""
        if now >= self._nearest:
            self._nearest = NEVER
            for attempt in self.running.values():
                if attempt.deadline and attempt.phase == CALM:
                    if now >= attempt.deadline:
                        self.endings.ask(attempt, "timeout", now)
                    else:
                        self._nearest = min(self._nearest, attempt.deadline)
        if self.endings.due and now >= self.endings.due:
            self.endings.sweep(now)

    def next_limit(self) -> float:
        """When `check_limits` has something to do."""
        return min(self._nearest, self.endings.due or NEVER)

    def look(self) -> "list[tuple[int, int, int]]":
        """See how much each running attempt has written: its key, and the bytes of its two streams."""
        if self._config is None:
            return []
        for attempt in self.running.values():
            self.store.spool.look(attempt.out, self._config.max_output)
            self.store.spool.look(attempt.err, self._config.max_output)
        return [(attempt.key, attempt.out.length, attempt.err.length) for attempt in self.running.values()]

    def each_second(self) -> None:
        """Remember how many processes the kernel has killed until now, and until a second ago: a job's KILL is judged by that."""
        self._kills_before, self._kills_known = self._kills_known, system.out_of_memory_kills()


def _nobody(attempt: Attempt) -> None:
    pass


def _nothing() -> None:
    pass


def _nobody_returned(attempts: "list[Attempt]", why: str) -> None:
    pass


def _nobody_noted(text: str) -> None:
    pass
