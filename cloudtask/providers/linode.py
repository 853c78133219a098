"""The ``linode`` provider: Linodes by libcloud's driver for version 4 of Linode's API.

Tags go into the call that makes a Linode, cut into pieces of 50 characters, and can be changed; Linode lets only unrestricted users
write tags.  The label says which machine of which order it is: labels are unique in an account, so no repeated request makes a second
one.  User data reaches images that can ``cloud-init``, in regions that have ``Metadata``; others are refused.  A Linode costs the same
whether it runs or not.
"""

from __future__ import annotations

import contextlib
import json
import re
import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar
from urllib.parse import quote

from cloudtask.errors import ProviderBusyError, ProviderError, ProviderRefusedError, UsageError
from cloudtask.providers.base import Abilities, InstanceState, Order, Tags
from cloudtask.providers.libcloud import LibcloudProvider, Plan
from cloudtask.providers.libcloud_choice import pick
from cloudtask.providers.libcloud_dialects import Dialect
from cloudtask.providers.libcloud_nodes import state_of
from cloudtask.providers.libcloud_sdk import driver_class, sdk
from cloudtask.providers.libcloud_tags import as_pieces, expiry_of, from_pieces, machine_name, others

T = TypeVar("T")
REGION = "us-east"
DAY = 86400
SWEPT = 20
"""Tags that are removed at a time."""
PAGE = 500
"""Machines on a page of a list, the most that Linode gives; libcloud asks for 25."""

_DEBIAN = re.compile(r"linode/debian(\d+)", re.ASCII)
_LISTS = ("/v4/linode/instances", "/v4/linode/types", "/v4/regions", "/v4/images")


class LinodeProvider(LibcloudProvider):
    """See `cloudtask.providers.base.Provider`."""

    name = "linode"
    # Not long: should a request still be under way when the order comes again, the label that it takes settles it.
    abilities = Abilities(retags=True, host_key=True, timer=True, settles=10.0)
    _swept = False

    def _prepare(self) -> None:
        driver_class(self._cloud.driver)
        self._dialect = Dialect(user_data="ex_userdata", getter="ex_get_node")
        self._credentials()

    def _credentials(self) -> tuple[str, ...]:
        if not (token := self._cloud.text.get("token") or self._cloud.text.get("key")):
            raise self._cloud.error(f"no credentials: set LINODE_TOKEN, or put 'token: ...' into {self._cloud.place}")
        return (token,)

    def _connect(self) -> Any:
        driver = driver_class(self._cloud.driver)(*self._credentials(), api_version="4.0", **self._cloud.options)
        driver.LINODE_STATES = _States({**driver.LINODE_STATES, "deleting": "terminated"})
        connection = driver.connection
        ask = connection.request

        def request(action: str, *given: Any, **words: Any) -> Any:
            answer = ask(action, *given, **words)
            # libcloud takes an answer that is no list for an empty one; nothing may be called gone for that.
            if action in _LISTS and words.get("method", "GET") == "GET" and not isinstance(answer.object["data"], list):
                raise ProviderBusyError(self._speaker.say("listing", "the answer is no list"))
            return answer

        connection.request = request
        connection.add_default_params = lambda params: {**params, "page_size": PAGE}
        return driver

    def destroy(self, ids: Sequence[str]) -> None:
        """See `Provider`."""
        super().destroy(ids)
        if ids and not self._swept and self._limits.room:
            self._swept = True
            with contextlib.suppress(ProviderError), self._speaker.translating("looking through tags"):
                self._sweep()

    def _sweep(self) -> None:
        """Linode keeps a tag when nothing carries it any more: ours go, a day after what they say is over."""
        ask = self._driver.connection.request
        over = time.time() - DAY
        labels = [str(each["label"]) for each in ask("/v4/tags").object["data"]]
        for label in [each for each in labels if (expiry_of(each) or over) < over][:SWEPT]:
            path = f"/v4/tags/{quote(label)}"
            if self._limits.room and ask(path).object["results"] == 0:
                ask(path, method="DELETE")

    def _words(self, order: Order, index: int) -> dict[str, Any]:
        return {
            "name": machine_name(order.token, index),
            "ex_tags": as_pieces(order.tags),
            "ex_userdata": order.user_data,
            "ex_authorized_keys": [order.public_key] if order.public_key else None,
            # Linode makes no machine without one; nobody ever knows it, and sshd takes keys only.
            "root_pass": f"aZ1.{secrets.token_urlsafe(48)}",
        }

    def _create(self, create: Callable[[], T]) -> T:
        try:
            return super()._create(create)
        except ProviderRefusedError as error:
            if "unique" in str(error).lower():
                # The label is taken: this machine of the order is there, and was not listed yet.
                raise ProviderBusyError(str(error)) from error
            raise

    def _tags(self, node: Any) -> Tags | None:
        return from_pieces(node.extra["tags"])

    def _retag(self, node: Any, tags: Tags) -> None:
        said = json.dumps({"tags": [*others(node.extra["tags"]), *as_pieces(tags)]})
        path = f"/v4/linode/instances/{node.id}"
        self._ask("writing tags", lambda: self._driver.connection.request(path, data=said, method="PUT"))

    def _state(self, node: Any) -> InstanceState:
        return InstanceState.LEAVING if str(node.state) == "terminated" else state_of(node)

    def _place_of(self, node: Any) -> object:
        return node.extra["location"]

    def _get(self, id: str) -> Any | None:
        return super()._get(id) if id.isascii() and id.isdigit() else None

    def _doomed(self, ids: Sequence[str]) -> Iterable[Any]:
        kind = sdk("libcloud.compute.base").Node
        return [kind(id, "", "unknown", [], [], self._driver) for id in ids if id.isascii() and id.isdigit()]

    def _choose(self) -> Plan:
        driver = self._driver
        place = pick(self._ask("listing regions", driver.list_locations), self._cloud.region or REGION, "region", "--cloud-region")
        if "Metadata" not in place.extra["capabilities"]:
            raise UsageError(f"the region {place.id} gives machines no user data: choose another (--cloud-region)")
        size = self._choose_size(self._ask("listing sizes", driver.list_sizes))
        image = self._image()
        price = self._price(size.id, place.id)
        return Plan(size, image, place, {"location": place}, {"image": str(image.id)}, price if price is not None else size.price)

    def _image(self) -> Any:
        """The image that is named, else the newest Debian; it must be one that can cloud-init."""
        listed = self._ask("listing images", lambda: self._driver.connection.request("/v4/images").object["data"])
        able = {each["id"] for each in listed if "cloud-init" in each["capabilities"]}
        wanted = self._cloud.image or max(filter(_DEBIAN.fullmatch, able), key=_release, default=None)
        image = pick(self._ask("listing images", self._driver.list_images), wanted, "image", "--cloud-image")
        if image.id not in able:
            raise UsageError(f"the image {image.id} has no cloud-init: nobody could log in; choose another (--cloud-image)")
        return image

    def _price(self, size: str, place: str) -> float | None:
        """Dollars an hour in that region: some are dearer than others."""
        said = self._ask("asking for a price", lambda: self._driver.connection.request(f"/v4/linode/types/{size}").object)
        for each in (*said.get("region_prices", ()), {"id": place, **said["price"]}):
            if each["id"] == place:
                return float(each["hourly"])
        return None


class _States(dict[str, str]):
    """libcloud's table of states, where a new word of Linode's is no reason to see no machine at all."""

    def __missing__(self, word: str) -> str:
        return "unknown"


def _release(image: str) -> int:
    match = _DEBIAN.fullmatch(image)
    return int(match[1]) if match else 0
