"""The ``fake`` transport: to machines of the provider ``fake`` that are processes of this machine, without ssh.

The address is ``fake-PID-START``: the machine's first process, and when that was started.  Programs run with that process's environment,
which marks them as the machine's, in its home.
"""

from __future__ import annotations

import os
import re
import time

from cloudtask.errors import ConnectError, RefusedError
from cloudtask.model import Address
from cloudtask.transports.base import Channel, ConnectOptions
from cloudtask.transports.program import ProgramChannel

SHELL = "/bin/sh"
_HOST = re.compile(r"fake-([0-9]{1,10})-([0-9]{1,20})")


class FakeTransport:
    """A `Transport` to such machines."""

    def connect(self, address: Address, options: ConnectOptions) -> FakeConnection:
        """See `Transport`."""
        match = _HOST.fullmatch(address.host)
        if not match:
            raise RefusedError(f"{address.host} is no address of the fake provider")
        connection = FakeConnection(address.host, int(match[1]), match[2])
        ready = connection.environment().get("FAKE_READY", "never")
        if ready == "never" or float(ready) > time.time():
            raise ConnectError(f"{address.host}: the machine does not answer")
        return connection


class FakeConnection:
    """A `Connection` to a machine that lives."""

    notes: tuple[str, ...] = ()

    def __init__(self, host: str, pid: int, start: str) -> None:
        self.login = host
        self._pid = pid
        self._start = start
        self._channels: list[ProgramChannel] = []
        self._open = True

    def environment(self) -> dict[str, str]:
        """What programs there have in their environment.  Raises ConnectError where the machine is gone."""
        try:
            with open(f"/proc/{self._pid}/environ", "rb") as file:
                words = os.fsdecode(file.read()).split("\0")
        except OSError as error:
            raise ConnectError(f"{self.login}: the machine is gone") from error
        found = dict(word.split("=", 1) for word in words if "=" in word)
        if not self._lives() or "FAKE_MACHINE" not in found:
            raise ConnectError(f"{self.login}: the machine is gone")
        return found

    def open(self, command: str) -> Channel:
        """See `Connection`."""
        if not self._open:
            raise ConnectError(f"{self.login}: the connection is closed")
        environment = self.environment()
        try:
            channel = ProgramChannel([SHELL, "-c", os.fsencode(command)], cwd=environment["HOME"], env=environment)
        except (OSError, KeyError) as error:
            raise ConnectError(f"{self.login}: cannot start {SHELL}: {error}") from error
        self._channels = [each for each in self._channels if each.fileno() >= 0]
        self._channels.append(channel)
        return channel

    def alive(self) -> bool:
        """See `Connection`."""
        return self._open and self._lives()

    def close(self) -> None:
        """See `Connection`."""
        self._open = False
        while self._channels:
            self._channels.pop().close()

    def _lives(self) -> bool:
        try:
            with open(f"/proc/{self._pid}/stat", "rb") as file:
                fields = file.read().rpartition(b")")[2].split()
        except OSError:
            return False
        return len(fields) > 19 and fields[0] not in (b"Z", b"X") and fields[19].decode() == self._start
