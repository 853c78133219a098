"""What a machine costs an hour, in US dollars: from the user's file first, then from the tables that come with cloudtask.

They are tables, not quotes: Amazon's come from its public price list (see `price_table`, with their date) and know nothing of discounts,
taxes, disks or traffic.  What is in no table has no price, and whoever asks says so.

The user's file is YAML: provider, region (``"*"`` or ``""`` is any), size, price::

    ec2: {us-east-1: {t3.small: 0.0208}, "*": {my.size: 1.5}}
    linode: {"": {g6-nanode-1: 0.0075}}
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import cast

from cloudtask.errors import UsageError
from cloudtask.providers.price_table import DATE, EC2
from cloudtask.settings import Settings

__all__ = ["DATE", "Prices", "known_price", "price", "read_prices"]

Prices = Mapping[str, Mapping[str, Mapping[str, float]]]
"""Provider -> region -> size -> US dollars an hour."""

ANY = ("*", "")
TABLES: Prices = {"ec2": EC2}


def price(provider: str, region: str, size: str, extra: Prices | None = None) -> float | None:
    """US dollars an hour; None where no table has it.  ``extra`` is what `read_prices` made of the user's file."""
    for table in (extra or {}, TABLES):
        regions = table.get(provider, {})
        for name in (region, *ANY):
            if (found := regions.get(name, {}).get(size)) is not None:
                return found
    return None


def known_price(settings: Settings, provider: str, region: str, size: str) -> float | None:
    """The same with the file that the settings name.  Raises UsageError as `read_prices` does."""
    return price(provider, region, size, read_prices(settings.prices))


def read_prices(path: str | None) -> Prices:
    """The user's file, none for None.  Raises UsageError naming the file and what is wrong."""
    import yaml

    if path is None:
        return {}
    try:
        with open(path, encoding="utf-8") as file:
            found = yaml.safe_load(file)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--prices={path}: cannot be read: {getattr(error, 'strerror', None) or 'not text'}") from error
    except yaml.YAMLError as error:
        raise UsageError(f"--prices={path}: not YAML: {' '.join(str(error).split())}") from error
    return {} if found is None else _checked(path, found)


def _checked(path: str, found: object) -> Prices:
    for provider, regions in _mapping(path, "the file", found).items():
        for region, sizes in _mapping(path, str(provider), regions).items():
            for size, cost in _mapping(path, f"{provider}, {region!r}", sizes).items():
                if isinstance(cost, bool) or not isinstance(cost, (int, float)) or not math.isfinite(cost) or cost < 0:
                    raise UsageError(f"--prices={path}: {provider}, {region!r}, {size}: {cost!r} is no price in dollars an hour")
    return cast("Prices", found)


def _mapping(path: str, where: str, value: object) -> Mapping[object, object]:
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return value
    raise UsageError(f"--prices={path}: {where} must be a table, as in: ec2: {{us-east-1: {{t3.small: 0.0208}}}}")
