"""What the user's settings mean to the scheduler."""

from __future__ import annotations

from dataclasses import dataclass

from cloudtask.model import Halt

_MOST_DOUBLINGS = 60


@dataclass(frozen=True, kw_only=True)
class Policy:
    """The rules of one run.

    ``retry_delay`` and ``retry_delay_max`` in seconds; ``strikes`` 0 is off; ``poison_after`` is how many losses of a started
    attempt settle a job as poison.  ``at_most_once`` goes with no retries only.
    """

    retries: int
    strikes: int
    retry_delay: float
    retry_delay_max: float = 300
    at_most_once: bool
    halt: Halt | None
    poison_after: int = 3

    def __post_init__(self) -> None:
        assert not (self.at_most_once and self.retries), "at most once does not go with retries"

    def delay(self, job: int, failures: int) -> float:
        """Seconds until the same worker may retry a job that failed ``failures`` times: doubling up to the maximum, half to whole of it."""
        longest = min(self.retry_delay * 2.0 ** min(failures - 1, _MOST_DOUBLINGS), self.retry_delay_max)
        return longest * (0.5 + 0.5 * _fraction(job, failures))

    def must_run_alone(self, losses: int) -> bool:
        """True for a job whose next loss settles it as poison: nothing else is put at risk with it."""
        return 0 < losses >= self.poison_after - 1

    def halts(self, failed: int, total: int) -> bool:
        """True when ``failed`` jobs out of ``total`` are more than the user wants to see."""
        if self.halt is None:
            return False
        if self.halt.count is not None:
            return failed >= self.halt.count
        return self.halt.percent is not None and failed * 100 >= self.halt.percent * total


def _fraction(job: int, failures: int) -> float:
    """0 to 1, always the same for the same try, and unlike that of its neighbours (Knuth's multiplicative hash, mixed twice)."""
    mixed = (job * 2654435761 + failures * 40503) & 0xFFFFFFFF
    mixed = ((mixed ^ mixed >> 15) * 2246822519) & 0xFFFFFFFF
    return (mixed ^ mixed >> 13) / 0xFFFFFFFF
