"""``python -m tests.bench [--quick] [NAME ...]``: puts four sshd's up on loopback ports and measures."""

from __future__ import annotations

import argparse
import time

from tests.bench.benches import ALL
from tests.bench.site import open_site
from tests.bench.table import machine, show


def main() -> None:
    """Run the named benches, all by default."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench", description="cloudtask beside xargs, GNU parallel and ssh, on this machine"
    )
    parser.add_argument("--quick", action="store_true", help="few jobs and rounds: to see that it works, not how fast it is")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"what to measure: {', '.join(ALL)} (default: all)")
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in ALL]
    if unknown:
        parser.error(f"no bench {unknown[0]!r}: there are {', '.join(ALL)}")
    print(machine())
    if options.quick:
        print("a quick run: the figures mean little")
    with open_site() as site:
        for name in options.names or ALL:
            began = time.monotonic()
            rows = ALL[name](site, options.quick)
            summary = (ALL[name].__doc__ or "").strip()
            show(f"{name}: {summary}  [{time.monotonic() - began:.0f} s]", rows)


if __name__ == "__main__":
    main()
