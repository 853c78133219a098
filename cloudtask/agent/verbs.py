"""What each frame from the controller does.  Every value is checked; a wrong one raises ProtocolError and ends the connection."""

from . import codec, system
from .attempt import LOST, Attempt, key_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from .departure import Departure
    from .disk import Disk
    from .lease import Lease
    from .rooms import Rooms

    Header = dict[str, object]


class Desk:
    """What the verbs work on."""

    def __init__(self, rooms: "Rooms", departure: "Departure", lease: "Lease", disk: "Disk") -> None:
        self.rooms = rooms
        self.departure = departure
        self.lease = lease
        self.disk = disk

    @property
    def refuses_work(self) -> str:
        """Why nothing new is taken; empty when it is."""
        if self.departure.under_way:
            return "leaving"
        if self.lease.over:
            return "the lease is over"
        return "full" if self.rooms.runner.full else ""


def run(desk: "Desk", header: "Header", payload: bytes) -> None:
    """Queue attempts.  One that was here before is refused, whatever became of it."""
    fresh, known, position = [], [], 0
    for job, number, timeout, size in codec.rows(header, 4):
        limit, length = codec.seconds(timeout), codec.whole(size, -1)
        code = None if length < 0 else payload[position : position + length]
        if code is not None:
            position += length
        fresh.append(Attempt(job, number, limit, code, desk.rooms.courier.serial))  # type: ignore[arg-type]  # `rows` has checked them
    if position != len(payload):
        raise codec.ProtocolError("the codes are %d bytes, the payload %d" % (position, len(payload)))
    for attempt in fresh:
        if desk.rooms.store.knows(attempt.key):
            known.append((attempt.job, attempt.number, attempt.key))
        elif desk.refuses_work:
            desk.rooms.courier.returned([attempt], desk.refuses_work)
        elif attempt.code is None and not desk.rooms.store.staged(attempt.key):
            desk.rooms.courier.returned([attempt], "its code could not be stored")
        else:
            desk.rooms.runner.submit(attempt)
    desk.rooms.courier.refused(known)


def code(desk: "Desk", header: "Header", payload: bytes) -> None:
    """The next piece of a long code, for a `run` that follows."""
    job, number = codec.whole(header.get("job"), -2), codec.whole(header.get("attempt"))
    if not desk.rooms.store.knows(key_of(job, number)):
        desk.rooms.store.stage(job, number, payload)


def ack(desk: "Desk", header: "Header", payload: bytes) -> None:
    """The controller has these on its disk."""
    desk.rooms.store.acknowledge([key_of(*row) for row in codec.rows(header, 2)])  # type: ignore[arg-type]  # checked


def kill(desk: "Desk", header: "Header", payload: bytes) -> None:
    """End attempts, or give them back where they still wait."""
    why = "superseded" if header.get("why") == "superseded" else "aborted"
    found = [desk.rooms.store.unacked.get(key_of(*row)) for row in codec.rows(header, 2)]  # type: ignore[arg-type]  # checked
    desk.rooms.runner.end([attempt for attempt in found if attempt], why, desk.rooms.now)


def recall(desk: "Desk", header: "Header", payload: bytes) -> None:
    """Give back what waits, newest first."""
    desk.rooms.runner.empty_queue("recalled", codec.whole(header.get("count")))


def want(desk: "Desk", header: "Header", payload: bytes) -> None:
    """Deliver old attempts, from where the controller has their output."""
    for job, number, out, err in codec.rows(header, 4):
        attempt = desk.rooms.store.unacked.get(key_of(job, number))  # type: ignore[arg-type]  # checked
        out_position, err_position = codec.whole(out, 0, 1 << 62), codec.whole(err, 0, 1 << 62)
        if attempt is not None and attempt.state != LOST and attempt.wanted != desk.rooms.courier.serial:
            desk.rooms.courier.want(attempt, out_position, err_position)


def beat(desk: "Desk", header: "Header", payload: bytes) -> None:
    """A sign of life of the main process: the lease begins anew."""
    number = codec.whole(header.get("n"), 0, 1 << 62)
    desk.lease.renew()
    desk.disk.check()
    desk.rooms.courier.tell({"t": "beat", "n": number, "free": system.free_bytes(desk.rooms.home.path)})


def ready(desk: "Desk", header: "Header", payload: bytes) -> None:
    """Overlay and set-up command are done: no later connection need do them again."""
    desk.rooms.home.remember(ready=True)


def leave(desk: "Desk", header: "Header", payload: bytes) -> None:
    """`abort` and `finish`: end everything, clean up, go."""
    desk.departure.begin()


VERBS: "dict[str, Callable[[Desk, Header, bytes], None]]" = {
    "run": run, "code": code, "ack": ack, "kill": kill, "recall": recall, "want": want, "beat": beat, "ready": ready,
    "abort": leave, "finish": leave,
}  # fmt: skip
"""All but `hello`, which is about the connection itself."""
