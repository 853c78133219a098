"""What each frame from the controller does.  Every value is checked; a wrong one raises ProtocolError and ends the connection."""

from . import codec, system
from .attempt import LOST, Attempt, key_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from .agent import Agent

    Header = dict[str, object]


def run(agent: "Agent", header: "Header", payload: bytes) -> None:
    """Queue attempts.  One that was here before is refused, whatever became of it."""
    fresh, known, position = [], [], 0
    for job, number, timeout, size in codec.rows(header, 4):
        limit, length = codec.seconds(timeout), codec.whole(size, -1)
        code = None if length < 0 else payload[position : position + length]
        if code is not None:
            position += length
        fresh.append(Attempt(job, number, limit, code, agent.courier.serial))  # type: ignore[arg-type]  # `rows` has checked them
    if position != len(payload):
        raise codec.ProtocolError("the codes are %d bytes, the payload %d" % (position, len(payload)))
    for attempt in fresh:
        if agent.store.knows(attempt.key):
            known.append((attempt.job, attempt.number, attempt.key))
        elif agent.refuses_work:
            agent.courier.returned([attempt], agent.refuses_work)
        elif attempt.code is None and not agent.store.staged(attempt.key):
            agent.courier.returned([attempt], "its code could not be stored")
        else:
            agent.runner.submit(attempt)
    agent.courier.refused(known)


def code(agent: "Agent", header: "Header", payload: bytes) -> None:
    """The next piece of a long code, for a `run` that follows."""
    job, number = codec.whole(header.get("job"), -2), codec.whole(header.get("attempt"))
    if not agent.store.knows(key_of(job, number)):
        agent.store.stage(job, number, payload)


def ack(agent: "Agent", header: "Header", payload: bytes) -> None:
    """The controller has these on its disk."""
    agent.store.acknowledge([key_of(*row) for row in codec.rows(header, 2)])  # type: ignore[arg-type]  # checked


def kill(agent: "Agent", header: "Header", payload: bytes) -> None:
    """End attempts, or give them back where they still wait."""
    why = "superseded" if header.get("why") == "superseded" else "aborted"
    found = [agent.store.unacked.get(key_of(*row)) for row in codec.rows(header, 2)]  # type: ignore[arg-type]  # checked
    agent.runner.end([attempt for attempt in found if attempt], why, agent.now)


def recall(agent: "Agent", header: "Header", payload: bytes) -> None:
    """Give back what waits, newest first."""
    agent.runner.empty_queue("recalled", codec.whole(header.get("count")))


def want(agent: "Agent", header: "Header", payload: bytes) -> None:
    """Deliver old attempts, from where the controller has their output."""
    for job, number, out, err in codec.rows(header, 4):
        attempt = agent.store.unacked.get(key_of(job, number))  # type: ignore[arg-type]  # checked
        out_position, err_position = codec.whole(out, 0, 1 << 62), codec.whole(err, 0, 1 << 62)
        if attempt is not None and attempt.state != LOST and attempt.wanted != agent.courier.serial:
            agent.courier.want(attempt, out_position, err_position)


def beat(agent: "Agent", header: "Header", payload: bytes) -> None:
    """A sign of life of the main process: the lease begins anew."""
    number = codec.whole(header.get("n"), 0, 1 << 62)
    agent.renew_lease()
    agent.check_disk()
    agent.courier.tell({"t": "beat", "n": number, "free": system.free_bytes(agent.home.path)})


def ready(agent: "Agent", header: "Header", payload: bytes) -> None:
    """Overlay and set-up command are done: no later connection need do them again."""
    agent.home.remember(ready=True)


def leave(agent: "Agent", header: "Header", payload: bytes) -> None:
    """`abort` and `finish`: end everything, clean up, go."""
    agent.departure.begin()


VERBS: "dict[str, Callable[[Agent, Header, bytes], None]]" = {
    "run": run, "code": code, "ack": ack, "kill": kill, "recall": recall, "want": want, "beat": beat, "ready": ready,
    "abort": leave, "finish": leave,
}  # fmt: skip
"""All but `hello`, which is about the connection itself."""
