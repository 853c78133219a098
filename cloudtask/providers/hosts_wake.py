"""Hosts that commands on the controller start and stop: a magic packet, a power switch, ``virsh``, whatever there is.

``status`` says by its exit status whether the host runs (0) or not.  Where there is none, a host runs when its port takes connections;
one that does not may be off, or on its way up, so that its start is asked for once only.
"""

from __future__ import annotations

import socket

from cloudtask.errors import ProviderRefusedError
from cloudtask.providers.base import InstanceState
from cloudtask.providers.hosts_commands import must_here, run_here
from cloudtask.providers.hosts_power import Standing, Switch, Words

LIMIT = 60.0
"""Seconds that a command to start or stop a host may take."""

LOOK = 15.0
"""Seconds that a status command may take."""

KNOCK = 3.0
"""Seconds for a connection to a host's port."""

SSH = 22


class CommandPower:
    """See `cloudtask.providers.hosts_power.Power`."""

    def __init__(self, switch: Switch) -> None:
        self._switch = switch
        self._start: Words = switch.options["start"]
        self._stop: Words | None = switch.options.get("stop")
        self._status: Words | None = switch.options.get("status")
        self.certain = self._status is not None

    def look(self) -> Standing:
        """See `Power`."""
        runs = self._answers() if self._status is None else run_here(self._status, self._switch, LOOK) == 0
        return Standing(InstanceState.RUNNING if runs else InstanceState.STOPPED, self._switch.address, note="on" if runs else "off")

    def start(self) -> None:
        """See `Power`."""
        must_here(self._start, self._switch, LIMIT)

    def stop(self, waited: float) -> None:
        """See `Power`."""
        if self._stop is None:
            raise ProviderRefusedError(f"hosts: {self._switch.name}: there is no command that stops it")
        must_here(self._stop, self._switch, LIMIT)

    def _answers(self) -> bool:
        try:
            with socket.create_connection((self._switch.address, self._switch.port or SSH), KNOCK):
                return True
        except (OSError, UnicodeError):
            return False
