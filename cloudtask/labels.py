"""What a run's jobs are, as shell code and in words, and which attempts run now."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cloudtask.command import Command
from cloudtask.model import Attempt


@dataclass(frozen=True, kw_only=True)
class Jobs:
    """What is to be run: the lines, and what makes shell code of them."""

    command: Command
    lines: Sequence[bytes]

    def code(self, job: int) -> bytes:
        """The job's shell code."""
        return self.command.render(self.lines[job - 1], job)

    def label(self, job: int) -> str:
        """The job as status lines name it."""
        return self.command.describe(self.lines[job - 1], job)


class Running:
    """The attempts that have started and not ended, as far as is known, with the words for them made once."""

    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs
        self._labels: dict[Attempt, str] = {}
        self._running: set[Attempt] = set()

    def __len__(self) -> int:
        return len(self._running)

    def began(self, attempts: Iterable[Attempt]) -> None:
        """They run."""
        self._running.update(attempts)

    def over(self, attempt: Attempt) -> None:
        """It ended, or went away."""
        self._labels.pop(attempt, None)
        self._running.discard(attempt)

    def label(self, attempt: Attempt) -> str:
        """How status lines name it."""
        label = self._labels.get(attempt)
        if label is None:
            label = self._labels[attempt] = self._jobs.label(attempt.job)
        return label
