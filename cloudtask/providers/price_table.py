"""Amazon's published prices of EC2 on demand, Linux, in US dollars an hour, as of `DATE`: a table, not a quote.

From the public price list (https://aws.amazon.com/ec2/pricing/on-demand/), for sizes and regions in common use.  Within a family a price
is in proportion to the size, so a family is written as the price of its ``large`` and the sizes it has; what is out of line stands
by itself.  Disks, public addresses, traffic and a burstable size's CPU credits are billed beside it and not counted.
"""

from __future__ import annotations

DATE = "2025-03"
"""When the prices were looked up (year and month)."""

_T = "nano micro small medium large xlarge 2xlarge"
_M5 = "large xlarge 2xlarge 4xlarge 8xlarge 12xlarge 16xlarge 24xlarge"
_M6 = f"{_M5} 32xlarge"
_M6A = f"{_M6} 48xlarge"
_M7 = f"{_M5} 48xlarge"
_G6 = "medium large xlarge 2xlarge 4xlarge 8xlarge 12xlarge 16xlarge"

# Family: the price of its large, its sizes.
US_EAST_1: dict[str, tuple[float, str]] = {
    "t3": (0.0832, _T),
    "t3a": (0.0752, _T),
    "t4g": (0.0672, _T),
    "m4": (0.10, "large xlarge 2xlarge 4xlarge 10xlarge 16xlarge"),
    "m5": (0.096, _M5),
    "m5a": (0.086, _M5),
    "m6i": (0.096, _M6),
    "m6a": (0.0864, _M6A),
    "m6g": (0.077, _G6),
    "m7i": (0.1008, _M7),
    "m7i-flex": (0.09576, "large xlarge 2xlarge 4xlarge 8xlarge"),
    "m7a": (0.11592, f"medium {_M6A}"),
    "m7g": (0.0816, _G6),
    "c5": (0.085, "large xlarge 2xlarge 4xlarge 9xlarge 12xlarge 18xlarge 24xlarge"),
    "c5a": (0.077, _M5),
    "c6i": (0.085, _M6),
    "c6a": (0.0765, _M6A),
    "c6g": (0.068, _G6),
    "c7i": (0.08925, _M7),
    "c7a": (0.10264, f"medium {_M6A}"),
    "c7g": (0.0725, _G6),
    "r5": (0.126, _M5),
    "r5a": (0.113, _M5),
    "r6i": (0.126, _M6),
    "r6a": (0.1134, _M6A),
    "r6g": (0.1008, _G6),
    "r7i": (0.1323, _M7),
    "r7a": (0.15215, f"medium {_M6A}"),
    "r7g": (0.1071, _G6),
}
US_EAST_1_ODD: dict[str, float] = {
    "t1.micro": 0.02,
    "m1.small": 0.044,
    "m1.medium": 0.087,
    "m1.large": 0.175,
    "m1.xlarge": 0.35,
    "t2.nano": 0.0058,
    "t2.micro": 0.0116,
    "t2.small": 0.023,
    "t2.medium": 0.0464,
    "t2.large": 0.0928,
    "t2.xlarge": 0.1856,
    "t2.2xlarge": 0.3712,
    "c4.large": 0.1,
    "c4.xlarge": 0.199,
    "c4.2xlarge": 0.398,
    "c4.4xlarge": 0.796,
    "c4.8xlarge": 1.591,
    "g4dn.xlarge": 0.526,
    "g4dn.2xlarge": 0.752,
    "g4dn.4xlarge": 1.204,
    "g4dn.8xlarge": 2.176,
    "g4dn.12xlarge": 3.912,
    "g4dn.16xlarge": 4.352,
    "g5.xlarge": 1.006,
    "g5.2xlarge": 1.212,
    "g5.4xlarge": 1.624,
    "g5.8xlarge": 2.448,
    "g5.12xlarge": 5.672,
    "g5.16xlarge": 4.096,
    "g5.24xlarge": 8.144,
    "g5.48xlarge": 16.288,
}
EU_WEST_1: dict[str, tuple[float, str]] = {"t3": (0.0912, _T), "m5": (0.107, _M5), "c5": (0.096, US_EAST_1["c5"][1]), "r5": (0.141, _M5)}
EU_CENTRAL_1: dict[str, tuple[float, str]] = {"t3": (0.096, _T), "m5": (0.115, _M5), "c5": (0.097, US_EAST_1["c5"][1]), "r5": (0.152, _M5)}

_PARTS = {"nano": 1 / 16, "micro": 1 / 8, "small": 1 / 4, "medium": 1 / 2, "large": 1.0, "xlarge": 2.0}


def _spread(families: dict[str, tuple[float, str]]) -> dict[str, float]:
    """Size -> price, to the sixth digit."""
    return {f"{family}.{size}": round(large * _times(size), 6) for family, (large, sizes) in families.items() for size in sizes.split()}


def _times(size: str) -> float:
    """How many larges a size is."""
    return _PARTS[size] if size in _PARTS else 2.0 * int(size.removesuffix("xlarge"))


_VIRGINIA = {**_spread(US_EAST_1), **US_EAST_1_ODD}
EC2: dict[str, dict[str, float]] = {
    "us-east-1": _VIRGINIA,
    "us-east-2": {size: price for size, price in _VIRGINIA.items() if not size.startswith(("t1.", "m1."))},
    "us-west-2": _VIRGINIA,
    "eu-west-1": _spread(EU_WEST_1),
    "eu-central-1": _spread(EU_CENTRAL_1),
}
"""Region -> size -> price."""
