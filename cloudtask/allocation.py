"""Which workers a run gets, settled before anything starts.

No workers listed and nothing said of launching: this machine.  A setting that launches machines never falls back to it.
"""

from __future__ import annotations

import dataclasses

from cloudtask.addresses import LOCAL
from cloudtask.errors import UsageError
from cloudtask.model import Address
from cloudtask.settings import Settings
from cloudtask.settings_sources import Values

HUB_KEYS = ("hub-apikey", "backup-id", "ami-id", "snapshot-id")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Allocation:
    """The workers that take jobs, and the spares that step in when one is lost.  Each has its slots settled, 0 is one for each CPU."""

    workers: tuple[Address, ...]
    spares: tuple[Address, ...] = ()


def allocate(values: Values, *, again: bool = False) -> Allocation:
    """Settle it.  Raises UsageError where more workers are wanted than there are.

    ``again``: a session is taken up, whose own settings decide, and not an API key that has turned up in the environment since.
    """
    settings = values.settings
    if launches := _launch_setting(values, again):
        _refuse_launch(settings, launches)
    allocation = _split(values) if settings.workers else _this_machine(values)
    if settings.overlay and any(worker.local for worker in allocation.workers + allocation.spares):
        said = values.said("overlay")
        raise UsageError(f"{said} cannot be laid over this machine: list workers that are reached by ssh, or drop it")
    return allocation


def _launch_setting(values: Values, again: bool) -> str | None:
    settings = values.settings
    if settings.provider:
        return values.said("provider", settings.provider)
    given = (settings.hub_apikey and not again, settings.backup_id, settings.ami_id, settings.snapshot_id)
    return next((values.said(key) for key, value in zip(HUB_KEYS, given, strict=True) if value), None)


def _refuse_launch(settings: Settings, said: str) -> None:
    listed = len(settings.workers)
    if settings.provider or not listed or (settings.split or 0) > listed:
        wanted = "" if settings.provider else " means workers launched by provider=hub, and"
        raise UsageError(
            f"{said}{wanted or ':'} launching machines is not built yet; list workers with --workers (local is this machine) and drop it"
        )


def _this_machine(values: Values) -> Allocation:
    settings = values.settings
    if settings.split is not None and settings.slots is not None:
        split, slots = values.said("split"), values.said("slots")
        raise UsageError(f"{split} and {slots} mean the same where the only worker is this machine: give one of them")
    number = settings.split if settings.split is not None else settings.slots or 0
    return Allocation(workers=(Address(host=LOCAL, local=True, slots=number),))


def _split(values: Values) -> Allocation:
    settings = values.settings
    listed = tuple(_with_slots(worker, settings.slots) for worker in settings.workers)
    split = len(listed) if settings.split is None else settings.split
    if split > len(listed):
        said = values.said("split", split)
        raise UsageError(f"{said} is more workers than are listed ({len(listed)}): list more, or split among fewer")
    return Allocation(workers=listed[:split], spares=listed[split:])


def _with_slots(worker: Address, slots: int | None) -> Address:
    if worker.slots is not None:
        return worker
    return dataclasses.replace(worker, slots=slots if slots is not None else 0 if worker.local else 1)
