"""``python -m cloudtask`` is the command ``cloudtask``."""

from __future__ import annotations

import sys

from cloudtask.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
