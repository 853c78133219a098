"""Settings that do not go together: checked when all values are known, before anything is touched."""

from __future__ import annotations

from cloudtask.errors import SettingError
from cloudtask.settings_sources import COMMAND_LINE, DEFAULT, Values


def check(values: Values) -> None:
    """Raises SettingError on the first pair of settings that exclude each other, naming where both came from."""
    settings = values.settings
    if settings.at_most_once and settings.retries:
        once, retries = _said(values, "at-most-once"), _said(values, "retries", settings.retries)
        raise SettingError(f"{once} and {retries} exclude each other: a retry runs a job again; give --retries=0")
    if settings.keep_order and settings.output == "line":
        order, output = _said(values, "keep-order"), _said(values, "output", "line")
        raise SettingError(
            f"{order} and {output} exclude each other: lines that are shown as they come are in no order; give --output=group"
        )
    if settings.ami_id and settings.snapshot_id:
        ami, snapshot = _said(values, "ami-id"), _said(values, "snapshot-id")
        raise SettingError(f"{ami} and {snapshot} exclude each other: a machine is made from one of them")
    if settings.lease <= settings.heartbeat:
        lease, heartbeat = _said(values, "lease", f"{settings.lease:g}s"), _said(values, "heartbeat", f"{settings.heartbeat:g}s")
        raise SettingError(f"{lease} must be longer than {heartbeat}: each heartbeat renews the lease")


def _said(values: Values, key: str, value: object = None) -> str:
    source = values.sources[key]
    origin = "" if source in (DEFAULT, COMMAND_LINE) else f" (from the {source})"
    return f"--{key}" + ("" if value is None else f"={value}") + origin
