"""Orders: made, and made again just as they were, so that a provider takes a repeated one for the same.

What the machines of an order are told at boot holds a private host key, so it is not in the session's directory but beside the session's
key (``~/.local/state/cloudtask/keys/<session>.<token>``, 0600), until the order is answered.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from dataclasses import dataclass

from cloudtask.errors import SessionError, UsageError
from cloudtask.providers import Abilities, Offer, Order, Tags
from cloudtask.providers.timer import timer_script
from cloudtask.providers.userdata import cloud_config, make_host_key
from cloudtask.session import keys
from cloudtask.session.bookings import Bookings, OrderRecord
from cloudtask.session.layout import DIRECTORY_MODE, read_inside, write_inside

EXPIRY = 2 * 3600
"""Seconds for which a machine's tag says that it is ours; renewed at half of that."""

_LIMIT = 24 * 3600
_EARLY = 900


@dataclass(frozen=True, kw_only=True)
class Customer:
    """Who orders: a session, by its unique id and its public key line; what its machines are for, and until when they may idle.

    ``keep_for`` is in seconds, where the machines are for somebody who comes later: so long they wait, and so long their tags say that
    they are ours.
    """

    session: str
    public_key: str
    label: str
    boot_timeout: float
    provider: str
    offer: Offer
    abilities: Abilities
    keep_for: float = 0.0


def controller_id() -> str:
    """What names this controller (this user on this machine) in tags: 16 hexadecimal digits, made once.  Raises SessionError."""
    folder = os.path.dirname(keys.keys_directory())
    path = os.path.join(folder, "controller")
    try:
        os.makedirs(folder, mode=DIRECTORY_MODE, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            found = read_inside(folder, "controller").decode("ascii", "replace").strip()
            if len(found) == 16 and found.isalnum():
                return found
        write_inside(folder, "controller", secrets.token_hex(8).encode() + b"\n")
        return read_inside(folder, "controller").decode("ascii").strip()
    except OSError as error:
        raise SessionError(f"{path}: the controller's name cannot be written: {error.strerror}; set XDG_STATE_HOME") from error


def timer_of(boot_timeout: float) -> str:
    """The timer's script: somebody has to come within the time that a machine may take to be ready, and some more for a resume."""
    return timer_script(int(boot_timeout + _EARLY), _LIMIT)


def new_order(customer: Customer, count: int, now: float) -> tuple[OrderRecord, Order]:
    """An order for ``count`` machines; what it needs to be made again is on disk.  Raises SessionError."""
    token = f"o{secrets.token_hex(8)}"
    host_key = make_host_key()
    # Until somebody comes: as long as the machine may take to be ready, and as long again for a resume.
    timer = timer_script(int(customer.boot_timeout + max(_EARLY, customer.keep_for)), _LIMIT)
    user_data = cloud_config(customer.public_key, host_key, timer)
    record = OrderRecord(
        token=token,
        provider=customer.provider,
        count=count,
        label=customer.label,
        time=now,
        expires=int(now + max(EXPIRY, customer.keep_for)),
        price=customer.offer.price,
        minimum=customer.offer.minimum,
        quantum=customer.offer.quantum,
        size=customer.offer.size,
        region=customer.offer.region,
        host_key=host_key.public if customer.abilities.host_key else None,
    )
    told = {"user_data": user_data, "timer": timer, "public_key": customer.public_key, "host_key": host_key.public}
    try:
        os.makedirs(keys.keys_directory(), mode=DIRECTORY_MODE, exist_ok=True)
        write_inside(keys.keys_directory(), f"{customer.session}.{token}", json.dumps(told).encode())
    except OSError as error:
        raise SessionError(f"{keys.keys_directory()}: an order cannot be written: {error.strerror}; set XDG_STATE_HOME") from error
    return record, _order(customer.session, record, told)


def same_order(session: str, record: OrderRecord) -> Order | None:
    """The order of a record, equal to the one that was given; None where what it told its machines is not on this controller."""
    try:
        told = json.loads(read_inside(keys.keys_directory(), f"{session}.{record.token}"))
        return _order(session, record, {name: str(told[name]) for name in ("user_data", "timer", "public_key", "host_key")})
    except (OSError, ValueError, KeyError, TypeError):
        return None


def forget_order(session: str, token: str) -> None:
    """It is answered: nobody gives it again."""
    with contextlib.suppress(OSError):
        os.unlink(os.path.join(keys.keys_directory(), f"{session}.{token}"))


def check_place(bookings: Bookings, number: int, provider: str | None, region: str) -> None:
    """Machines of earlier runs are found where they were launched only.  Raises UsageError where a resume names another place."""
    tokens = {each.token for each in bookings.ours()} | {order.token for order in bookings.open_orders()}
    for order in (bookings.orders[token] for token in sorted(tokens) if token in bookings.orders):
        if order.provider != provider or (order.region and order.region != region):
            there = " ".join(word for word in (order.provider, order.region) if word)
            here = " ".join(word for word in (provider or "no provider", region) if word)
            raise UsageError(
                f"session {number} still has machines, or an open order, at {there}, and this is {here}: resume it there, "
                "or wait until its watchdog has seen to them"
            )


def _order(session: str, record: OrderRecord, told: dict[str, str]) -> Order:
    tags = Tags(session=session, controller=controller_id(), token=record.token, expires=record.expires)
    return Order(count=record.count, tags=tags, label=record.label, **told)
