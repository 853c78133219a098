"""``python -m tests.chaos [--seeds N] [--first SEED] [--at-once N]``: exit status 1 where a seed left something."""

from __future__ import annotations

import argparse
import sys
from concurrent.futures import ThreadPoolExecutor

from tests.chaos import leaks


def main() -> int:
    """Run the seeds; tell of each that failed, and how to run it alone."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos")
    parser.add_argument("--seeds", type=int, default=1000)
    parser.add_argument("--first", type=int, default=1000)
    parser.add_argument("--at-once", type=int, default=4)
    given = parser.parse_args()
    cases = [leaks.case(seed) for seed in range(given.first, given.first + given.seeds)]
    failed = 0
    with ThreadPoolExecutor(given.at_once) as pool:
        for done, (case, wrong) in enumerate(zip(cases, pool.map(leaks.run, cases), strict=True), 1):
            if wrong:
                failed += 1
                sys.stdout.write(f"\n{case}\n{wrong}\nagain: python -m tests.chaos --seeds 1 --first {case.seed}\n")
            sys.stdout.write(f"\r{done} of {len(cases)}, {failed} failed")
            sys.stdout.flush()
    sys.stdout.write("\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
