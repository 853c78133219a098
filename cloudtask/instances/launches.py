"""Where machines that belong to no session are written down: each ``cloudtask-launch-workers`` is a session without jobs.

So what a launch that died has left is found and destroyed as it is for a run.
"""

from __future__ import annotations

import os

from cloudtask.session.keys import keys_directory


def launches_directory() -> str:
    """``~/.local/state/cloudtask/launches``; it may not exist."""
    return os.path.join(os.path.dirname(keys_directory()), "launches")
