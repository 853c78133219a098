"""The ``openstack`` provider: servers of Nova by libcloud's driver, with images of Glance and networks of Neutron.

Tags are the server's metadata, written by the call that makes it.  Names are not unique, so an order is looked for before anything is
made.  A server is reached at the address that it has: a floating one, else a public one, else a private one; floating addresses are
not allocated here, since they would cost after their server.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, TypeVar
from uuid import UUID

from cloudtask.errors import ProviderBusyError, ProviderError, ProviderRefusedError
from cloudtask.providers.base import TAG, Abilities, InstanceState, Order, Tags
from cloudtask.providers.libcloud import LibcloudProvider, Plan
from cloudtask.providers.libcloud_choice import pick
from cloudtask.providers.libcloud_dialects import Dialect
from cloudtask.providers.libcloud_errors import Speaker, UnauthorisedError
from cloudtask.providers.libcloud_nodes import host_of, state_of
from cloudtask.providers.libcloud_sdk import connections, driver_class, sdk
from cloudtask.providers.libcloud_tags import machine_name
from cloudtask.providers.openstack_config import read_identity

T = TypeVar("T")
LONGEST_VALUE = 255
"""Characters of a value of a server's metadata."""


class OpenstackProvider(LibcloudProvider):
    """See `cloudtask.providers.base.Provider`."""

    name = "openstack"
    abilities = Abilities(retags=True, host_key=True, timer=True, settles=30.0)
    billed = 60.0
    _accepted = False

    def _prepare(self) -> None:
        driver_class(self._cloud.driver)
        self._dialect = Dialect(user_data="ex_userdata", getter="ex_get_node_details")
        self._identity = read_identity(self._cloud, os.environ)
        # The endpoint is Keystone's, which names the others.
        self._cloud = replace(self._cloud, region=self._identity.region, cacert=self._identity.cacert, endpoint=None)
        self._speaker = Speaker(self.name, (*self._cloud.secrets, self._identity.secret))

    def _connect(self) -> Any:
        who = self._identity
        driver = driver_class(self._cloud.driver)(who.user, who.secret, api_version="2.2", **{**who.words(), **self._cloud.options})
        for connection in connections(driver):
            # libcloud insists on the names that a development set-up has; a catalogue has services by type and region.
            connection.service_name = None
            connection.service_region = self._cloud.region
        ask = driver.connection.request

        def request(action: str, *given: Any, **words: Any) -> Any:
            answer = ask(action, *given, **words)
            # libcloud takes an answer that is no list for an empty one; nothing may be called gone for that.
            self._accepted |= action == "/servers" and words.get("method") == "POST"
            if action == "/servers/detail" and not isinstance(answer.object["servers"], list):
                raise ProviderBusyError(self._speaker.say("listing", "the answer is no list"))
            return answer

        driver.connection.request = request
        return driver

    def _ask(self, doing: str, ask: Callable[[], T]) -> T:
        """A token may end before its time; libcloud has forgotten it then, and gets another."""
        try:
            return super()._ask(doing, ask)
        except UnauthorisedError as error:
            if not error.stale:
                raise
            return super()._ask(doing, ask)

    def _create(self, create: Callable[[], T]) -> T:
        """libcloud asks for the server that it has made; whatever is said to that, the server is there."""
        self._accepted = False
        try:
            return super()._create(create)
        except ProviderRefusedError as error:
            if self._accepted:
                raise ProviderBusyError(str(error)) from error
            raise

    def _words(self, order: Order, index: int) -> dict[str, Any]:
        return {
            "name": machine_name(order.token, index),
            "ex_metadata": {**order.tags.as_dict(), f"{TAG}-label": order.label[:LONGEST_VALUE]},
            "ex_userdata": order.user_data,
            "ex_security_groups": [SimpleNamespace(name=name) for name in self._cloud.security_groups],
        }

    def _tags(self, node: Any) -> Tags | None:
        found = node.extra["metadata"]
        return Tags.from_dict(found) if isinstance(found, Mapping) else None

    def _retag(self, node: Any, tags: Tags) -> None:
        data = {"metadata": tags.as_dict()}
        path = f"/servers/{node.id}/metadata"
        self._ask("writing metadata", lambda: self._driver.connection.request(path, method="POST", data=data))

    def _state(self, node: Any) -> InstanceState:
        if str(node.state) == "terminated" or node.extra["vm_state"] in ("deleted", "soft-delete"):
            return InstanceState.GONE
        if str(node.extra["task_state"]) in ("deleting", "soft-deleting"):
            return InstanceState.LEAVING
        return state_of(node)

    def _note(self, node: Any) -> str:
        """For a server in ``ERROR``, why: ``error: No valid host was found.``"""
        fault = node.extra["fault"]
        reason = fault.get("message") if isinstance(fault, Mapping) else None
        words = " ".join(f"{node.state}: {reason}".split()) if reason else str(node.state)
        return "".join(each if each.isprintable() else "?" for each in words)[:200]

    def _host(self, node: Any) -> str | None:
        known = [each for listed in node.extra["addresses"].values() for each in listed]
        floating = [each["addr"] for each in known if each.get("OS-EXT-IPS:type") == "floating"]
        return host_of([*floating, node.extra["access_ip"]], ()) or host_of(node.public_ips, node.private_ips)

    def _place_of(self, node: Any) -> object:
        return self._cloud.region

    def _size_name(self, node: Any) -> object:
        return node.extra["flavorId"] or (node.extra["flavor_details"] or {}).get("original_name")

    def _doomed(self, ids: Sequence[str]) -> Iterable[Any]:
        kind = sdk("libcloud.compute.base").Node
        return [kind(id, "", "unknown", [], [], self._driver) for id in ids if _is_id(id)]

    def _get(self, id: str) -> Any | None:
        return super()._get(id) if _is_id(id) else None

    def _choose(self) -> Plan:
        driver = self._driver
        flavours = self._ask("listing flavours", driver.list_sizes)
        named = self._cloud.size is not None
        size = self._choose_size(each for each in flavours if named or (each.disk and not each.extra.get("disabled")))
        image = self._image()
        rows, words = {"image": str(image.name)}, {}
        if self._cloud.network:
            network = pick(self._ask("listing networks", driver.ex_list_networks), self._cloud.network, "network", "--cloud-network")
            words["networks"] = [network]
            rows["network"] = str(network.name)
        return Plan(size, image, None, words, rows, None)

    def _image(self) -> Any:
        wanted = self._cloud.image
        if wanted and _is_id(wanted):
            return self._ask(f"looking for the image {wanted}", lambda: self._driver.get_image(wanted))
        return pick(self._ask("listing images", self._driver.list_images), wanted, "image", "--cloud-image")

    def _begin(self, driver: Any) -> None:
        """Logs in.  The catalogue must have the region that is meant, or one only."""
        connection = driver.connection
        try:
            self._ask("logging in", connection.get_service_catalog)
        except ProviderError:
            if connection.service_catalog is None:
                raise
        regions = connection.service_catalog.get_regions(service_type="compute")
        if self._cloud.region not in (regions if len(regions) > 1 else (None, *regions)):
            said = f"there is no region {self._cloud.region}" if self._cloud.region else "no region is named"
            message = f"{said}: use --cloud-region or OS_REGION_NAME with one of {', '.join(regions) or 'none: it has no servers'}"
            raise ProviderRefusedError(self._speaker.say("logging in", message))


def _is_id(text: str) -> bool:
    try:
        return str(UUID(text)) == text.lower()
    except ValueError:
        return False
