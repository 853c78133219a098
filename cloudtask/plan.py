"""What a run is to do, settled before anything is touched: the one record that the engine gets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from cloudtask.command import Command
from cloudtask.instances.demand import Limits
from cloudtask.model import Address
from cloudtask.providers import Abilities, Offer, Provider
from cloudtask.session import records
from cloudtask.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Launch:
    """Machines that a run may launch.

    ``make`` makes the provider; ``split`` is how many workers there are to be, listed ones among them; ``slots`` how many jobs one takes
    at a time (0: one for each CPU), and ``user`` whom to log in as in place of the image's own.  ``min_split`` and the limits are None
    where there are none; ``keep_for`` is in seconds, where machines are kept at the end and listed in the file ``keep``; then
    ``public_key`` is the user's own: the session's is gone with it, and would let nobody in who comes later.
    """

    provider: str
    make: Callable[[], Provider]
    abilities: Abilities
    offer: Offer
    label: str
    slots: int
    limits: Limits
    boot_timeout: float
    min_split: int | None = None
    keep: str | None = None
    keep_for: float | None = None
    public_key: str | None = None
    idle_timeout: float = 0.0
    user: str | None = None

    @property
    def split(self) -> int:
        """How many workers there are to be."""
        return self.limits.split


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All that a run is to do.

    ``settings`` are checked and complete (secrets too), and so is ``command``; ``sources`` says for each setting's key
    (``lost-timeout``) where its value came from.  ``saved`` is what ``conf.yaml`` is to hold: plain YAML values, without secrets, from
    which the settings can be had again.
    ``workers`` and ``spares`` have their slots settled (0 means one for each CPU).  ``lines`` are the raw job lines of a new
    session, None where one is taken up again; then ``session`` is its number, and ``kind`` says what to run of it.
    """

    settings: Settings
    command: Command
    sources: Mapping[str, str]
    saved: Mapping[str, object]
    workers: tuple[Address, ...]
    spares: tuple[Address, ...] = ()
    lines: Sequence[bytes] | None = None
    kind: records.RunKind = "new"
    session: int | None = None
    launch: Launch | None = None
