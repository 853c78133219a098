"""The question before machines are launched (or with ``--confirm``): what is going to happen, and is it really wanted."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Sequence

from cloudtask.cli.streams import tell
from cloudtask.errors import DeclinedError
from cloudtask.kinds import CommandWords
from cloudtask.plan import Launch, Plan
from cloudtask.printable import describe_code
from cloudtask.providers.base import shortcomings
from cloudtask.settings import LAUNCHING, Row, Table, get
from cloudtask.settings_sources import DEFAULT

_QUESTION = "Is this really what you want? [yes/no] "
_JOB_WIDTH = 60


def confirm(plan: Plan, table: Table) -> None:
    """Show the plan and ask on the terminal.  Raises DeclinedError on anything but ``yes``."""
    for line in describe(plan, table):
        tell(line)
    if ask(_QUESTION).lower() != "yes":
        raise DeclinedError


def describe(plan: Plan, table: Table) -> Iterator[str]:
    """The lines of the question, in the layout of the original."""
    yield f"{_heading(plan)}:"
    yield from ("", f"  {'Parameter':<15} Value", f"  {'---------':<15} -----", "")
    yield from (f"  {row.key:<15} {value}" for row in table if (value := _shown(plan, row)) is not None)
    if plan.launch:
        yield from (f"  {name:<15} {value}" for name, value in _of_launch(plan.launch, _launched(plan)))
    yield ""


def _heading(plan: Plan) -> str:
    launched = _launched(plan)
    workers = _count(len(plan.workers), "worker")
    listed = "" if launched and not plan.workers else f" on {workers}"
    if plan.lines is None:
        also = f", launching up to {_count(launched, 'machine')}" if launched else ""
        return f"About to {plan.kind} session {plan.session}{listed}{also}"
    jobs = f"{_count(len(plan.lines), 'job')} ({_first_and_last(plan.lines)})"
    if not launched:
        return f"About to execute {jobs} on {workers}"
    beside = f", beside {workers}" if plan.workers else ""
    return f"About to launch {_count(launched, 'machine')} to execute {jobs}{beside}"


def _launched(plan: Plan) -> int:
    """How many machines the run begins with, at most."""
    if plan.launch is None:
        return 0
    missing = plan.launch.split - len(plan.workers)
    needed = missing if plan.lines is None else min(missing, -(-len(plan.lines) // max(1, plan.launch.slots)))
    limit = plan.launch.limits.max_workers
    return max(0, needed if limit is None else min(needed, limit))


def _of_launch(launch: Launch, count: int) -> Iterator[tuple[str, str]]:
    """What the machines will be, what they cost, and what their provider cannot do."""
    yield from launch.offer.rows.items()
    if launch.offer.price is None:
        yield "price", "unknown"
    elif launch.offer.price:
        yield "price", f"${launch.offer.price:g} an hour each, ${launch.offer.price * count:g} for {count}"
    yield from (("note", text) for text in shortcomings(launch.abilities))


def _count(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


def _first_and_last(lines: Sequence[bytes]) -> str:
    first, last = (describe_code(line, _JOB_WIDTH) for line in (lines[0], lines[-1]))
    return first if len(lines) == 1 else f"{first} .. {last}"


def _shown(plan: Plan, row: Row) -> str | None:
    """A row's value as people read it; None for what is empty, not said by anybody, or of no account."""
    value = len(plan.workers) if row.name == "split" and plan.settings.split is None else get(plan.settings, row)
    said = plan.sources.get(row.key, DEFAULT) != DEFAULT
    launches = row.group != LAUNCHING or plan.launch is not None
    if value in (None, "", (), False) or row.afterwards == "once" or not (said or (row.always_shown and launches)):
        return None
    return "set" if row.secret else write(row, value)


def write(row: Row, value: object) -> str:
    """A value in one line; of variables only the names, since values may be secret."""
    if row.name == "env" and isinstance(value, tuple):
        return " ".join(item.partition("=")[0] for item in value)
    if isinstance(value, CommandWords):
        code = value.words[:1] if value.code else ()
        return " ".join([*code, shlex.join(value.words[len(code) :])]).strip()
    found = row.write(value)
    if isinstance(found, bool):
        return "yes" if found else "no"
    return " ".join(str(item) for item in found) if isinstance(found, list) else str(found)


def ask(question: str) -> str:
    """The answer typed at the terminal; an empty one is asked for again, its end is no answer."""
    try:
        descriptor = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        descriptor = os.dup(2)
    with os.fdopen(descriptor, "rb", buffering=0) as terminal:
        while True:
            os.write(2, question.encode())
            line = terminal.readline()
            if not line:
                os.write(2, b"\n")
            if answer := line.decode(errors="replace").strip():
                return answer
            if not line:
                return ""
