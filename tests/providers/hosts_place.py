"""Where the tests of the ``hosts`` provider play: a home, an inventory, and programs that stand for hosts."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from cloudtask.providers.base import Instance, InstanceState, Order
from cloudtask.providers.hosts import HostsProvider
from cloudtask.providers.hosts_settings import ROWS
from cloudtask.settings import BUILT_IN, Settings
from tests.providers.contract import ids_of, make_order, wait_for

PATIENCE = 15.0


def settings(**values: Any) -> Settings:
    """A run's settings, with an idle timeout of nothing."""
    table = BUILT_IN.extended(ROWS)
    return table.settings({row.name: row.default for row in table} | {"idle_timeout": 0.0} | values)


class Server:
    """A program that stands for a host: started and stopped by commands, with its pid in a file, and a line for each command in a log."""

    def __init__(self, folder: Path, name: str, program: str, port: int | None = None) -> None:
        self.name = name
        self.port = port
        self.pid_file = folder / f"{name}.pid"
        self.log = folder / f"{name}.log"
        self.log.touch()
        pid, log = shlex.quote(str(self.pid_file)), shlex.quote(str(self.log))
        self.start_command = f"echo start >>{log}; {self.runs} && {{ echo 'runs already' >&2; exit 9; }}; setsid {program} & echo $! >{pid}"
        self.stop_command = f"echo stop >>{log}; {self.runs} || exit 0; kill $(cat {pid}); while {self.runs}; do sleep 0.02; done"

    @property
    def runs(self) -> str:
        """A shell condition.  A zombie counts as gone: nobody may reap it here."""
        pid = shlex.quote(str(self.pid_file))
        return f"{{ test -s {pid} && grep -qs '^State:.[^ZX]' /proc/$(cat {pid})/status; }}"

    def is_on(self) -> bool:
        """It runs."""
        return subprocess.run(["/bin/sh", "-c", self.runs], check=False).returncode == 0

    def done(self) -> list[str]:
        """What was done to it, in order."""
        return self.log.read_text().split()

    def turn_on(self) -> None:
        """As its owner would, behind our back."""
        subprocess.run(["/bin/sh", "-c", self.start_command], check=True)
        wait_for(self.is_on, PATIENCE, "it runs")

    def turn_off(self) -> None:
        """As its owner would."""
        subprocess.run(["/bin/sh", "-c", self.stop_command], check=True)

    def entry(self, **more: Any) -> dict[str, Any]:
        """Its entry in the inventory."""
        power = {"start": self.start_command, "stop": self.stop_command, "status": self.runs}
        address = "127.0.0.1" if self.port else f"127.9.0.{self.name.removeprefix('h')}"
        return {"name": self.name, "address": address, "port": self.port or 9, "power": {"command": power}, **more}


class Place:
    """A home with an inventory of servers that only sleep."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "inventory.yaml"
        self.servers: list[Server] = []

    def servers_of(self, count: int, program: str = "sleep 1000") -> list[Server]:
        """So many more."""
        new = [Server(self.folder, f"h{len(self.servers) + number + 1}", program) for number in range(count)]
        self.servers += new
        return new

    def write(self, entries: Iterable[Mapping[str, Any]]) -> None:
        """The inventory."""
        self.file.write_text(yaml.safe_dump({"hosts": list(entries)}))

    def provider(self, **values: Any) -> HostsProvider:
        """As a fresh process has it."""
        return HostsProvider(settings(hosts_file=str(self.file), **values))

    def order(self, count: int = 1, session: str = "session-1", token: str | None = None) -> Order:
        """A new order."""
        return make_order(count, token or f"t{time.monotonic_ns()}", session)

    def run(self, order: Order, **values: Any) -> list[Instance]:
        """Launches, and waits until all run."""
        ids = ids_of(self.provider(**values).launch(order))
        assert len(ids) == order.count
        return self.running(ids, **values)

    def running(self, ids: list[str], **values: Any) -> list[Instance]:
        """Waits until all run."""

        def all_run() -> list[Instance]:
            found = self.provider(**values).describe(ids)
            return found if all(each.state is InstanceState.RUNNING for each in found) else []

        return wait_for(all_run, PATIENCE, f"{ids} run")

    def release(self, ids: list[str], **values: Any) -> None:
        """Destroys, and waits until they are gone."""
        self.provider(**values).destroy(ids)
        wait_for(lambda: not self.exists(ids, **values), PATIENCE, f"{ids} are gone")

    def exists(self, ids: list[str], **values: Any) -> list[Instance]:
        """Those that do."""
        return [each for each in self.provider(**values).describe(ids) if each.exists]

    def records(self) -> list[dict[str, Any]]:
        """The state files' content."""
        return [json.loads(path.read_text()) for path in self.state.glob("*.json")]

    @property
    def state(self) -> Path:
        """The directory of the state files."""
        return Path(os.environ["HOME"]) / ".local/state/cloudtask/hosts"


def end(server: Server) -> None:
    """Whatever a test left running."""
    if server.is_on():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(server.pid_file.read_text()), signal.SIGKILL)


@contextmanager
def make_place(folder: Path) -> Iterator[Place]:
    """For a fixture."""
    found = Place(folder)
    try:
        yield found
    finally:
        for server in found.servers:
            end(server)
