"""How many jobs a supervisor asks for: as many as the slots take, and short ones ahead, so that no slot waits for a round trip."""

from __future__ import annotations

from cloudtask.workers.ledger import Ledger

_PREFETCH_SECONDS = 0.25


class Appetite:
    """Knows what was asked for and has not come.

    ``ahead`` False: never more than the slots take (at most once).  ``cautious``: nothing ahead while jobs fail, because each
    that fails on a bad worker counts as a strike (--strikes), and what it was sent ahead would be spent.
    """

    def __init__(self, ledger: Ledger, *, ahead: bool, cautious: bool = False) -> None:
        self._ledger = ledger
        self._ahead = ahead
        self._cautious = cautious
        self._asked = 0

    def fed(self, count: int) -> None:
        """So many have come."""
        self._asked = max(0, self._asked - count)

    def room(self, slots: int, round_trip: float) -> int:
        """How many more to ask for now; they then count as asked for.

        0 while at least half of what is to be held ahead is there: fewer, larger answers.
        """
        wary = self._cautious and self._ledger.failing
        ahead = self._ledger.appetite(slots, max(_PREFETCH_SECONDS, 2 * round_trip)) if self._ahead and not wary else 0
        held = len(self._ledger) + self._asked
        if held >= slots and held > slots + ahead // 2:
            return 0
        count = max(0, slots + ahead - held)
        self._asked += count
        return count
