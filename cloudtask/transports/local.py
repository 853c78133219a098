"""The ``local`` transport: this machine is the worker, without ssh."""

from __future__ import annotations

import os

from cloudtask.errors import ConnectError, RefusedError
from cloudtask.model import Address
from cloudtask.transports.base import Channel, ConnectOptions
from cloudtask.transports.program import ProgramChannel

SHELL = "/bin/sh"


class LocalConnection:
    """A `Connection` to this machine.  Programs run in process sessions of their own, so that Ctrl-C does not reach them."""

    login = "local"
    notes: tuple[str, ...] = ()

    def __init__(self, directory: str | None) -> None:
        self._directory = directory
        self._channels: list[ProgramChannel] = []
        self._open = True

    def open(self, command: str) -> Channel:
        """See `Connection`.  Raises ConnectError where no process can be made."""
        if not self._open:
            raise ConnectError("local: the connection is closed")
        try:
            channel = ProgramChannel([SHELL, "-c", os.fsencode(command)], cwd=self._directory, env=_environment())
        except OSError as error:
            raise ConnectError(f"local: cannot start {SHELL}: {error.strerror or error}") from error
        self._channels = [each for each in self._channels if each.fileno() >= 0]
        self._channels.append(channel)
        return channel

    def alive(self) -> bool:
        """See `Connection`."""
        return self._open

    def close(self) -> None:
        """See `Connection`."""
        self._open = False
        while self._channels:
            self._channels.pop().close()


class LocalTransport:
    """A `Transport` to this machine."""

    def connect(self, address: Address, options: ConnectOptions) -> LocalConnection:
        """See `Transport`.  Raises RefusedError where ``options.directory`` cannot be entered."""
        if options.directory is not None and not os.access(options.directory, os.X_OK):
            raise RefusedError(f"{address}: the directory {options.directory} does not exist or cannot be entered")
        return LocalConnection(options.directory)


def _environment() -> dict[str, str]:
    """The controller's environment without its own settings: they may be secrets, and a job may run cloudtask itself."""
    return {name: value for name, value in os.environ.items() if not name.startswith("CLOUDTASK_") and name != "HUB_APIKEY"}
