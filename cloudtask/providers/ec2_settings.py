"""The settings of the ``ec2`` provider, beside the common ones (``--ec2-region``, ``--ec2-size``, ``--ami-id`` and the like)."""

from __future__ import annotations

import re

from cloudtask import kinds
from cloudtask.settings import Row

GROUP = "Launched workers: ec2"
_SUBNET = re.compile(r"subnet-[0-9a-f]{8,17}", re.ASCII)
_MOST_GROUPS = 16


def subnet(value: object, scene: kinds.Scene) -> str | None:
    """A subnet's id."""
    found = kinds.word(value, scene)
    if found and not _SUBNET.fullmatch(found):
        raise ValueError("not a subnet's id, which is like subnet-0123456789abcdef0")
    return found


def security_groups(value: object, scene: kinds.Scene) -> tuple[str, ...]:
    """Ids or names; a name may have blanks in it."""
    given = [value] if isinstance(value, str) else value
    if not isinstance(given, (list, tuple)) or not all(isinstance(each, str) and each.isprintable() for each in given):
        raise ValueError("must be ids or names of security groups")
    found = tuple(dict.fromkeys(each.strip() for each in given if each.strip()))
    if len(found) > _MOST_GROUPS:
        raise ValueError(f"more than {_MOST_GROUPS} security groups")
    return found


def spot(value: object, scene: kinds.Scene) -> bool | float:
    """Yes, no, or the most that an hour may cost."""
    if value in kinds.YES + kinds.NO and value not in ("1", "0"):
        return kinds.flag(value, scene)
    if isinstance(value, bool):
        return value
    try:
        dollars: float = kinds.money(value, scene)
    except ValueError as error:
        raise ValueError("neither yes nor no nor a price in dollars an hour (0.05)") from error
    return dollars


ROWS = [
    Row(name="ec2_subnet", parse=subnet, default=None, metavar="ID", group=GROUP, help="subnet to launch in", shown_default="EC2 chooses"),
    Row(
        name="ec2_security_group",
        parse=security_groups,
        default=(),
        metavar="GROUP",
        group=GROUP,
        help="security group of the machines, by id or name; can be given again",
        repeatable=True,
        shown_default="the VPC's default",
    ),
    Row(
        name="ec2_spot",
        parse=spot,
        default=False,
        metavar="MAXPRICE",
        group=GROUP,
        help="launch spot instances, for at most MAXPRICE dollars an hour each",
        value_optional=True,
    ),
    Row(
        name="ec2_profile",
        parse=kinds.word,
        default=None,
        metavar="NAME",
        group=GROUP,
        help="profile of ~/.aws/config whose credentials are used",
        shown_default="AWS_PROFILE's",
    ),
]
