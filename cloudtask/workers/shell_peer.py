"""The fallback for a worker without python3: the same frames as an agent's, served by a thread of the controller over sh scripts.

`shell_agent` is that thread, `shell_jobs` its running attempts, `shell_channel` and `shell_scripts` the two ends of its channels.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from cloudtask.errors import SetupError
from cloudtask.transports import Connection
from cloudtask.workers.shell_agent import ShellAgent
from cloudtask.workers.shell_channel import Control
from cloudtask.workers.shell_frames import Frame, FrameQueue

_GREETING_SECONDS = 30.0


class ShellPeer:
    """A `Peer` for a worker that has only ``/bin/sh`` and the standard utilities.

    Making one blocks for some round trips, so it is for a thread; nothing else does.  Raises ConnectError when the worker does not answer,
    SetupError when it can not keep its files in the login user's home, or can not make process groups.
    """

    def __init__(self, connection: Connection, key: str, say: Callable[[str], None]) -> None:
        control = Control(connection, key, _GREETING_SECONDS)
        try:
            _check(control.facts, connection.login)
        except BaseException:
            control.close()
            raise
        say(f"{connection.login}: no python3, jobs run by its sh")
        self._commands = FrameQueue()
        self._answers = FrameQueue()
        self._agent = ShellAgent(connection, control, key, self._commands, self._answers)
        self._thread = threading.Thread(target=self._serve, name=f"shell of {connection.login}", daemon=True)
        self._thread.start()

    def fileno(self) -> int:
        """See `Peer`."""
        return self._answers.fileno()

    def send(self, header: dict[str, Any], payload: bytes = b"") -> None:
        """See `Peer`."""
        self._commands.put(header, payload)

    def receive(self) -> list[Frame]:
        """See `Peer`."""
        return self._answers.take()

    def flush(self) -> bool:
        """See `Peer`."""
        return True

    def close(self) -> None:
        """See `Peer`.  What runs is cut off; the thread leaves by itself."""
        self._agent.closing.set()
        self._commands.end("closed")
        self._answers.close()

    def _serve(self) -> None:
        try:
            self._agent.run()
        finally:
            self._commands.close()


def _check(facts: dict[str, str], login: str) -> None:
    if "problem" in facts:
        raise SetupError(f"{login}: cannot keep jobs in ~/.cloudtask-agent there: {facts['problem'].rpartition('sh: ')[2]}")
    if facts.get("leader") not in ("setsid", "monitor"):
        raise SetupError(f"{login}: has neither python3 nor setsid; install one of them there")
    missing = {"home", "fresh", "rebooted", "ready", "epoch", "cpus", "pid", "uid", "machine", "boot", "start"} - set(facts)
    if missing:
        raise SetupError(f"{login}: its shell did not say {' '.join(sorted(missing))}")
