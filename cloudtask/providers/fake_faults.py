"""What goes wrong at the ``fake`` provider on purpose: the text of ``--fake-faults``, read.

A list with commas between its items.  AMOUNT is a number (so many machines or launches of each session, the first ones) or a
percentage of them, and DURATION as everywhere (``5s``)::

    slow-boot=DURATION                  every machine takes that long until one can log in; it runs after half of it
    slow-destroy=DURATION               a machine that is destroyed is listed for that long
    slow-api=DURATION                   so long takes every call
    never-boots=AMOUNT                  machines that run, and that nobody can ever log in to
    boots-then-dies=AMOUNT[@DURATION]   machines that end by themselves, so long (5s) after they booted
    reclaim=AMOUNT[@DURATION]           machines that are announced to be taken away, so long (5s) after they booted ...
    reclaim-notice=DURATION             ... and are taken so long (2s) after that
    destroy-ignored=AMOUNT              machines whose first destruction is promised and not done
    lost-answer=AMOUNT                  launches that are done, and whose answer never comes
    api-500=PERCENT%                    calls that end in an error of the server; half of them are done all the same
    throttle=PERCENT%                   calls that are refused for now, and not done
    refuse=WORD                         every launch is refused, with this word
    seed=NUMBER                         another sequence of dice (0)

The same seed in a fresh ``--fake-state`` throws the same dice, whichever processes ask.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cloudtask.units import parse_duration

_WORD = re.compile(r"[\w.-]{1,60}", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class Share:
    """Whom a fault meets: the first ``count``, or ``percent`` of all; ``after`` so many seconds."""

    count: int = 0
    percent: float = 0.0
    after: float = 5.0


@dataclass(frozen=True, kw_only=True)
class Faults:
    """All faults; see the module.  Times are in seconds."""

    slow_boot: float = 0.0
    slow_destroy: float = 0.0
    slow_api: float = 0.0
    reclaim_notice: float = 2.0
    never_boots: Share = Share()
    boots_then_dies: Share = Share()
    reclaim: Share = Share()
    destroy_ignored: Share = Share()
    lost_answer: Share = Share()
    api_500: Share = Share()
    throttle: Share = Share()
    refuse: str = ""
    seed: int = 0


def parse_faults(text: str) -> Faults:
    """Raises ValueError naming the item."""
    given: dict[str, Any] = {}
    for item in filter(None, (item.strip() for item in text.split(","))):
        name, _, value = (part.strip() for part in item.partition("="))
        if name not in _PARSERS:
            raise ValueError(f"{item!r}: there is no fault {name!r}; there are {', '.join(_PARSERS)}")
        try:
            given[name.replace("-", "_")] = _PARSERS[name](value)
        except ValueError as error:
            raise ValueError(f"{item!r}: {error}") from None
    return Faults(**given)


def _share(text: str) -> Share:
    amount, at, after = text.partition("@")
    if at:
        return Share(count=_amount(amount).count, percent=_amount(amount).percent, after=parse_duration(after))
    return _amount(amount)


def _amount(text: str) -> Share:
    if text.endswith("%"):
        return _percent(text)
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise ValueError("not an amount (3, or 10%)")
    return Share(count=int(text))


def _percent(text: str) -> Share:
    if not re.fullmatch(r"[0-9]{1,3}(\.[0-9]{1,3})?%", text) or float(text[:-1]) > 100:
        raise ValueError("not a percentage (10%)")
    return Share(percent=float(text[:-1]))


def _reason(text: str) -> str:
    if not _WORD.fullmatch(text):
        raise ValueError("not a word")
    return text


def _seed(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise ValueError("not a number")
    return int(text)


_PARSERS: dict[str, Callable[[str], object]] = {
    "slow-boot": parse_duration,
    "slow-destroy": parse_duration,
    "slow-api": parse_duration,
    "never-boots": _amount,
    "boots-then-dies": _share,
    "reclaim": _share,
    "reclaim-notice": parse_duration,
    "destroy-ignored": _amount,
    "lost-answer": _amount,
    "api-500": _percent,
    "throttle": _percent,
    "refuse": _reason,
    "seed": _seed,
}
