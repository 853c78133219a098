"""How each driver of libcloud is told what every machine of ours must have: its tags, and what it is to do at its first boot.

What libcloud's own interface leaves to the drivers is here for those that we know; for others it is read from the words that their
``create_node`` takes.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple

from cloudtask.providers.base import TAG, Order, Tags
from cloudtask.providers.libcloud_tags import machine_name, name_with_tags

_USER_DATA = ("ex_userdata", "ex_user_data", "cloud_init")


class Dialect(NamedTuple):
    """``user_data``: the word that takes it; ``ssh_key``: ``auth`` takes a public key; ``labels``: tags go there, not into the name.

    ``getter`` is the method that gets one machine by its id, ``renames`` that one can be given another name.
    """

    user_data: str = ""
    ssh_key: bool = False
    labels: bool = False
    getter: str = ""
    renames: bool = False

    @property
    def logs_in(self) -> bool:
        """There is a way for the login key to get there."""
        return bool(self.user_data) or self.ssh_key


KNOWN = {
    "digitalocean": Dialect(user_data="ex_user_data", getter="ex_get_node_details", renames=True),
    "gce": Dialect(user_data="ex_metadata", labels=True),
    "vultr": Dialect(user_data="ex_userdata"),
}


def dialect_of(name: str, kind: Any) -> Dialect:
    """That of a driver by its name, else by its class."""
    if name in KNOWN:
        return KNOWN[name]
    takes = inspect.signature(kind.create_node).parameters
    features = getattr(kind, "features", {}).get("create_node", ())
    return Dialect(
        user_data=next((word for word in _USER_DATA if word in takes), ""),
        ssh_key="ssh_key" in features and "auth" in takes,
    )


def words_for(dialect: Dialect, order: Order, index: int, auth: Any) -> dict[str, Any]:
    """What ``create_node`` is told of an order: name, tags, user data.  ``auth`` makes libcloud's record of a public key."""
    words: dict[str, Any] = {"name": name_with_tags(order.tags, index)}
    if dialect.labels:
        words = {"name": machine_name(order.token, index), "ex_labels": order.tags.as_dict()}
    if dialect.user_data == "ex_metadata":
        words["ex_metadata"] = {"items": [{"key": "user-data", "value": order.user_data}]}
    elif dialect.user_data:
        words[dialect.user_data] = order.user_data
    elif order.public_key:
        words["auth"] = auth(order.public_key)
    return words


def tags_of(dialect: Dialect, node: Any) -> Tags | None:
    """What a node says of whose it is."""
    if not dialect.labels:
        return Tags.from_text(str(node.name or ""))
    labels = node.extra.get("labels")
    return Tags.from_dict(labels) if isinstance(labels, Mapping) and TAG in labels else None
