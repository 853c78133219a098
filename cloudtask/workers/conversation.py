"""One conversation with an agent: from a greeting to the end of the connection it came over.

Puts what the supervisor wants into frames, and holds what the agent said about itself.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from cloudtask.model import Attempt, Identity, Result
from cloudtask.states import Ending
from cloudtask.workers import messages as m
from cloudtask.workers.contact import Reached
from cloudtask.workers.ledger import Flight

WIRE_VERSION = 1
_FRAME_BYTES = 256 << 10
_STATES = frozenset({"queued", "running", "ended", "acked", "lost"})
_MOST_SLOTS = 4096
_MOST_ROWS = 10_000_000


class Rank(NamedTuple):
    """Which of several controllers, and of their connections, an agent obeys: the highest."""

    epoch: int
    connection: int


@dataclass(frozen=True, kw_only=True)
class AgentFacts:
    """What an agent said in its welcome."""

    identity: Identity
    login: str
    home: str
    python: str
    slots: int
    fresh: bool
    rebooted: bool
    ready: bool

    def describe(self) -> str:
        """One line for the worker's log."""
        python = f"python {self.python}" if self.python else "no python3"
        return f"{self.login}, {python}, {self.slots} slot{'s' if self.slots != 1 else ''}"


class Conversation:
    """Speaks with one agent over one connection."""

    def __init__(self, reached: Reached, spec: m.WorkerSpec, rank: Rank, *, everything: bool = True) -> None:
        """``everything``: the inventory is to have the attempts that were acknowledged too."""
        self._peer = reached.peer
        self.connection = reached.connection
        self._spec = spec
        self.agent: AgentFacts | None = None
        self.rows: list[Sequence[Any]] = []
        self.serial = rank.epoch % 2000 * 1_000_000 + rank.connection % 1_000_000
        """A number of its own for each conversation of a session, as an attempt's number (31 bits)."""
        self.welcomed = False
        """The inventory is complete: frames other than the greeting may be sent."""
        self.round_trip = 0.0
        self.backlog = False
        self._last_byte = self._greeted = time.monotonic()
        self._unanswered = 0
        self._last_beat = self._greeted
        self._beat_number = 0
        hello = {"t": "hello", "version": WIRE_VERSION, **rank._asdict(), "acked": everything, "config": self._config()}
        self.send(hello)

    def _config(self) -> dict[str, Any]:
        spec = self._spec
        return {
            "session": spec.session,
            "worker": spec.number,
            "slots": spec.slots if spec.slots is not None else (0 if spec.address.local else 1),
            "grace": spec.kill_grace,
            "lease": spec.lease,
            "max_output": spec.max_output,
            "env": dict(item.split("=", 1) for item in spec.env),
            "workdir": spec.workdir,
            "post": spec.post,
            "post_timeout": spec.setup_timeout,
            "public_key": None if spec.address.local else spec.public_key,
            "heartbeat": spec.heartbeat,
        }

    def fileno(self) -> int:
        """Readable when frames may have come."""
        return self._peer.fileno()

    def send(self, header: dict[str, Any], payload: bytes = b"") -> None:
        """Queue a frame."""
        self._peer.send(header, payload)
        self.backlog = True

    def receive(self) -> list[tuple[dict[str, Any], bytes]]:
        """Whole frames that have come; EOFError when the connection is gone."""
        frames = self._peer.receive()
        if frames:
            self._last_byte = time.monotonic()
            self._unanswered = 0
        return frames

    def flush(self) -> None:
        """Send what can be sent."""
        self.backlog = not self._peer.flush()

    def close(self) -> None:
        """End the connection; the agent goes on."""
        self._peer.close()
        self.connection.close()

    # --- greeting ----------------------------------------------------------------------------------------------------

    def welcome(self, header: dict[str, Any]) -> None:
        """Take in what the agent says about itself.  Raises ValueError for what cannot be."""
        if header["version"] != WIRE_VERSION:
            raise ValueError(f"wire version {header['version']}")
        machine, boot, start = header["identity"]
        self.round_trip = time.monotonic() - self._greeted
        self.agent = AgentFacts(
            identity=Identity(str(machine), str(boot), str(start)),
            login=self.connection.login,
            home=str(header["home"])[:4096],
            python=str(header["python"])[:40],
            slots=self._allowed_slots(header),
            fresh=bool(header["fresh"]),
            rebooted=bool(header["rebooted"]),
            ready=bool(header["ready"]),
        )

    def _allowed_slots(self, header: dict[str, Any]) -> int:
        wanted = self._spec.slots if self._spec.slots is not None else (0 if self._spec.address.local else 1)
        cpus = min(max(1, int(header["cpus"])), _MOST_SLOTS)
        most = int(header.get("most_slots") or _MOST_SLOTS)
        return min(wanted or cpus, most)

    def take_inventory(self, header: dict[str, Any]) -> None:
        """Collect the rows; with the last ones the agent may be spoken to."""
        self.rows.extend(header["rows"])
        if len(self.rows) > _MOST_ROWS:
            raise ValueError("an inventory without end")
        if header["last"]:
            if self.agent is None:
                raise ValueError("an inventory before the welcome")
            self.welcomed = True

    # --- liveness ----------------------------------------------------------------------------------------------------

    def beat(self) -> None:
        """Relay one heartbeat of the main process, not more often than --heartbeat asks for."""
        now = time.monotonic()
        if now - self._last_beat >= self._spec.heartbeat * 0.9:
            self._last_beat = now
            self._beat_number += 1
            self._unanswered += 1
            self.send({"t": "beat", "n": self._beat_number})

    def silent(self) -> bool:
        """True when two heartbeats went by without one byte (also before the welcome)."""
        quiet = time.monotonic() - self._last_byte
        if not self.welcomed:
            return quiet > max(2 * self._spec.heartbeat, 30)
        # A main process that does not beat must not make a good connection look dead.
        return self._unanswered >= 2 and quiet > 2 * self._spec.heartbeat

    # --- jobs --------------------------------------------------------------------------------------------------------

    def run(self, flights: Iterable[Flight]) -> None:
        """Send attempts to be run, many in a frame; long codes go ahead in pieces."""
        jobs: list[list[float]] = []
        codes: list[bytes] = []
        size = 0
        for flight in flights:
            job, number = flight.attempt
            timeout = self._spec.timeout if job > 0 else self._spec.setup_timeout
            if len(flight.code) > _FRAME_BYTES:
                self._stage(flight)
                jobs.append([job, number, timeout, -1])
            else:
                jobs.append([job, number, timeout, len(flight.code)])
                codes.append(flight.code)
                size += len(flight.code)
            if size > _FRAME_BYTES or len(jobs) >= 2000:
                self.send({"t": "run", "jobs": jobs}, b"".join(codes))
                jobs, codes, size = [], [], 0
        if jobs:
            self.send({"t": "run", "jobs": jobs}, b"".join(codes))

    def _stage(self, flight: Flight) -> None:
        job, number = flight.attempt
        for start in range(0, len(flight.code), _FRAME_BYTES):
            self.send({"t": "code", "job": job, "attempt": number}, flight.code[start : start + _FRAME_BYTES])

    def want(self, flights: Sequence[Flight]) -> None:
        """Have old attempts delivered, from where their output has been received."""
        if flights:
            self.send({"t": "want", "jobs": [[*flight.attempt, *flight.received] for flight in flights]})

    def kill(self, attempts: Sequence[Attempt], why: str) -> None:
        """End attempts."""
        if attempts:
            self.send({"t": "kill", "jobs": [list(attempt) for attempt in attempts], "why": why})

    def recall(self, count: int) -> None:
        """Ask for unstarted attempts back."""
        self.send({"t": "recall", "count": count})

    def acknowledge(self, attempts: Sequence[Attempt]) -> None:
        """These results are on the controller's disk."""
        for start in range(0, len(attempts), 5000):
            self.send({"t": "ack", "jobs": [list(attempt) for attempt in attempts[start : start + 5000]]})


def read_row(row: Sequence[Any]) -> m.Row:
    """An inventory row as a record.  Raises ValueError or TypeError for what cannot be."""
    job, number, state, result = row
    if not isinstance(job, int) or not isinstance(number, int) or state not in _STATES:
        raise ValueError("not an inventory row")
    attempt = Attempt(job, number)
    if result is None:
        return m.Row(attempt, state, None)
    ending = Ending(str(result[3]))
    seconds = float(result[5])
    record = Result(
        job=job,
        attempt=number,
        ending=ending,
        value=int(result[4]),
        began=time.time() - seconds,
        seconds=seconds,
        cpu=float(result[6]),
        memory=int(result[7]),
        slot=int(result[2]),
        cut=bool(result[12]),
    )
    return m.Row(attempt, state, record)
