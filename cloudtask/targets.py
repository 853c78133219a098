"""From the lines of a file of workers to machines that can be destroyed: each at its place, by its id.

A line with ``session=`` of a session that is here is taken with that session's settings, any other with those of command line, environment
and configuration.  A bare address is a machine only if exactly one has it that exists and carries our tag: addresses are used again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cloudtask.errors import CloudtaskError
from cloudtask.instances.sessions_here import SessionsHere
from cloudtask.model import Address
from cloudtask.places import Place, Places
from cloudtask.providers import Instance
from cloudtask.worker_file import WorkerLine


@dataclass(frozen=True, kw_only=True)
class Target:
    """A machine that a line names.  ``root`` is the directory of its session, where that is here."""

    line: WorkerLine
    id: str
    place: Place
    root: str | None = None


class Targets:
    """``named`` are the providers of the command line; without any, all that are known are asked for bare addresses."""

    def __init__(self, places: Places, here: SessionsHere, named: Sequence[str]) -> None:
        self._places = places
        self._here = here
        self._named = named
        self._listed: list[tuple[Place, Instance]] | None = None
        self._unasked: list[str] = []

    def find(self, line: WorkerLine) -> Target:
        """The machine of a line.  Raises CloudtaskError saying why there is none."""
        address, facts = line.address, line.facts
        if address.local:
            raise CloudtaskError("it is this machine")
        if "id" not in facts:
            return self._by_address(line, address)
        provider = facts.get("provider") or (self._named[0] if len(self._named) == 1 else None)
        if provider is None:
            raise CloudtaskError("its line names no provider: name it with --provider")
        root = self._here.root(facts["session"]) if "session" in facts else None
        place = self._places.of_session(root, provider) if root else self._places.named(provider, facts.get("region", ""))
        return Target(line=line, id=facts["id"], place=place, root=root)

    def _by_address(self, line: WorkerLine, address: Address) -> Target:
        if self._listed is None:
            self._list()
        found = {(place.provider, each.id): (place, each) for place, each in self._listed or () if _has(each, address)}
        if self._unasked:
            # Another one might have the same address.
            raise CloudtaskError(f"its line has no id, and not all places could be asked whose it is: {'; '.join(self._unasked)}")
        if len(found) != 1:
            how_many = f"{len(found)} machines" if found else "no machine"
            raise CloudtaskError(f"its line has no id, and {how_many} of ours at any provider that is known here has this address")
        [(place, instance)] = found.values()
        root = self._here.root(instance.tags.session) if instance.tags else None
        return Target(line=line, id=instance.id, place=place, root=root)

    def _list(self) -> None:
        self._listed = []
        places = [self._places.named(name) for name in self._named]
        if not places:
            places, self._unasked = self._places.all_known(self._here)
        for place in places:
            try:
                self._listed += [(place, each) for each in place.make().find(None)]
            except CloudtaskError as error:
                self._unasked.append(f"{place}: {error}")


def _has(instance: Instance, address: Address) -> bool:
    return instance.host == address.host and (address.port is None or instance.port is None or instance.port == address.port)
