"""Tags on the machines of clouds that have no tags, or tags of another kind: in the name, in short pieces, as labels."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable

from cloudtask.providers.base import TAG, Tags

LONGEST_PIECE = 50
"""Characters of a tag of Linode (3 to 50)."""

_PIECE = re.compile(rf"{TAG}:([0-9]):([0-9a-z]+):(.+)", re.ASCII)
_PLAIN = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*", re.ASCII)
_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"


def machine_name(token: str, index: int) -> str:
    """The name of an order's machine number ``index`` (from 1): the same one for a repeated order.

    Letters, digits and single dashes, 64 at most: good for a label of Linode (unique in an account), a host name, a name of OpenStack.
    """
    plain = token if _PLAIN.fullmatch(token) and len(token) <= 40 else hashlib.sha256(token.encode()).hexdigest()[:32]
    return f"{TAG}-{plain}-{index}"


def name_with_tags(tags: Tags, index: int) -> str:
    """A name that tells all: letters, digits, dots and dashes, each part 63 at most, as a host name has."""
    return f"{tags.as_text()}.{index}"


def index_of(name: str) -> int | None:
    """Which machine of its order has this name; None where the name is none of ours."""
    number = re.split(r"[.-]", name)[-1]
    return int(number) if name.startswith(TAG) and number.isascii() and number.isdigit() else None


def as_pieces(tags: Tags) -> list[str]:
    """As tags of 50 characters: ``cloudtask``, and what is to be said, with a dot at its end, cut up: ``cloudtask:NUMBER:EXPIRES:TEXT``.

    Each piece has the expiry (in base 36), so that those which a cloud keeps when the machine is gone can be told from others.
    """
    text = ".".join((tags.session, tags.controller, tags.token, ""))
    expires = _in_36(tags.expires)
    room = LONGEST_PIECE - len(f"{TAG}:0:{expires}:")
    return [TAG, *(f"{TAG}:{at // room}:{expires}:{text[at : at + room]}" for at in range(0, len(text), room))]


def from_pieces(found: Iterable[object]) -> Tags | None:
    """Of a machine's tags, ours; None where there are none, or not all of them."""
    pieces = sorted((int(match[1]), match[2], match[3]) for each in found if (match := _PIECE.fullmatch(str(each))))
    parts = "".join(text for _, _, text in pieces).split(".")
    whole = [number for number, _, _ in pieces] == list(range(len(pieces)))
    if not whole or len(parts) != 4 or parts[3] or len({expires for _, expires, _ in pieces}) != 1:
        return None
    session, controller, token, _ = parts
    expires = str(int(pieces[0][1], 36))
    return Tags.from_dict({TAG: session, f"{TAG}-controller": controller, f"{TAG}-token": token, f"{TAG}-expires": expires})


def expiry_of(piece: str) -> int | None:
    """When what a piece says is over, in seconds since 1970; None where it is none of ours."""
    match = _PIECE.fullmatch(piece)
    return int(match[2], 36) if match else None


def others(found: Iterable[object]) -> list[str]:
    """A machine's tags without ours."""
    return [str(each) for each in found if each != TAG and not _PIECE.fullmatch(str(each))]


def _in_36(number: int) -> str:
    digits = ""
    while number:
        number, digit = divmod(number, 36)
        digits = _DIGITS[digit] + digits
    return digits or "0"
