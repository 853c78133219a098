"""What to do about an agent's inventory: pure.

The journal may know less than the agents (it lost its last records) or more (an agent died); whatever they disagree about is
decided here, before anything is sent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from cloudtask.model import Attempt, Result
from cloudtask.workers.messages import Row


@dataclass(kw_only=True)
class Findings:
    """The inventory, sorted.

    ``adopted``: attempts to take up that the journal did not know (with: has it started); ``queued``, ``running`` and ``held``
    (ended, output not fetched): to be delivered by the agent; ``bare``: ends of which the agent has only the outcome left;
    ``lost``: started and gone; ``returned``: never reached the agent; ``recorded``: ends the journal has; ``unwanted``: still
    under way though their job is settled.
    """

    adopted: list[tuple[Attempt, bool]] = field(default_factory=list)
    queued: list[Attempt] = field(default_factory=list)
    running: list[Attempt] = field(default_factory=list)
    held: list[Attempt] = field(default_factory=list)
    bare: list[Result] = field(default_factory=list)
    lost: list[Attempt] = field(default_factory=list)
    returned: list[Attempt] = field(default_factory=list)
    recorded: list[Attempt] = field(default_factory=list)
    unwanted: list[Attempt] = field(default_factory=list)

    @property
    def wanted(self) -> list[Attempt]:
        """What the agent is to deliver."""
        return self.queued + self.running + self.held


def reconcile(rows: Iterable[Row], held: Iterable[Attempt], fresh: bool, is_over: Callable[[Attempt], bool]) -> Findings:
    """Hold an agent's rows against the attempts that the journal says it holds.

    ``is_over`` tells whether an attempt that is not held is done with: its end is in the journal, or its job is settled.
    ``fresh`` says that the agent's home is new: what it does not have is gone, otherwise it never arrived.
    """
    findings = Findings()
    missing = set(held)
    for row in rows:
        if row.attempt.job < 1:
            continue
        if row.attempt in missing:
            missing.discard(row.attempt)
            _take_up(findings, row)
        elif is_over(row.attempt):
            _put_away(findings, row)
        else:
            findings.adopted.append((row.attempt, row.state != "queued"))
            _take_up(findings, row)
    (findings.lost if fresh else findings.returned).extend(sorted(missing))
    return findings


def _take_up(findings: Findings, row: Row) -> None:
    if row.state == "queued":
        findings.queued.append(row.attempt)
    elif row.state == "running":
        findings.running.append(row.attempt)
    elif row.state == "ended":
        findings.held.append(row.attempt)
    elif row.state == "acked" and row.result is not None:
        findings.bare.append(row.result)
    else:
        findings.lost.append(row.attempt)


def _put_away(findings: Findings, row: Row) -> None:
    if row.state == "ended":
        findings.recorded.append(row.attempt)
    elif row.state in ("queued", "running"):
        findings.unwanted.append(row.attempt)
