"""The settings of the ``hosts`` provider beside the common ones: the inventory, and which of its hosts are taken first."""

from __future__ import annotations

import re

from cloudtask import kinds
from cloudtask.settings import Row

POLICIES = ("sequential", "random", "smart", "frugal")
GROUP = "Launched workers: hosts"
_LABEL = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./-]{0,62}(=[A-Za-z0-9_./:-]{0,63})?")


def labels(value: object, scene: kinds.Scene) -> tuple[str, ...]:
    """``LABEL`` or ``LABEL=VALUE`` for each; text, or a list of texts."""
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, (list, tuple)) or not all(isinstance(item, str) for item in items):
        raise ValueError("must be text or a list of texts")
    for item in items:
        if item and not _LABEL.fullmatch(item):
            raise ValueError(f"{item!r} is no label: LABEL or LABEL=VALUE")
    return tuple(item for item in items if item)


ROWS = [
    Row(
        name="hosts_file",
        parse=kinds.readable_file,
        default=None,
        help="inventory of the hosts that can be started and stopped",
        metavar="FILE",
        group=GROUP,
        shown_default="~/.config/cloudtask/hosts.yaml",
    ),
    Row(
        name="select",
        parse=labels,
        default=(),
        help="only hosts with this label; can be given again, and all of them must fit",
        metavar="LABEL[=VALUE]",
        group=GROUP,
        repeatable=True,
    ),
    Row(
        name="policy",
        parse=kinds.choice(*POLICIES),
        default=POLICIES[0],
        help="which free hosts are taken first: those listed first, any, those with the most slots, those with the fewest",
        metavar="|".join(POLICIES),
        group=GROUP,
    ),
]
