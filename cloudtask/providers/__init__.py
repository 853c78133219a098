"""Where machines come from.  `find` a provider by name, make it with the run's settings, `launch` an order.

``ec2``          Amazon EC2 (boto3)
``openstack``    OpenStack, ``linode`` Linode, ``libcloud`` any other driver of apache-libcloud, also by its name (``digitalocean``)
``docker``       containers of a Docker engine
``libvirt``      virtual machines and containers of libvirt
``hub``          the TurnKey Hub
``hosts``        machines that exist, from an inventory file: started and stopped
``fake``         processes on this machine, to rehearse with

Each is a class found by name: the built-in ones from the table here, all others through the entry point group
``cloudtask.providers``.  A provider's rows of settings stand in a module of their own, named in the group
``cloudtask.provider_settings``, so that they are read without loading what the provider needs to run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib import import_module
from typing import cast

from cloudtask.errors import UsageError
from cloudtask.providers.base import (
    Abilities,
    Instance,
    InstanceState,
    Launched,
    Offer,
    Order,
    Provider,
    Tags,
)
from cloudtask.providers.libcloud_names import DRIVERS
from cloudtask.settings import BUILT_IN as BUILT_IN_SETTINGS
from cloudtask.settings import Row, Settings, Table

__all__ = [
    "Abilities",
    "Instance",
    "InstanceState",
    "Launched",
    "Offer",
    "Order",
    "Provider",
    "Tags",
    "find",
    "names",
    "settings_table",
]

GROUP = "cloudtask.providers"
SETTINGS_GROUP = "cloudtask.provider_settings"

BUILT_IN = {
    "docker": "cloudtask.providers.docker:DockerProvider",
    "ec2": "cloudtask.providers.ec2:Ec2Provider",
    "fake": "cloudtask.providers.fake:FakeProvider",
    "hosts": "cloudtask.providers.hosts:HostsProvider",
    "hub": "cloudtask.providers.hub:HubProvider",
    "libcloud": "cloudtask.providers.libcloud:LibcloudProvider",
    "libvirt": "cloudtask.providers.libvirt:LibvirtProvider",
    "linode": "cloudtask.providers.linode:LinodeProvider",
    "openstack": "cloudtask.providers.openstack:OpenstackProvider",
}
"""The rows that setup.cfg declares as well; kept here so that a bare checkout, which has no metadata, finds them too."""

SETTINGS = {
    "docker": "cloudtask.providers.docker_settings:ROWS",
    "ec2": "cloudtask.providers.ec2_settings:ROWS",
    "fake": "cloudtask.providers.fake_settings:ROWS",
    "hosts": "cloudtask.providers.hosts_settings:ROWS",
    "hub": "cloudtask.providers.hub_settings:ROWS",
    "libcloud": "cloudtask.providers.libcloud_settings:ROWS",
    "libvirt": "cloudtask.providers.libvirt_settings:ROWS",
}
"""Those of them that have settings of their own beside the common ones."""


def names() -> list[str]:
    """The names of all providers that `find` knows, sorted."""
    return sorted({*BUILT_IN, *_strangers(GROUP)})


def find(name: str) -> Callable[[Settings], Provider]:
    """The class of the provider called ``name``.  A stranger's cannot take a built-in one's name.  Raises UsageError.

    The name of a driver of libcloud is one too; the class finds it in the settings.
    """
    place = BUILT_IN.get(name) or _strangers(GROUP).get(name) or (BUILT_IN["libcloud"] if name in DRIVERS else None)
    if place is None:
        known = f"use one of {', '.join(names())}, or a driver of apache-libcloud (digitalocean, gce, vultr, ...)"
        raise UsageError(f"there is no provider {name!r}: {known}")
    return cast("Callable[[Settings], Provider]", _load(place))


def settings_table(strangers: bool = False) -> Table:
    """All settings: the common ones and those of every built-in provider; ``strangers``: those of installed plug-ins too."""
    places = {**(_strangers(SETTINGS_GROUP) if strangers else {}), **SETTINGS}
    table = BUILT_IN_SETTINGS
    for _, place in sorted(places.items()):
        table = table.extended(cast("Iterable[Row]", _load(place)))
    return table


def _load(place: str) -> object:
    module, _, attribute = place.partition(":")
    return getattr(import_module(module), attribute)


def _strangers(group: str) -> dict[str, str]:
    """Name -> ``module:attribute`` of what other packages declare."""
    from importlib.metadata import entry_points  # 20 ms, and seldom needed

    return {entry.name: entry.value for entry in entry_points(group=group)}
