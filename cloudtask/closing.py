"""The last lines of a run: how its jobs stand, what was left behind, and what became of the machines that it launched."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cloudtask.instances.costs import Bill
from cloudtask.units import format_elapsed

Line = tuple[str, bool]
"""A status line, and whether a terminal shows it."""


@dataclass(frozen=True, kw_only=True)
class Tally:
    """How a session's jobs stand; ``elapsed`` is the run's, in seconds."""

    total: int
    succeeded: int
    failed: int
    timeouts: int
    elapsed: float


def last_lines(number: int, tally: Tally, where: str) -> list[Line]:
    """The summary in the original's words, and how to go on where jobs are pending."""
    pending = tally.total - tally.succeeded - tally.failed
    stamp = time.strftime("%Y-%m-%d %H:%M:%S")
    figures = f"{pending} pending, {tally.timeouts} timeouts, {tally.failed - tally.timeouts} errors, {tally.succeeded} OK"
    line = f"{stamp} :: session {number} ({format_elapsed(tally.elapsed)}): {tally.total - tally.succeeded}/{tally.total} !OK - {figures}"
    lines = [("", False), (line, True)]
    if pending:
        lines.append((f"# resume with: cloudtask --resume={number}{where}", True))
    return lines


def not_cleaned(hosts: Iterable[str], number: int) -> Line:
    """Agents that could not be told to go."""
    why = f"the agent there removes itself when its lease is over, or --resume={number} asks it"
    return f"# not cleaned up: {', '.join(sorted(set(hosts)))}: {why}", True


def machines(bill: Bill, unconfirmed: Sequence[str], kept: int) -> list[Line]:
    """What was launched, what of it is proven to be gone, and what it cost."""
    parts = [f"# machines: created {bill.created}, confirmed gone {bill.gone}"]
    parts += [f"kept {kept}"] if kept else []
    parts += [f"unconfirmed {len(unconfirmed)}"] if unconfirmed else []
    parts.append(f"{bill.hours:.2f} hours")
    parts.append(money(bill))
    return [(", ".join(parts), True)]


def hosts(bill: Bill, left: Sequence[str], idle: float) -> list[Line]:
    """The same for hosts, which are stopped and not destroyed, ``idle`` seconds after their last use."""
    lines = [(f"# hosts: used {bill.created}, let go {bill.gone}, {bill.hours:.2f} hours", True)]
    if left:
        lines.append((f"# the watchdog stops {' '.join(left)} when idle for {format_elapsed(idle)}", True))
    return lines


def money(bill: Bill) -> str:
    """``$0.34``, with what is not in it."""
    if bill.unpriced and bill.unpriced == bill.created:
        return "price unknown"
    digits = 4 if 0 < bill.dollars < 1 else 2
    return f"${bill.dollars:.{digits}f}" + (f" without {bill.unpriced} of unknown price" if bill.unpriced else "")
