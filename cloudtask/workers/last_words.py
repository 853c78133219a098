"""What a program said last, as one line for an error message."""

from __future__ import annotations

from cloudtask.printable import sanitize

_LONGEST = 300
_CLOSING_WORDS = ("rsync error:", "tar: Exiting with failure", "tar: Error is not recoverable", "rsync: connection unexpectedly closed")


def last_words(said: bytes) -> str:
    """The last line that tells something, without control characters; empty where nothing was said.

    Programs like to close with a line that only says that something was wrong before: the line before that one is worth more.
    """
    lines = [line for raw in said.splitlines() if (line := _plain(raw))]
    telling = [line for line in lines if not line.startswith(_CLOSING_WORDS)]
    return (telling or lines or [""])[-1]


def _plain(raw: bytes) -> str:
    return sanitize(raw.strip())[:_LONGEST]
