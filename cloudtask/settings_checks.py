"""Settings that do not go together: checked when all values are known, before anything is touched."""

from __future__ import annotations

from cloudtask.errors import SettingError
from cloudtask.settings_sources import Values


def check(values: Values) -> None:
    """Raises SettingError on the first pair of settings that exclude each other, naming where both came from."""
    settings = values.settings
    if settings.at_most_once and settings.retries:
        once, retries = values.said("at-most-once"), values.said("retries", settings.retries)
        raise SettingError(f"{once} and {retries} exclude each other: a retry runs a job again; give --retries=0")
    if settings.keep_order and settings.output == "line":
        order, output = values.said("keep-order"), values.said("output", "line")
        raise SettingError(
            f"{order} and {output} exclude each other: lines that are shown as they come are in no order; give --output=group"
        )
    if settings.ami_id and settings.snapshot_id:
        ami, snapshot = values.said("ami-id"), values.said("snapshot-id")
        raise SettingError(f"{ami} and {snapshot} exclude each other: a machine is made from one of them")
    if settings.keep and settings.provider == "hosts":
        raise SettingError(f"{values.said('keep')} and --provider=hosts exclude each other: hosts are there for the next session anyway")
    if settings.lease <= settings.heartbeat:
        lease, heartbeat = values.said("lease", f"{settings.lease:g}s"), values.said("heartbeat", f"{settings.heartbeat:g}s")
        raise SettingError(f"{lease} must be longer than {heartbeat}: each heartbeat renews the lease")
