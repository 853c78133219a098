"""What a run needs of whoever shows it to people: a :class:`Protocol`, implemented in ``cli/`` and by tests.

The engine decides what is said; the front decides where it goes and what it looks like.  No method blocks the caller except
``job_output`` and ``job_error_output`` (called by the relay's own thread only) and ``close``.
"""

from __future__ import annotations

from typing import Protocol


class Front(Protocol):
    """Where a run's words, figures and the jobs' output go."""

    def say(self, line: str, *, important: bool = False) -> None:
        """One status line, as the session's log has it, without a newline.

        ``important``: a failure or a warning, which is shown above a progress bar and with ``--quiet`` too.  The line may hold
        text from jobs and workers: the front makes it harmless to a terminal.
        """

    def progress(self, done: int, failed: int, running: int, total: int) -> None:
        """Where the run stands, in jobs: settled (``failed`` of them badly), under way, all.  Cheap; ten calls a second are enough."""

    def job_output(self, data: bytes) -> None:
        """Jobs' standard output: written whole before it returns.  Raises ``BrokenPipeError`` when nobody reads any more."""

    def job_error_output(self, data: bytes) -> None:
        """Jobs' standard error, in the same manner; a stderr that nobody reads is not an error."""

    def close(self, *, wait: bool = True) -> None:
        """Write all that was said and leave the terminal clean; without ``wait``, only as far as that goes at once.  Idempotent."""
