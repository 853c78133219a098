"""What the lines of a journal say: one function for each event, and how a `model.Result` is written and read.

Every function returns one whole line.  **A record's first key is the name of its event**, and that key's value is what the event is
about: ``{"sent":[[7,1]],"worker":2,"time":...}``, ``{"ready":2,"home":...}``.  So a job's records take under 300 bytes together,
also where each record holds one job only, and stay readable.  ``time`` is in seconds since 1970, to the millisecond.
Fields may be added to an event; a new event is refused by older versions on a resume, unless it says ``"optional": true``.

=========  ====================================================  ==============================================================
event      about                                                 other fields
=========  ====================================================  ==============================================================
format     1: the first line, and only that                      session, number, jobs, input, created, cloudtask
run        its number, from 1                                    epoch, pid, host, time, kind, retry: jobs set back to pending
epoch      the epoch, raised
worker     its number; before contact                            host, user, port, local, asked (slots), transport, key; of a
                                                                 machine that was launched: instance, alias, host_key
ready      worker: its agent answered                            identity, home, slots, login, time
setup      worker: overlay and pre are done                      time
sent       [[job, attempt], ..]; before sending                  worker, time (whole seconds)
started    [[job, attempt, slot], ..]                            worker, time
returned   [[job, attempt], ..]: never will start                worker
ended      [{job, attempt, outcome, ..}, ..]                     worker, time
adopted    worker: what it has, on a resume                      running, queued, held, ended, time
lost       [[job, attempt], ..]                                  worker, why, time, uncounted (not the job's fault)
contact    "lost" or "back"                                      worker, time
settled    a job without an end of its own                       attempt, outcome, time
relayed    ranges of jobs: their output has been shown
retired    worker                                                why, time
released   worker: key and home are gone                         time
order      its token; before the provider is asked               provider, count, label, time, expires, and where there are any
                                                                 price, minimum, quantum, size, region, host_key
launched   token: machines that it made                          instances (ids), time
closed     token: no more machines will come of it               why, time
destroying [id, ..]; before the provider is asked                why, time
destroyed  [id, ..]: the provider says so                        time
kept       [id, ..]: they stay, and are no longer ours           until, time
finished   its number (the run's)                                exit, time
=========  ====================================================  ==============================================================

An item of ``ended`` has job, outcome (``exit 0``, ``signal 9``, ``timeout``: an Ending and its value), attempt where it is not 1, and
where they are not zero seconds, cpu (seconds), memory (KiB), offset, out, err (bytes), index, cut, began (where it is not time -
seconds), and ``again`` where it does not settle the job: it is tried again, or goes back.  Without slot it ran in slot 1 and its
output is in ``workers/<n>.log``; with slot it is in ``workers/<n>.<slot>.log``; any other place is named by file (``12`` or ``12.3``).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from cloudtask.model import Address, Attempt, Identity, Result, Span
from cloudtask.session import ranges
from cloudtask.session.bookings import OrderRecord
from cloudtask.session.layout import worker_log_name
from cloudtask.states import Ending

FORMAT = 1

BEGAN_TOLERANCE = 0.5
"""Seconds by which ``time - seconds`` may miss the true beginning before that is written down too."""

RunKind = Literal["new", "resume", "retry", "harvest"]

_encode = json.JSONEncoder(separators=(",", ":"), check_circular=False).encode
_LOG = re.compile(r"(?:.*/)?(\d+(?:\.\d+)?)\.log")
_STEM = re.compile(r"\d+(?:\.\d+)?", re.ASCII)


_MAY_BE_ZERO = frozenset({"slot", "offset", "index"})


class End(NamedTuple):
    """A result, and what it means for its job: settled by it, or (``again``) not."""

    result: Result
    again: bool = False


def line(fields: Mapping[str, Any]) -> bytes:
    """Any record as a line; for the events of later rooms, which name them first and mark them optional or not."""
    return _encode(fields).encode() + b"\n"


def header(session: str, *, number: int, jobs: int, mode: str, created: float, version: str) -> bytes:
    """The first line.  ``session`` is the unique id, ``jobs`` how many there are, ``mode`` the --input."""
    fields = {"format": FORMAT, "session": session, "number": number, "jobs": jobs, "input": mode}
    return line(fields | {"created": _ms(created), "cloudtask": version})


def run(number: int, *, epoch: int, pid: int, host: str, time: float, kind: RunKind, retry: Iterable[int] = ()) -> bytes:
    """A process begins its turn.  ``retry``: the failed jobs that it sets back to pending."""
    fields = {"run": number, "epoch": epoch, "pid": pid, "host": host, "time": _ms(time), "kind": kind, "retry": ranges.encode(retry)}
    return line({key: value for key, value in fields.items() if key != "retry" or value})


def epoch(number: int) -> bytes:
    """The run takes a higher epoch than it began with."""
    return line({"epoch": number})


def worker(number: int, address: Address, *, transport: str, key: bool, instance: str | None = None) -> bytes:
    """A worker is about to be contacted for the first time; ``key``: the session key will be authorised there.

    ``instance`` is the id of the machine that was launched for it.
    """
    fields = {"worker": number, "host": address.host, "user": address.user, "port": address.port, "asked": address.slots}
    fields |= {"local": address.local or None, "transport": transport, "key": key}
    fields |= {"own_transport": address.transport, "alias": address.alias, "host_key": address.host_key, "instance": instance}
    return line({name: value for name, value in fields.items() if value is not None})


def ready(worker: int, *, identity: Identity, home: str, slots: int, login: str, time: float) -> bytes:
    """Its agent answered.  ``home`` is the agent's directory there, ``slots`` are counted out, ``login`` is ``user@host:port`` as used."""
    return line({"ready": worker, "identity": identity, "home": home, "slots": slots, "login": login, "time": _ms(time)})


def setup(worker: int, time: float) -> bytes:
    """Overlay and pre are done there."""
    return line({"setup": worker, "time": _ms(time)})


def sent(worker: int, jobs: Iterable[Attempt], time: float) -> bytes:
    """Attempts are about to be sent."""
    return line({"sent": list(jobs), "worker": worker, "time": round(time)})


def started(worker: int, jobs: Iterable[tuple[int, int, int]], time: float) -> bytes:
    """(job, attempt, slot): the agent started them."""
    return line({"started": list(jobs), "worker": worker, "time": _ms(time)})


def returned(worker: int, jobs: Iterable[Attempt]) -> bytes:
    """The agent says that it never will start these."""
    return line({"returned": list(jobs), "worker": worker})


def ended(worker: int, ends: Iterable[End], time: float) -> bytes:
    """Attempts ended, and their output is in the worker's log.  An ending ``superseded`` never settles its job."""
    time = _ms(time)
    return line({"ended": [_item(worker, time, *end) for end in ends], "worker": worker, "time": time})


def adopted(
    worker: int,
    time: float,
    *,
    running: Sequence[Attempt] = (),
    queued: Sequence[Attempt] = (),
    held: Sequence[Attempt] = (),
    ended: Iterable[End] = (),
) -> bytes:
    """What a resume found on a worker.

    ``held`` are attempts whose end the agent knows and whose output is not fetched yet: in doubt like the running ones, until
    their own ``ended``.  ``ended`` are results that lack nothing, the same as in `ended`.
    """
    time = _ms(time)
    fields = {"running": running, "queued": queued, "held": held, "ended": [_item(worker, time, *end) for end in ended]}
    return line({"adopted": worker} | {name: value for name, value in fields.items() if value} | {"time": time})


def lost(worker: int, jobs: Iterable[Attempt], why: str, time: float, *, counts: bool = True) -> bytes:
    """These attempts are gone with their worker or agent; jobs that no other attempt holds are pending again.

    ``counts`` is False where that is certainly not the job's doing: the provider took the machine back, or we destroyed it.
    """
    fields = {"lost": list(jobs), "worker": worker, "why": why, "time": _ms(time)}
    return line(fields if counts else fields | {"uncounted": True})


def contact(worker: int, state: Literal["lost", "back"], time: float) -> bytes:
    """Contact is lost for longer than --lost-timeout, or back after that."""
    return line({"contact": state, "worker": worker, "time": _ms(time)})


def settled(job: int, attempt: int, outcome: Ending, time: float) -> bytes:
    """A job is given up: ``unknown`` or ``poison``, whatever its last attempt ended with.  ``attempt`` (0: none) is over with it."""
    return line({"settled": job, "attempt": attempt, "outcome": str(outcome), "time": _ms(time)})


def relayed(jobs: Iterable[int]) -> bytes:
    """The output of these jobs has been written to stdout and stderr.  Not needed for jobs that had none."""
    return line({"relayed": ranges.encode(jobs)})


def retired(worker: int, why: str, time: float) -> bytes:
    """A worker takes no more jobs, for good."""
    return line({"retired": worker, "why": why, "time": _ms(time)})


def released(worker: int, time: float) -> bytes:
    """A worker is cleaned up: key and home are gone, nothing there needs to be asked for."""
    return line({"released": worker, "time": _ms(time)})


def order(order: OrderRecord) -> bytes:
    """Machines are about to be asked for; on disk before the provider hears of it."""
    fields = {"order": order.token, "provider": order.provider, "count": order.count, "label": order.label}
    fields |= {"time": _ms(order.time), "expires": order.expires, "price": order.price, "minimum": order.minimum, "quantum": order.quantum}
    fields |= {"size": order.size or None, "region": order.region or None, "host_key": order.host_key}
    return line({name: value for name, value in fields.items() if value is not None})


def launched(token: str, instances: Iterable[str], time: float) -> bytes:
    """The provider answered with these ids; those of earlier answers stay."""
    return line({"launched": token, "instances": list(instances), "time": _ms(time)})


def closed(token: str, why: str, time: float) -> bytes:
    """What an order has is all that it will ever have."""
    return line({"closed": token, "why": why, "time": _ms(time)})


def destroying(instances: Iterable[str], why: str, time: float) -> bytes:
    """Machines are about to be destroyed."""
    return line({"destroying": list(instances), "why": why, "time": _ms(time)})


def destroyed(instances: Iterable[str], time: float) -> bytes:
    """The provider says that these machines are gone, whoever destroyed them."""
    return line({"destroyed": list(instances), "time": _ms(time)})


def kept(instances: Iterable[str], until: float, time: float) -> bytes:
    """These machines outlive the session: nobody destroys them for it."""
    return line({"kept": list(instances), "until": round(until), "time": _ms(time)})


def finished(number: int, exit_status: int, time: float) -> bytes:
    """The run with this number ends, with this exit status."""
    return line({"finished": number, "exit": exit_status, "time": _ms(time)})


def result(item: Mapping[str, Any], worker: int, time: float) -> Result:
    """The result in an item of an ``ended`` record of ``worker``, written at ``time``.

    Raises KeyError, TypeError or ValueError on an item that `ended` could not have written.
    """
    word, _, value = item["outcome"].partition(" ")
    seconds = float(item.get("seconds", 0))
    return Result(
        job=item["job"],
        attempt=item.get("attempt", 1),
        ending=Ending(word),
        value=int(value or 0),
        began=float(item.get("began", round(time - seconds, 3))),
        seconds=seconds,
        cpu=float(item.get("cpu", 0)),
        memory=item.get("memory", 0),
        slot=item.get("slot", 1),
        cut=bool(item.get("cut")),
        span=_span(item, worker),
    )


def _span(item: Mapping[str, Any], worker: int) -> Span | None:
    if "offset" not in item:
        return None
    stem = item.get("file") or _usual_log(worker, item.get("slot"))
    if not _STEM.fullmatch(stem):
        raise ValueError(f"not a worker log: {stem!r}")
    return Span(f"workers/{stem}.log", item["offset"], item.get("out", 0), item.get("err", 0), item.get("index", -1))


def _item(worker: int, time: float, end: Result, again: bool) -> dict[str, Any]:
    item: dict[str, Any] = {"job": end.job}
    if end.attempt != 1:
        item["attempt"] = end.attempt
    item |= {"outcome": end.describe(), "seconds": _ms(end.seconds), "cpu": _ms(end.cpu), "memory": end.memory}
    item |= _place(end.span, worker, end.slot) if end.span and end.span.file else {"slot": end.slot} if end.slot != 1 else {}
    item["cut"] = end.cut
    if end.began and abs(time - end.seconds - end.began) > BEGAN_TOLERANCE:
        item["began"] = _ms(end.began)
    item["again"] = again
    return {name: value for name, value in item.items() if value or name in _MAY_BE_ZERO}


def _usual_log(worker: int, slot: int | None) -> str:
    return str(worker) if slot is None else f"{worker}.{slot}"


def _place(span: Span, worker: int, slot: int) -> dict[str, Any]:
    match = _LOG.fullmatch(span.file)
    if match is None:
        raise ValueError(f"{span.file!r} is not the name of a worker log, such as {worker_log_name(worker)}")
    place: dict[str, Any] = {"offset": span.offset, "out": span.out, "err": span.err}
    if span.listing >= 0:
        place["index"] = span.listing
    if slot == 1 and match[1] == _usual_log(worker, None):
        return place
    return {"slot": slot} | ({} if match[1] == _usual_log(worker, slot) else {"file": match[1]}) | place


def _ms(seconds: float) -> float:
    return round(seconds, 3)
