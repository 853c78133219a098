"""Finding leaked machines at all places where they may be, and destroying them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from cloudtask.errors import CloudtaskError
from cloudtask.instances.leaked import Knowledge, Verdict, judge
from cloudtask.instances.notes import Notes
from cloudtask.instances.razing import Razing
from cloudtask.instances.sessions_here import SessionsHere
from cloudtask.places import Place
from cloudtask.providers import Instance
from cloudtask.providers.prices import known_price


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A machine with our tag at some place, and whether it is leaked.  ``root`` is its session's directory, where that is here;
    ``hourly`` what it costs, in dollars, None where unknown."""

    place: Place
    instance: Instance
    verdict: Verdict
    root: str | None
    hourly: float | None

    def __str__(self) -> str:
        instance = self.instance
        where = " ".join(word for word in (self.place.provider, instance.region, instance.size, instance.host or "") if word)
        cost = "" if self.hourly is None else f", ${self.hourly:.4g} an hour"
        return f"{instance.id} ({where}, {instance.state.value}{cost}): {self.verdict.why}"


class Leaks:
    """What is leaked at some places.  ``complaints`` are places that could not be asked; some may be known before.

    Raises SessionError.
    """

    def __init__(self, here: SessionsHere, complaints: Iterable[str], places: Sequence[Place]) -> None:
        self._here = here
        self.complaints = list(complaints)
        self.findings: list[Finding] = []
        self._look(places)

    def _look(self, places: Sequence[Place]) -> None:
        """Ask all places; every machine is found once."""
        listed = {place.key: self._list(place) for place in places}
        uids = {each.tags.session for instances, _ in listed.values() for each in instances if each.tags}
        # After the providers were asked: what a session has ordered meanwhile is not in their lists.
        known = self._here.knowledge(sorted(uids))
        seen: set[tuple[str, str]] = set()
        for place in places:
            instances, retags = listed[place.key]
            for instance in instances:
                if (place.provider, instance.id) not in seen:
                    seen.add((place.provider, instance.id))
                    self.findings.append(self._finding(place, instance, known, retags))

    def _list(self, place: Place) -> tuple[list[Instance], bool]:
        try:
            provider = place.make()
            return provider.find(None), provider.abilities.retags
        except CloudtaskError as error:
            self.complaints.append(f"{place}: {error}")
            return [], False

    def _finding(self, place: Place, instance: Instance, known: Knowledge, retags: bool) -> Finding:
        root = self._here.root(instance.tags.session) if instance.tags else None
        verdict = judge(instance, known, time.time(), retags=retags)
        session = known.sessions.get(instance.tags.session) if instance.tags else None
        price = session.prices.get(instance.id) if session else None
        hourly = price if price is not None else _price(place, instance)
        return Finding(place=place, instance=instance, verdict=verdict, root=root, hourly=hourly)

    @property
    def leaked(self) -> list[Finding]:
        """Those that are to be destroyed."""
        return [each for each in self.findings if each.verdict.leaked]

    def destroy(self, patience: float, tell: Callable[[str], None], stopped: Callable[[], bool]) -> dict[str, str]:
        """Destroy what is leaked, each place's within ``patience`` seconds, with a line for each that is gone; why others are left, by id.

        Sessions that are here are held meanwhile: one that somebody has taken up again keeps its machines.
        """
        left: dict[str, str] = {}
        with Notes() as notes:
            for place in {each.place.key: each.place for each in self.leaked}.values():
                mine = [each for each in self.leaked if each.place.key == place.key]
                free = [each for each in mine if each.root is None or notes.take(each.root)]
                left |= {each.instance.id: "its session was taken up again" for each in mine if each not in free}
                left |= _destroy(free, notes, patience, tell, stopped) if free else {}
        return left


def _destroy(
    findings: Sequence[Finding], notes: Notes, patience: float, tell: Callable[[str], None], stopped: Callable[[], bool]
) -> dict[str, str]:
    """Destroy what was found at one place."""
    found = {each.instance.id: each for each in findings}
    for root in {each.root for each in findings if each.root}:
        notes.destroying(root, [id for id, each in found.items() if each.root == root], "it is leaked")

    def gone(id: str) -> None:
        if root := found[id].root:
            notes.destroyed(root, id)
        tell(f"destroyed worker {id}")

    return Razing(findings[0].place.make, stopped, gone).raze(list(found), lambda id: found[id].instance.created or 1.0, patience).left


def _price(place: Place, instance: Instance) -> float | None:
    try:
        return known_price(place.settings, place.provider, instance.region, instance.size)
    except CloudtaskError:
        return None
