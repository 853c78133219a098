"""How many machines to ask for, and when to ask for no more.  Pure: no clock, no I/O; who calls says what time it is."""

from __future__ import annotations

from dataclasses import dataclass

IN_A_ROW = 3
"""Machines that fail one after the other until no more are launched."""

_FIRST_WAIT, _LONGEST_WAIT = 15.0, 300.0


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the settings allow.  None: no limit."""

    split: int
    replace: int | None = None
    max_workers: int | None = None
    max_hourly: float | None = None
    max_cost: float | None = None
    price: float | None = None
    minimum_charge: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Need:
    """What a run needs now: ``workers`` are those in use that are not machines of ours, ``joining`` of them do not take jobs yet;
    ``attempts`` is what somebody must still be sent, ``slots`` how many of them one machine takes at a time."""

    workers: int
    attempts: int
    slots: int = 1
    joining: int = 0


@dataclass(frozen=True, kw_only=True)
class Have:
    """What there is of machines: ``serving`` ones take jobs, ``coming`` ones will (set up, booting, or ordered and not answered yet),
    ``leaving`` ones do neither (they drain, are out of reach or being destroyed) and still cost; all ``ordered`` so far, and the
    ``dollars`` spent."""

    serving: int
    coming: int
    leaving: int
    ordered: int
    dollars: float


class Demand:
    """Remembers how machines did, and says how many to order."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.stopped = ""
        """Why no more are launched; empty while they are."""
        self._first: int | None = None
        self._boot_failures = 0
        self._lost_replacements = 0
        self._refusals = 0
        self._not_before = 0.0
        self._ceiling: int | None = None

    def stop(self, why: str) -> None:
        """Launch no more, for good."""
        self.stopped = self.stopped or why

    @property
    def begun(self) -> bool:
        """The first order was given."""
        return self._first is not None

    # --- how machines did --------------------------------------------------------------------------------------------

    def answered(self) -> None:
        """A machine is ready."""
        self._boot_failures = 0

    def good_job(self) -> None:
        """A job succeeded on a machine."""
        self._lost_replacements = 0

    def never_ready(self, why: str, *, replacement: bool) -> None:
        """A machine was not ready in time, or went while it booted."""
        self._boot_failures += 1
        if self._boot_failures >= IN_A_ROW:
            self.stop(f"{IN_A_ROW} machines in a row were never ready: {why}")
        self.lost(why, replacement=replacement)

    def lost(self, why: str, *, replacement: bool) -> None:
        """A machine was lost or retired."""
        if not replacement:
            return
        self._lost_replacements += 1
        if self._lost_replacements >= IN_A_ROW:
            self.stop(f"{IN_A_ROW} replacements were lost without one good job in between: {why}")

    def filled(self) -> None:
        """An order was answered in full."""
        self._refusals = 0
        self._ceiling = None

    def fell_short(self, machines: int) -> None:
        """The provider gives no more than these ``machines``: only lost ones are replaced from now on."""
        self._ceiling = machines

    def refused(self, why: str, machines: int, now: float) -> None:
        """The provider gave none of what was ordered, when there were so many ``machines``."""
        self._refusals += 1
        if not machines or self._refusals >= IN_A_ROW:
            self.stop(why)
        self._wait(self._refusals, now)

    def unanswered(self, tries: int, now: float) -> float:
        """An order had no answer for the ``tries``-th time; when to ask again."""
        return now + min(_LONGEST_WAIT, 2.0 * float(1 << min(tries, 10)))

    def _wait(self, times: int, now: float) -> None:
        self._not_before = now + min(_LONGEST_WAIT, _FIRST_WAIT * float(1 << min(times - 1, 10)))

    # --- how many ----------------------------------------------------------------------------------------------------

    def order(self, need: Need, have: Have, now: float) -> int:
        """How many machines to order now; remembers the first order."""
        count = self._wanted(need, have) if not self.stopped and now >= self._not_before else 0
        count = min(count, self._allowed(have))
        if count > 0 and self._first is None:
            self._first = count
        return max(0, count)

    def room(self, have: Have) -> int:
        """How many more the limits allow."""
        return self._allowed(have)

    def is_replacement(self, ordered: int) -> bool:
        """Whether the machine that is the ``ordered``-th (from 1) stands in for one that was lost."""
        return self._first is not None and ordered > self._first

    def over_budget(self, dollars: float) -> bool:
        """Whether what was spent has reached --max-cost."""
        return self._limits.max_cost is not None and dollars >= self._limits.max_cost

    def _wanted(self, need: Need, have: Have) -> int:
        missing = self._limits.split - need.workers - have.serving - have.coming
        useful = -(-need.attempts // max(1, need.slots)) - need.joining - have.coming
        return min(missing, useful)

    def _allowed(self, have: Have) -> int:
        limits = self._limits
        present = have.serving + have.coming
        allowed = [1 << 30]
        if limits.replace is not None and self._first is not None:
            allowed.append(self._first + limits.replace - have.ordered)
        if self._ceiling is not None:
            allowed.append(self._ceiling - present - have.leaving)
        if limits.max_workers is not None:
            allowed.append(limits.max_workers - present - have.leaving)
        if limits.max_hourly is not None and limits.price:
            allowed.append(int(limits.max_hourly / limits.price + 1e-9) - present - have.leaving)
        if limits.max_cost is not None and limits.price:
            least = max(limits.minimum_charge, 1e-9)
            allowed.append(int((limits.max_cost - have.dollars) / least + 1e-9))
        return max(0, min(allowed))
