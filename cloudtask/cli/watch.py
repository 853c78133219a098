"""Starting a session's watchdog: a process of its own, that outlives the run, its terminal and its login."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from cloudtask.errors import SessionError
from cloudtask.plan import Plan
from cloudtask.settings import Table, get


def start_watchdog(table: Table, plan: Plan, directory: str) -> None:
    """Start it over the session in ``directory``.  Secrets go to it through a pipe: they stand on no disk and in no list of processes."""
    secrets = {row.name: value for row in table if row.secret and (value := get(plan.settings, row))}
    # Standard error stays, for a warning to somebody who stopped the run at this terminal.
    try:
        process = _start(directory)
    except OSError as error:
        raise SessionError(f"the watchdog cannot be started ({error.strerror or error}), and without one nothing is launched") from error
    assert process.stdin
    process.stdin.write(json.dumps(secrets).encode())
    process.stdin.close()
    process.returncode = 0  # it is to outlive us, and nobody waits for it


def _start(directory: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "cloudtask.cli.watchdog", "--secrets", directory],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=None if os.isatty(2) else subprocess.DEVNULL,
        start_new_session=True,
        close_fds=True,
        cwd="/",
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )
