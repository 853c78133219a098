"""From a journal to a state, and back from the state to the results that the journal holds.  Takes no lock, changes nothing."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import BinaryIO

from cloudtask.errors import JournalError
from cloudtask.model import Result
from cloudtask.session import journal, records
from cloudtask.session.layout import open_inside
from cloudtask.session.state import SessionState, parse_header
from cloudtask.states import Ending

_LINES_KEPT = 256

_MALFORMED = (KeyError, TypeError, ValueError, IndexError, OverflowError, AttributeError)


def replay(path: str, *, strict: bool) -> SessionState:
    """The state that the journal at ``path`` tells of, up to a torn last line.

    Events and fields that are unknown are passed over; ``strict`` (before a run) refuses a later format, and unknown events not
    marked optional.  Raises JournalError, one line that names the file and the line; OSError where it cannot be read.
    """
    lines = journal.read(path)
    state = _begin(path, next(lines, None), strict)
    for record in lines:
        try:
            known = state.apply(record.event, record.fields, record.offset)
        except _MALFORMED as error:
            raise _bad(path, record, error) from error
        if not known and strict and record.fields.get("optional") is not True:
            raise JournalError(
                f"{path}, line {record.line}: unknown event {record.event[:40]!r}: a newer cloudtask ran this session"
                f" (made with {state.header.version[:40]!r}); resume it with that one"
            )
        state.end = record.end
    return state


def results(path: str, state: SessionState, jobs: Iterable[int]) -> Iterator[Result]:
    """The results that settled ``jobs``, in the order of ``jobs``; jobs that are not settled are left out.

    Read back from the journal, a few lines at a time in memory: made for jobs in an order near that of their ends.
    Raises JournalError where the journal is not the one that ``state`` came from.
    """
    root, name = os.path.split(path)
    with os.fdopen(open_inside(root, name, os.O_RDONLY), "rb") as file:
        line_at = lru_cache(_LINES_KEPT)(lambda offset: _settled_in(file, offset))
        for job in jobs:
            if not state.where[job]:
                continue
            offset = state.where[job] - 1
            found = line_at(offset).get(job)
            if found is None:
                raise JournalError(f"{path}: the result of job {job} is not at byte {offset}; the journal was changed while it was read")
            yield found


def _begin(path: str, first: journal.Record | None, strict: bool) -> SessionState:
    if first is None:
        raise JournalError(f"{path}: empty, so none of this session's jobs ran: give them to a new session")
    if first.event != "format":
        raise JournalError(f"{path}, line 1: not the header of a session; restore this file from a copy")
    if strict and first.fields["format"] != records.FORMAT:
        theirs = str(first.fields["format"])[:20]
        raise JournalError(f"{path}: format {theirs}, and this cloudtask knows format {records.FORMAT}: use a newer one")
    try:
        state = SessionState(parse_header(first.fields))
    except _MALFORMED as error:
        raise _bad(path, first, error) from error
    state.end = first.end
    return state


def _bad(path: str, record: journal.Record, error: Exception) -> JournalError:
    what = f"an event {record.event[:40]!r} with wrong fields ({error!r})"
    return JournalError(f"{path}, line {record.line}: {what}; restore this file from a copy")


def _settled_in(file: BinaryIO, offset: int) -> dict[int, Result]:
    """The results on the line at ``offset`` that can settle a job; the first of each job counts, as in the fold."""
    file.seek(offset)
    fields = journal.parse(file.readline())
    found: dict[int, Result] = {}
    try:
        if fields and "settled" in fields:
            found[fields["settled"]] = Result(fields["settled"], fields["attempt"], Ending(fields["outcome"]), began=fields["time"])
        elif fields:
            worker = fields["worker"] if "worker" in fields else fields["adopted"]
            for item in fields["ended"]:
                if not item.get("again") and item["outcome"] != Ending.SUPERSEDED:
                    found.setdefault(item["job"], records.result(item, worker, fields["time"]))
    except _MALFORMED:
        return {}
    return found
