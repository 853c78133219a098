"""Destroying machines of one provider by hand, and waiting until the provider says that they are gone.

For who runs no session; `ending` and `looking` do it for one that runs, `reaper` for a dead one.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from cloudtask.errors import CloudtaskError, ProviderBusyError
from cloudtask.instances.calls import Lane, Work
from cloudtask.providers import Instance, InstanceState, Provider

AGAIN_SECONDS = 30.0
"""After so long a machine that is still there is destroyed again."""

_FIRST_LOOK, _SLOWEST = 0.2, 5.0
_LONGEST_WAIT = 60.0
_REFUSALS = 2
_ABSENCES = 2


class StoppedError(Exception):
    """Somebody wants it to end; what was asked for goes on at the provider."""


@dataclass
class _Target:
    """A machine on its way out.  Times are of the monotonic clock, but ``launched``: seconds since 1970, 0 where that is not known."""

    id: str
    launched: float
    asked_at: float = 0.0
    absences: int = 0
    absent_since: float = 0.0
    last: Instance | None = None


@dataclass(frozen=True, kw_only=True)
class Razed:
    """What came of it: machines that are ``gone``, of those the ones that the provider knew nothing of (``unknown``), and why others are
    ``left``, by id."""

    gone: Sequence[str] = ()
    unknown: Sequence[str] = ()
    left: dict[str, str] = field(default_factory=dict)


class Razing:
    """One provider's machines.  ``make`` makes it; ``stopped`` says that somebody wants it to end.

    ``on_gone(id)`` is told of each machine as soon as it is gone.  ``certain``: leave those alone that carry no tag of ours, and those that
    the provider knows nothing of and that we do not know were there, for it may be another account's or region's.
    """

    def __init__(
        self, make: Callable[[], Provider], stopped: Callable[[], bool], on_gone: Callable[[str], None], *, certain: bool = True
    ) -> None:
        self._woken = threading.Event()
        self._lane = Lane(make, self._woken.set)
        self._stopped = stopped
        self._on_gone = on_gone
        self._certain = certain
        self._settles = 0.0
        self._targets: dict[str, _Target] = {}
        self._gone: list[str] = []
        self._unknown: list[str] = []
        self._left: dict[str, str] = {}
        self._failure = ""
        self._failures = 0
        self._refusals = 0
        self._ask_after = 0.0

    def raze(self, ids: Sequence[str], launched: Callable[[str], float], patience: float) -> Razed:
        """Destroy machines and wait up to ``patience`` seconds for their end.

        ``launched`` says when a machine was made here, in seconds since 1970, 0 where nobody knows: one that was, and that the provider
        knows no more, is gone.
        """
        self._targets = {id: _Target(id, launched(id)) for id in dict.fromkeys(ids)}
        deadline, wait = time.monotonic() + patience, _FIRST_LOOK
        try:
            self._settles = self._certainly(lambda provider: provider.abilities.settles)
            self._look()
            while self._targets:
                self._ask()
                self._look()
                if time.monotonic() > deadline:
                    self._give_up("it is still there")
                if self._targets:
                    self._pause(wait)
                    wait = min(_SLOWEST, wait * 1.4)
        except StoppedError:
            self._give_up("it was not waited for")
        except CloudtaskError as error:
            self._give_up(str(error))
        finally:
            self._lane.close()
        return Razed(gone=self._gone, unknown=self._unknown, left=self._left)

    # --- steps -------------------------------------------------------------------------------------------------------

    def _ask(self) -> None:
        """Ask for the end of what was not asked for yet, or long ago.  Raises what is final."""
        now = time.monotonic()
        seen = [each for each in self._targets.values() if each.last or not self._certain]
        due = [each for each in seen if not each.asked_at or now - each.asked_at > AGAIN_SECONDS]
        if not due or now < self._ask_after:
            return
        for each in due:
            each.asked_at = now
        outcome = self._call(lambda provider: provider.destroy([each.id for each in due]))
        if not isinstance(outcome, CloudtaskError):
            self._failure = ""
            return
        self._failure = str(outcome)
        self._failures += 1
        self._refusals += not isinstance(outcome, ProviderBusyError)
        self._ask_after = time.monotonic() + min(_LONGEST_WAIT, 0.5 * 2 ** min(self._failures, 10))
        for each in due:
            each.asked_at = 0.0

    def _look(self) -> None:
        """How they stand.  Raises what is final; no answer is none."""
        outcome = self._call(lambda provider: provider.describe(list(self._targets)))
        if isinstance(outcome, ProviderBusyError):
            self._failure = self._failure or str(outcome)
            return
        if isinstance(outcome, CloudtaskError):
            raise outcome
        assert isinstance(outcome, list)
        for instance in outcome:
            if target := self._targets.get(instance.id):
                self._take_in(target, instance)

    def _take_in(self, target: _Target, instance: Instance) -> None:
        known_before = target.last is not None and target.last.exists
        if instance.state is InstanceState.ABSENT:
            self._missing(target, known_before)
            target.last = target.last or instance
            return
        target.absences, target.absent_since, target.last = 0, 0.0, instance
        if instance.state is InstanceState.GONE:
            self._finish(target)
        elif self._certain and instance.tags is None:
            self._leave(target, "it carries no tag of cloudtask: destroy it yourself, or with --force")
        elif self._refusals >= _REFUSALS and instance.state is not InstanceState.LEAVING:
            self._leave(target, self._failure)

    def _missing(self, target: _Target, known_before: bool) -> None:
        """The provider knows nothing of it: it may be gone, too new, or never have been there."""
        now = time.monotonic()
        target.absences += 1
        target.absent_since = target.absent_since or now
        age = time.time() - target.launched if target.launched else now - target.absent_since
        settled = age >= self._settles
        if target.absences < _ABSENCES or not (known_before or settled):
            return
        if known_before or target.launched or not self._certain:
            self._unknown += [] if known_before else [target.id]
            self._finish(target)
        else:
            self._leave(target, "no such machine is known there; if it is no other account or region, --force takes it off the list")

    def _finish(self, target: _Target) -> None:
        del self._targets[target.id]
        self._gone.append(target.id)
        self._on_gone(target.id)

    def _leave(self, target: _Target, why: str) -> None:
        del self._targets[target.id]
        self._left[target.id] = why

    def _give_up(self, why: str) -> None:
        for target in list(self._targets.values()):
            state = f"it is {target.last.state.value}" if target.last and target.last.exists else ""
            self._leave(target, "; ".join(filter(None, (state or why, self._failure if self._failure != why else ""))) or why)

    # --- calls -------------------------------------------------------------------------------------------------------

    def _certainly(self, work: Callable[[Provider], float]) -> float:
        outcome = self._call(work)
        if isinstance(outcome, CloudtaskError):
            raise outcome
        assert isinstance(outcome, float | int)
        return outcome

    def _call(self, work: Work) -> object:
        """What a call came to, in a thread of its own: who wants to stop need not wait for it.  Raises StoppedError."""
        answers: list[object] = []
        self._lane.start(work, answers.append, time.monotonic())
        while not answers:
            self._pause(0.2)
            self._lane.collect(time.monotonic())
        return answers[0]

    def _pause(self, seconds: float) -> None:
        """Until something is there, or for so long.  Raises StoppedError."""
        end = time.monotonic() + seconds
        while not self._woken.wait(min(0.1, max(0.0, end - time.monotonic()))) and time.monotonic() < end:
            if self._stopped():
                raise StoppedError
        self._woken.clear()
        if self._stopped():
            raise StoppedError
