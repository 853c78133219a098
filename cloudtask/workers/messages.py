"""What the main process and a supervisor say to each other, one named tuple for each kind.

Both ends are our own processes of one version, so the tuples are pickled (see ``mailbox``).  Attempts are plain
``(job, number)`` pairs or :class:`~cloudtask.model.Attempt`, which compare equal.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from cloudtask.model import Address, Attempt, Identity, Result
from cloudtask.transports import ConnectOptions

PRE_JOB = -1
"""The job number under which ``pre`` runs in frames and logs."""
POST_JOB = -2


@dataclass(frozen=True, kw_only=True)
class WorkerSpec:
    """All that a supervisor has to know about its worker.  Durations in seconds, sizes in bytes."""

    number: int
    address: Address
    transport: str
    connect: ConnectOptions
    session: str
    directory: str
    epoch: int
    first_connection: int
    slots: int | None
    timeout: float
    setup_timeout: float
    kill_grace: float
    lease: float
    heartbeat: float
    lost_timeout: float
    max_output: int
    prefetch: bool
    cautious: bool
    """Send nothing ahead while jobs fail."""
    tell_output: bool
    env: tuple[str, ...]
    workdir: str | None
    pre: str | None
    post: str | None
    overlay: str | None
    public_key: str | None
    ask_only: bool
    """Only ask what the agent has and look after that: the worker belongs to an earlier run."""
    known: bool
    """The journal says that it was reached before: no first contact, so it may be away for --lost-timeout."""
    boot_timeout: float | None = None
    """It was just launched: first contact may take so long, whatever goes wrong meanwhile."""
    timer: str | None = None
    """The script that powers the machine off when nobody uses it, where it is to be started once there is contact."""


# --- from the main process -------------------------------------------------------------------------------------------


class Work(NamedTuple):
    """Run these: ``(job, attempt number, shell code)``."""

    jobs: list[tuple[int, int, bytes]]


class Adopt(NamedTuple):
    """The answer to :class:`Inventory`: deliver ``wanted``, forget ``recorded`` (the journal has it), end ``unwanted``."""

    wanted: list[Attempt]
    recorded: list[Attempt]
    unwanted: list[Attempt]


class Cancel(NamedTuple):
    """End these attempts; ``why`` is the ending they get (``aborted``, ``superseded``)."""

    attempts: list[Attempt]
    why: str


class Recall(NamedTuple):
    """Give back up to ``most`` attempts that have not started."""

    most: int


class Durable(NamedTuple):
    """The journal has these ends on disk: the agent may forget them once the worker log is on disk too."""

    attempts: list[Attempt]


class Beat(NamedTuple):
    """The main process lives."""

    number: int


class Epoch(NamedTuple):
    """The run took a higher epoch: greet the agent again with it."""

    epoch: int


class Finish(NamedTuple):
    """Nothing more to do: clean the worker up (post, key, home) and leave.  ``hold``: its machine stays for so many seconds."""

    hold: int = 0


class Abort(NamedTuple):
    """End all jobs, clean up, leave."""


class Leave(NamedTuple):
    """Leave at once; the agent goes on."""


class MachineGone(NamedTuple):
    """The provider says that the worker's machine is not there any more: all that was there is lost, and there is nothing to clean up."""

    why: str


# --- from a supervisor -----------------------------------------------------------------------------------------------


class Hello(NamedTuple):
    """The first message."""

    pid: int


class Alive(NamedTuple):
    """The answer to :class:`Beat`."""

    number: int


class Row(NamedTuple):
    """One attempt in an inventory; ``state`` is queued, running, ended, acked or lost."""

    attempt: Attempt
    state: str
    result: Result | None


class Inventory(NamedTuple):
    """Contact is made, and this is what the agent has.  Nothing happens until :class:`Adopt` answers it."""

    identity: Identity
    login: str
    home: str
    fresh: bool
    slots: int
    rows: list[Row]


class Ready(NamedTuple):
    """The worker is set up and takes jobs."""

    slots: int


class Pull(NamedTuple):
    """``room`` for so many more jobs."""

    room: int


class Started(NamedTuple):
    """``(job, attempt number, slot)`` of each attempt that began."""

    attempts: list[tuple[int, int, int]]


class Ended(NamedTuple):
    """Attempts that are over, their output complete in the worker log."""

    results: list[Result]


class Returned(NamedTuple):
    """Attempts that never will start here."""

    attempts: list[Attempt]


class Lost(NamedTuple):
    """Attempts that went away with the agent or its machine."""

    attempts: list[Attempt]
    why: str


class Output(NamedTuple):
    """A piece of a running attempt's output: ``length`` bytes at ``offset`` of ``file``; ``position`` in the stream (1 or 2)."""

    job: int
    attempt: int
    stream: int
    position: int
    file: str
    offset: int
    length: int


class Silent(NamedTuple):
    """No contact for --lost-timeout; the supervisor goes on trying."""

    why: str


class Back(NamedTuple):
    """Contact again after :class:`Silent`, with the same agent."""


class Overtaken(NamedTuple):
    """The agent obeys a higher epoch."""

    epoch: int


class Full(NamedTuple):
    """The worker's disk is full: it starts nothing new."""

    error: str


class Note(NamedTuple):
    """A line for the session's log; ``warning`` shows it on a terminal too."""

    text: str
    warning: bool = False


class Retiring(NamedTuple):
    """The supervisor was told (SIGTERM) to retire its worker, or found that it cannot go on with it."""

    why: str


class Failed(NamedTuple):
    """The worker cannot be used; the supervisor leaves."""

    why: str


class Gone(NamedTuple):
    """The supervisor leaves.  ``clean``: key and home are gone from the worker."""

    clean: bool


class Away(NamedTuple):
    """A worker that was reached before does not answer the first tries; the supervisor goes on trying."""

    why: str


class Unwritable(NamedTuple):
    """The worker log cannot be written: the controller's disk is full or broken.  The supervisor leaves, the agent goes on."""

    error: str
