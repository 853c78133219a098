"""Which workers a run gets, settled before anything starts.

No workers listed and nothing said of launching: this machine.  A setting that launches machines never falls back to it.
"""

from __future__ import annotations

import dataclasses

from cloudtask.addresses import LOCAL
from cloudtask.errors import UsageError
from cloudtask.model import Address
from cloudtask.settings import BUILT_IN, LAUNCHING
from cloudtask.settings_sources import COMMAND_LINE, Values

_OF_THE_HUB = ("provider", "hub_apikey", "backup_id", "ami_id", "snapshot_id", "ec2_region", "ec2_size", "ec2_type")
"""With a Hub's key these launch by themselves where workers are missing; where none is, they are of no account, as in the original."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Allocation:
    """The workers that take jobs, and the spares that step in when one is lost.  Each has its slots settled, 0 is one for each CPU.

    Where ``provider`` is set, machines are launched until there are ``split`` workers.
    """

    workers: tuple[Address, ...]
    spares: tuple[Address, ...] = ()
    provider: str | None = None
    split: int = 0


def allocate(values: Values, *, again: bool = False) -> Allocation:
    """Settle it.  Raises UsageError where more workers are wanted than there are.

    ``again``: a session is taken up, whose own settings decide, and not an API key that has turned up in the environment since.
    """
    settings = values.settings
    if provider := _provider(values, again):
        allocation = _with_launched(values, provider)
    else:
        _refuse_orphans(values)
        allocation = _split(values) if settings.workers else _this_machine(values)
    if settings.overlay and any(worker.local for worker in allocation.workers + allocation.spares):
        said = values.said("overlay")
        raise UsageError(f"{said} cannot be laid over this machine: list workers that are reached by ssh, or drop it")
    return allocation


def _provider(values: Values, again: bool) -> str | None:
    """Where machines are launched: --provider, or the Hub, whose key alone means it where workers are missing, as in the original."""
    settings = values.settings
    if settings.provider:
        return settings.provider
    given = (settings.hub_apikey and not again, settings.backup_id, settings.ami_id, settings.snapshot_id)
    missing = not settings.workers or (settings.split or 0) > len(settings.workers)
    return "hub" if any(given) and missing else None


def _refuse_orphans(values: Values) -> None:
    """Who says how machines are launched wants some: never this machine in their place."""
    for row in BUILT_IN:
        if row.group == LAUNCHING and row.name not in _OF_THE_HUB and values.sources.get(row.key) == COMMAND_LINE:
            raise UsageError(f"{row.option} is about machines that are launched: say where with --provider, or drop it")
    for key in (name.replace("_", "-") for name in values.settings.extra):
        if values.sources.get(key) == COMMAND_LINE:
            raise UsageError(f"--{key} is about machines that are launched: say where with --provider, or drop it")


def _with_launched(values: Values, provider: str) -> Allocation:
    settings = values.settings
    listed = tuple(_with_slots(worker, settings.slots) for worker in settings.workers)
    split = settings.split if settings.split is not None else max(1, len(listed))
    if settings.min_split is not None and settings.min_split > split:
        least, most = values.said("min-split", settings.min_split), values.said("split", split)
        raise UsageError(f"{least} is more than {most}: give a smaller one, or split among more")
    return Allocation(workers=listed[:split], spares=listed[split:], provider=provider, split=split)


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
        ways_out = "list more, launch some with --provider, or split among fewer"
        raise UsageError(f"{said} is more workers than are listed ({len(listed)}): {ways_out}")
    return Allocation(workers=listed[:split], spares=listed[split:])


def _with_slots(worker: Address, slots: int | None) -> Address:
    if worker.slots is not None:
        return worker
    return dataclasses.replace(worker, slots=slots if slots is not None else 0 if worker.local else 1)
