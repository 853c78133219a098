"""The ``ec2`` provider: machines of Amazon EC2, by boto3.

One RunInstances call makes a whole order, idempotent by its client token, with the tags in the same call.  Key and host key go in by
user data (cloud-init), so that no key pair is made.  A machine that powers itself off is terminated, with its disks.  An id says region
and account as well (`Ec2Id`).

Root logs in: user data says ``disable_root: false``.  Amazon's rebalance recommendations are not to be had from its API, only on the
machine itself, so a spot machine's end is seen when its request is marked, two minutes ahead.
"""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from cloudtask.errors import ProviderBusyError, ProviderError, ProviderRefusedError, UsageError
from cloudtask.providers.base import TAG, Abilities, Instance, InstanceState, Launched, Offer, Order, Tags, chosen
from cloudtask.providers.ec2_answers import EXISTING, Ec2Id, console_keys, instances_of, interruption, is_ours, session_tags
from cloudtask.providers.ec2_api import PAGE, Ec2Api, Ec2RefusedError, nonsense
from cloudtask.providers.ec2_order import Recipe, where
from cloudtask.providers.prices import known_price
from cloudtask.settings import Settings

SETTLES = 120.0
"""Seconds for which EC2 may not know what it just made ("eventual consistency", EC2 Developer Guide: seconds, at times more)."""
ASKED = 200
"""The most values that a filter takes."""
ENDED = 100
"""How many are terminated or tagged in one call."""
KNOWN_TOKEN = ("IdempotentParameterMismatch", "IdempotentInstanceTerminated")
"""The order was made before, in other words, or some of it is terminated."""
ONE_BY_ONE = ("OperationNotPermitted", "IncorrectInstanceState", "UnsupportedOperation", "InvalidParameterCombination")
"""One instance of many may be why; without it the others go."""

_UNKNOWN = "InvalidInstanceID."
_IDS = re.compile(r"i-[0-9a-f]+", re.ASCII)


class Ec2Provider:
    """See `cloudtask.providers.base.Provider`.  Raises UsageError where settings, profile or boto3 are missing or wrong."""

    name = "ec2"
    abilities = Abilities(
        idempotent=True, tags=True, retags=True, host_key=True, console_key=True, timer=True, power_off_ends_billing=True, settles=SETTLES
    )

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._api = Ec2Api(settings.ec2_region, settings.extra.get("ec2_profile"))
        self._recipe = Recipe(self._api, settings)

    def offer(self) -> Offer:
        """See `Provider`.  Looks the image up, and so sees whether credentials, region and size are good."""
        rows, size, region = self._recipe.rows(), self._recipe.size, self._api.region
        price, spot = known_price(self._settings, self.name, region, size), self._recipe.spot
        if spot and spot is not True:
            # Never more than either: spot costs at most what it costs on demand.
            price = spot if price is None else min(spot, price)
        return Offer(size=size, region=region, price=price, minimum=60.0, quantum=1.0, rows=rows)

    def launch(self, order: Order) -> Launched:
        """See `Provider`."""
        try:
            request = self._recipe.request(order)
        except UsageError as error:
            raise ProviderRefusedError(str(error)) from error
        try:
            answer = self._api.call("run_instances", **request)
        except Ec2RefusedError as error:
            if error.code not in KNOWN_TOKEN:
                raise
            return self._made_before(order, error)
        made = [each for each, _ in self._read("run_instances", [answer], self._api.region)]
        if not 1 <= len(made) <= order.count:
            raise nonsense("run_instances")
        short = f"ec2: there was room for {len(made)} of {order.count} machines ({self._recipe.size} in {self._api.region})"
        return Launched(made, refusal="" if len(made) == order.count else short)

    def _made_before(self, order: Order, error: Ec2RefusedError) -> Launched:
        """The order was made, when the newest image was another one or the settings were; its machines carry the token.

        They may not all be listed yet.  Raises ProviderBusyError where none is.
        """
        found = list(self._listed(self._api.region, where("client-token", order.token)))
        if not found and error.code == "IdempotentInstanceTerminated":
            return Launched([], refusal="ec2: the machines of this order were all terminated, an hour ago or more")
        if not found:
            raise ProviderBusyError(f"{error} (it was made, and is not listed yet)") from error
        old = time.time() - max(each.created for each in found) > SETTLES
        return Launched(found, refusal="" if len(found) == order.count else str(error), certain=old or len(found) == order.count)

    def describe(self, ids: Sequence[str]) -> list[Instance]:
        """See `Provider`."""
        wanted = {text: Ec2Id.parse(text, self._api.region) for text in ids}
        found: dict[tuple[str, str], Instance] = {}
        for region, batch in _batches(wanted.values(), ASKED):
            for each in self._listed(region, where("instance-id", *(id.instance for id in batch))):
                found[region, each.id.partition(".")[0]] = each
        there = {text: found.get((id.region, id.instance)) if id else None for text, id in wanted.items()}
        self._check_account(id for text, id in wanted.items() if id and there[text] is None)
        return [_called(text, there[text]) for text in ids]

    def _check_account(self, absent: Iterable[Ec2Id]) -> None:
        """What EC2 does not know may be another account's.  Raises ProviderRefusedError where it is."""
        for id in absent:
            if id.account and id.account != self._api.account():
                words = f"{id.instance} is of account {id.account}, and these credentials are of {self._api.account()}"
                raise ProviderRefusedError(f"ec2: {words}: use those that launched it (AWS_PROFILE, --ec2-profile)")

    def destroy(self, ids: Sequence[str]) -> None:
        """See `Provider`."""

        def end(region: str, batch: list[str]) -> None:
            if not isinstance(self._api.call("terminate_instances", region, InstanceIds=batch).get("TerminatingInstances"), list):
                raise nonsense("terminate_instances")

        self._for_all(ids, end)

    def renew(self, ids: Sequence[str], tags: Tags) -> None:
        """See `Provider`."""
        pairs = [{"Key": key, "Value": value} for key, value in tags.as_dict().items() if key != f"{TAG}-token"]
        self._for_all(ids, lambda region, batch: self._api.call("create_tags", region, Resources=batch, Tags=pairs))

    def find(self, session: str | None = None) -> list[Instance]:
        """See `Provider`.  Machines of other regions than the settings' are not looked for: a session has one."""
        mine = where("tag-key", TAG) if session is None else where(f"tag:{TAG}", session)
        return chosen(self._listed(self._api.region, mine, where("instance-state-name", *EXISTING), session=session), session)

    def console_keys(self, id: str) -> list[str]:
        """See `Provider`."""
        parsed = Ec2Id.parse(id, self._api.region)
        if parsed is None:
            raise ProviderRefusedError(f"ec2: {id!r} is no instance's id")
        try:
            answer = self._api.call("get_console_output", parsed.region, InstanceId=parsed.instance, Latest=True)
        except Ec2RefusedError as error:
            if error.code not in ("UnsupportedOperation", "InvalidParameterCombination"):
                raise
            # Older kinds of machines have no latest output, only that of some minutes ago.
            answer = self._api.call("get_console_output", parsed.region, InstanceId=parsed.instance)
        output = answer.get("Output", "")
        return console_keys(output) if isinstance(output, str) else []

    def _for_all(self, ids: Sequence[str], act: Callable[[str, list[str]], object]) -> None:
        """In batches; what EC2 does not know is passed over.  Goes through all, and raises the first error at the end."""
        wanted = (Ec2Id.parse(text, self._api.region) for text in ids)
        errors = [error for region, batch in _batches(wanted, ENDED) for error in self._for_batch(region, batch, act)]
        if errors:
            raise errors[0]

    def _for_batch(self, region: str, batch: list[Ec2Id], act: Callable[[str, list[str]], object]) -> list[ProviderError]:
        """EC2 does nothing for any where one is unknown: without those that it names, or each alone."""
        try:
            act(region, [id.instance for id in batch])
            return []
        except Ec2RefusedError as error:
            refused = error
        except ProviderError as error:
            return [error]
        if not refused.code.startswith(_UNKNOWN):
            return self._for_each(region, batch, act) if refused.code in ONE_BY_ONE and len(batch) > 1 else [refused]
        named = set(_IDS.findall(str(refused)))
        absent = [id for id in batch if id.instance in named or len(batch) == 1]
        if not absent:
            return self._for_each(region, batch, act)
        rest = [id for id in batch if id not in absent]
        return self._complaints(absent) + (self._for_batch(region, rest, act) if rest else [])

    def _for_each(self, region: str, batch: list[Ec2Id], act: Callable[[str, list[str]], object]) -> list[ProviderError]:
        return [error for id in batch for error in self._for_batch(region, [id], act)]

    def _complaints(self, absent: Iterable[Ec2Id]) -> list[ProviderError]:
        """About those that are not absent, but somebody else's."""
        try:
            self._check_account(absent)
            return []
        except ProviderError as error:
            return [error]

    def _listed(self, region: str, *filters: Mapping[str, Any], session: str | None = None) -> Iterator[Instance]:
        """All instances that pass the filters, with word of those that are about to be taken away."""
        reservations = list(self._api.listed("describe_instances", "Reservations", region, Filters=list(filters), MaxResults=PAGE))
        found = list(self._read("describe_instances", reservations, region, session))
        reasons = self._interruptions(region, [request for each, request in found if request and each.exists])
        for each, request in found:
            yield dataclasses.replace(each, reclaimed=each.reclaimed or reasons.get(request, ""))

    def _read(
        self, operation: str, reservations: Iterable[Mapping[str, Any]], region: str, session: str | None = None
    ) -> Iterator[tuple[Instance, str]]:
        for reservation in reservations:
            try:
                pairs = list(instances_of(reservation, region))
            except ValueError as error:
                raise nonsense(operation) from error
            for (each, request), item in zip(pairs, reservation["Instances"], strict=True):
                lost = session is not None and each.tags is None and is_ours(item, session)
                yield (dataclasses.replace(each, tags=session_tags(str(session))) if lost else each), request

    def _interruptions(self, region: str, requests: Sequence[str]) -> dict[str, str]:
        """Spot request -> why its machine goes.  Nothing where one may not ask: it is seen later, when the machine is gone."""
        found: dict[str, str] = {}
        try:
            for start in range(0, len(requests), ASKED):
                asked = where("spot-instance-request-id", *requests[start : start + ASKED])
                found |= map(
                    interruption, self._api.listed("describe_spot_instance_requests", "SpotInstanceRequests", region, Filters=[asked])
                )
        except ProviderError:
            pass
        return found


def _batches(ids: Iterable[Ec2Id | None], size: int) -> Iterator[tuple[str, list[Ec2Id]]]:
    """Each region's, once each, so many at a time."""
    regions: dict[str, dict[str, Ec2Id]] = {}
    for id in ids:
        if id:
            regions.setdefault(id.region, {})[id.instance] = id
    for region, found in regions.items():
        items = list(found.values())
        for start in range(0, len(items), size):
            yield region, items[start : start + size]


def _called(text: str, found: Instance | None) -> Instance:
    """Under the id by which it was asked for."""
    return dataclasses.replace(found, id=text) if found else Instance(id=text, state=InstanceState.ABSENT)
