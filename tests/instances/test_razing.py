"""Destroying by hand: what counts as gone, what is left alone, and what is said of the rest."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from cloudtask.errors import ProviderBusyError, ProviderRefusedError, UsageError
from cloudtask.instances.razing import Razed, Razing
from cloudtask.providers import Abilities, Instance, InstanceState, Launched, Offer, Order, Provider, Tags

OURS = Tags(session="1-0123456789ab", controller="a" * 16, token="o1", expires=1)


@dataclass
class Account:
    """A provider's machines by id, each with the states that it goes through, one a look; the last one stays."""

    name: str = "account"
    states: dict[str, list[InstanceState]] = field(default_factory=dict)
    tags: Tags | None = OURS
    errors: list[Exception] = field(default_factory=list)
    """What the next calls of destroy raise, one each."""
    abilities: Abilities = field(default_factory=Abilities)
    obeys: bool = False
    asked: list[str] = field(default_factory=list)

    def describe(self, ids: Sequence[str]) -> list[Instance]:
        """See `Provider`."""
        return [self._next(id) for id in ids]

    def _next(self, id: str) -> Instance:
        states = self.states.get(id, [InstanceState.ABSENT])
        state = states.pop(0) if len(states) > 1 else states[0]
        return Instance(id=id, state=state, tags=self.tags if state is not InstanceState.ABSENT else None)

    def destroy(self, ids: Sequence[str]) -> None:
        """See `Provider`."""
        self.asked += ids
        if self.errors:
            raise self.errors.pop(0)
        if self.obeys:
            self.states |= {id: [InstanceState.GONE] for id in ids}

    def offer(self) -> Offer:
        """See `Provider`."""
        raise NotImplementedError

    def launch(self, order: Order) -> Launched:
        """See `Provider`."""
        raise NotImplementedError

    def find(self, session: str | None = None) -> list[Instance]:
        """See `Provider`."""
        raise NotImplementedError

    def renew(self, ids: Sequence[str], tags: Tags) -> None:
        """See `Provider`."""
        raise NotImplementedError

    def console_keys(self, id: str) -> list[str]:
        """See `Provider`."""
        raise NotImplementedError


RUNNING, LEAVING, GONE, ABSENT = InstanceState.RUNNING, InstanceState.LEAVING, InstanceState.GONE, InstanceState.ABSENT


def raze(
    make: Callable[[], Provider],
    *ids: str,
    patience: float = 10.0,
    launched: float = 0.0,
    certain: bool = True,
    stopped: Callable[[], bool] = lambda: False,
) -> Razed:
    return Razing(make, stopped, lambda id: None, certain=certain).raze(ids, lambda id: launched, patience)


def test_until_the_provider_says_that_they_are_gone() -> None:
    account = Account(states={"a": [RUNNING, LEAVING, GONE], "b": [RUNNING, GONE]})
    assert sorted(raze(lambda: account, "a", "b", "a").gone) == ["a", "b"]
    assert sorted(account.asked) == ["a", "b"]


def test_absent_is_gone_where_it_was_seen_before() -> None:
    account = Account(states={"a": [RUNNING, ABSENT]}, abilities=Abilities(settles=3600.0))
    razed = raze(lambda: account, "a")
    assert razed.gone == ["a"] and not razed.unknown


def test_absent_is_gone_where_we_know_that_it_was_there() -> None:
    account = Account(abilities=Abilities(settles=3600.0))
    assert raze(lambda: account, "a", launched=1.0) == Razed(gone=["a"], unknown=["a"], left={})
    assert list(raze(lambda: account, "a", launched=time.time(), patience=1.0).left) == ["a"], "it may be too new"


def test_absent_says_nothing_of_what_nobody_knows_here() -> None:
    """Another account or region would answer the same."""
    razed = raze(lambda: Account(abilities=Abilities(settles=0.5)), "a")
    assert not razed.gone and "no such machine is known there" in razed.left["a"]
    assert raze(lambda: Account(abilities=Abilities(settles=0.5)), "a", certain=False).unknown == ["a"]


def test_what_carries_no_tag_of_ours_is_not_even_asked_for() -> None:
    account = Account(states={"a": [RUNNING]}, tags=None)
    razed = raze(lambda: account, "a")
    assert "carries no tag" in razed.left["a"] and not account.asked
    forced = Account(states={"a": [RUNNING, GONE]}, tags=None)
    assert raze(lambda: forced, "a", certain=False).gone == ["a"]


def test_a_busy_provider_is_asked_again() -> None:
    account = Account(states={"a": [RUNNING]}, errors=[ProviderBusyError("slow down")], obeys=True)
    assert raze(lambda: account, "a").gone == ["a"] and account.asked == ["a", "a"]


def test_a_refusal_is_final_the_second_time() -> None:
    account = Account(states={"a": [RUNNING], "b": [RUNNING, LEAVING, LEAVING, LEAVING, GONE]}, errors=[ProviderRefusedError("no")] * 9)
    razed = raze(lambda: account, "a", "b")
    assert razed.left == {"a": "no"} and razed.gone == ["b"]


def test_what_is_left_says_how_it_stands() -> None:
    razed = raze(lambda: Account(states={"a": [LEAVING]}), "a", patience=0.3)
    assert razed.left == {"a": "it is leaving"}


def test_a_provider_that_cannot_be_made() -> None:
    def make() -> Provider:
        raise UsageError("no credentials")

    assert raze(make, "a").left == {"a": "no credentials"}


def test_nobody_waits_for_a_call_that_hangs() -> None:
    @dataclass
    class Hanging(Account):
        def describe(self, ids: Sequence[str]) -> list[Instance]:
            threading.Event().wait(20)
            return []

    began = time.monotonic()
    razed = raze(Hanging, "a", stopped=lambda: time.monotonic() - began > 0.3)
    assert razed.left == {"a": "it was not waited for"} and time.monotonic() - began < 5
