"""How bytes reach a worker.  `find` a transport by name, `connect` it to an address, `open` channels.

``local``    programs on this machine
``fake``     machines of the provider fake that are reached without ssh
``ssh``      paramiko, with the user's ssh configuration
``openssh``  the system's ssh, for what only that can do
``docker``   execs in a container

Each is a class found by name: the built-in ones from the table here, all others through the entry point group
``cloudtask.transports``.  Both are loaded the same way, and nothing is imported before it is found.
"""

from __future__ import annotations

from importlib import import_module
from typing import cast

from cloudtask.errors import UsageError
from cloudtask.transports.base import Channel, Connection, ConnectOptions, Transport

__all__ = ["BUILT_IN", "GROUP", "Channel", "ConnectOptions", "Connection", "Transport", "find", "names"]

GROUP = "cloudtask.transports"

BUILT_IN = {
    "docker": "cloudtask.transports.docker:DockerTransport",
    "fake": "cloudtask.transports.fake:FakeTransport",
    "local": "cloudtask.transports.local:LocalTransport",
    "ssh": "cloudtask.transports.ssh:SshTransport",
    "openssh": "cloudtask.transports.openssh:OpensshTransport",
}
"""The rows that setup.cfg declares as well; kept here so that a bare checkout, which has no metadata, finds them too."""


def names() -> list[str]:
    """The names of all transports that `find` knows, sorted."""
    return sorted({*BUILT_IN, *_strangers()})


def find(name: str) -> Transport:
    """The transport called ``name``.  A stranger's cannot take a built-in one's name.  Raises UsageError for an unknown name."""
    place = BUILT_IN.get(name) or _strangers().get(name)
    if place is None:
        raise UsageError(f"there is no transport {name!r}: use one of {', '.join(names())}")
    module, _, attribute = place.partition(":")
    return cast(Transport, getattr(import_module(module), attribute)())


def _strangers() -> dict[str, str]:
    """Name -> ``module:Class`` of what other packages declare."""
    from importlib.metadata import entry_points  # 20 ms, and seldom needed

    return {entry.name: entry.value for entry in entry_points(group=GROUP)}
