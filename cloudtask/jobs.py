"""Input lines become jobs: which lines are jobs, and which are errors that nothing is launched for.

* ``words``: a line is split into words as a POSIX shell would; blank lines and lines that are only a comment are no jobs.  One
  carriage return at a line's end is no part of it: lists come from Windows too, and no file name that is meant ends in one.
* ``line``: the whole line is one word, carriage returns and ``#`` too; only blank lines are no jobs.
* ``nul``: what stands between NUL bytes is one word, newlines too; only empty items are no jobs.

Lines stay as they were given; :class:`cloudtask.command.Command` makes shell code of them.
"""

from __future__ import annotations

import re

from cloudtask.errors import InputError
from cloudtask.shellcode import check_closed
from cloudtask.shellwords import UnbalancedError, split_words

MODES = ("words", "line", "nul")

_SPECIAL = re.compile(rb"['\"\\#]").search
_COMMENT = re.compile(rb"[ \t]*+#").match


def read_jobs(data: bytes, mode: str = "words", *, code: bool = False) -> list[bytes]:
    """The job lines of the whole input ``data``, in its order, as given but without their line ends.

    ``mode`` is one of :data:`MODES`.  ``code`` says that there is no command, so that lines are shell code: quotes then count
    as a shell nests them.  Raises :class:`InputError` naming the first line (from 1) that cannot be split or has a NUL byte.
    """
    if mode == "nul":
        return [item for item in data.split(b"\0") if item]
    if mode not in MODES:
        raise ValueError(f"{mode!r} is no input mode ({', '.join(MODES)})")
    _refuse_nul(data)
    if mode == "line":
        return [line for line in data.split(b"\n") if line.strip(b" \t\r")]
    return _word_lines(data, code)


def _refuse_nul(data: bytes) -> None:
    at = data.find(b"\0")
    if at >= 0:
        number = data.count(b"\n", 0, at) + 1
        raise InputError(f"line {number} of the jobs has a NUL byte: take it out, or use --input=nul where NUL bytes separate the jobs")


def _word_lines(data: bytes, code: bool) -> list[bytes]:
    if b"\r" in data:
        data = re.sub(rb"\r(?=\n|\Z)", b"", data)
    lines = data.split(b"\n")
    if _SPECIAL(data):
        lines = [line for number, line in enumerate(lines, 1) if not _SPECIAL(line) or _checked(line, number, code)]
    return [line for line in lines if line.strip(b" \t")]


def _checked(line: bytes, number: int, code: bool) -> bool:
    """False where the line is only a comment."""
    if _COMMENT(line):
        return False
    try:
        split_words(line)
    except UnbalancedError as error:
        if code and _is_closed(line):
            return True
        raise InputError(f"line {number} of the jobs cannot be split: {error}; quote it as a shell would, or use --input=line") from error
    return True


def _is_closed(line: bytes) -> bool:
    try:
        check_closed(line)
    except UnbalancedError:
        return False
    return True
