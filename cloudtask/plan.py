"""What a run is to do, settled before anything is touched: the one record that the engine gets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from cloudtask.command import Command
from cloudtask.model import Address
from cloudtask.settings import Settings


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
    kind: Literal["new", "resume", "retry"] = "new"
    session: int | None = None
