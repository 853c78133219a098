"""The machine's timer, started over a connection: as root, with sudo, once, and never on the controller."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloudtask.providers.timer import TIMER_PATH, timer_script
from cloudtask.transports import Channel, Connection
from cloudtask.transports.program import ProgramChannel
from cloudtask.workers.machine_timer import start_timer

# One that does nothing in the life of a test.
SCRIPT = timer_script(10**6, 10**6)
PATIENCE = 20.0
root_only = pytest.mark.skipif(os.getuid() != 0, reason="not allowed to make namespaces")


class Machine:
    """A connection to a process table, a /run and a /var/lib of its own, on this machine."""

    login = "root@machine"
    notes: tuple[str, ...] = ()

    def __init__(self, folder: Path) -> None:
        self._channels: list[ProgramChannel] = []
        self.path = folder / "bin"
        self.path.mkdir()
        words = ["unshare", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child", "sh", "-c"]
        code = f"for d in /run /var/lib; do mount -t tmpfs none $d; done; : >{folder}/up; exec sleep 600"
        self._process = subprocess.Popen([*words, code], start_new_session=True)
        deadline = time.monotonic() + PATIENCE
        while not (folder / "up").exists():
            assert time.monotonic() < deadline and self._process.poll() is None
            time.sleep(0.01)
        self._first = subprocess.run(["pgrep", "-P", str(self._process.pid)], check=True, capture_output=True, text=True).stdout.strip()

    def tool(self, name: str, code: str) -> None:
        """A program that is found before the machine's."""
        (self.path / name).write_text(f"#!/bin/sh\n{code}\n")
        (self.path / name).chmod(0o755)

    def open(self, command: str) -> Channel:
        """See `Connection`."""
        environment = {"PATH": f"{self.path}:/usr/sbin:/usr/bin:/sbin:/bin"}
        argv = ["nsenter", "-t", self._first, "--mount", "--pid", "/bin/sh", "-c", f"echo You have mail; {command}"]
        self._channels.append(ProgramChannel(argv, env=environment))
        return self._channels[-1]

    def alive(self) -> bool:
        """See `Connection`."""
        return True

    def close(self) -> None:
        """Ends it with all that runs there."""
        for channel in self._channels:
            channel.close()
        self._process.kill()
        self._process.wait()

    def says(self, code: str) -> str:
        """What a shell there prints."""
        words = ["nsenter", "-t", self._first, "--mount", "--pid", "/bin/sh", "-c", code]
        return subprocess.run(words, check=False, capture_output=True, text=True, timeout=PATIENCE).stdout

    def timers(self) -> int:
        """How many run."""
        return len(self.says("grep -ls '[c]loudtask-timer' /proc/[0-9]*/cmdline").split())

    def settles_at(self, count: int) -> None:
        """So many run, after a second one has seen the first."""
        deadline = time.monotonic() + PATIENCE
        while self.timers() != count:
            assert time.monotonic() < deadline, self.timers()
            time.sleep(0.05)


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    """One such machine."""
    for tool in ("unshare", "nsenter", "pgrep"):
        if shutil.which(tool) is None:
            pytest.skip(f"there is no {tool}")
    made = Machine(tmp_path)
    yield made
    made.close()


@root_only
def test_it_is_started_once(machine: Machine) -> None:
    assert start_timer(machine, SCRIPT) == ""
    machine.settles_at(1)
    pid = machine.says("cat /run/cloudtask-timer.pid")
    assert start_timer(machine, SCRIPT) == ""
    machine.settles_at(1)
    assert machine.says("cat /run/cloudtask-timer.pid") == pid
    assert machine.says(f"cat {TIMER_PATH}") == SCRIPT
    assert machine.says(f"stat -c %a {TIMER_PATH}; ls {os.path.dirname(TIMER_PATH)}").split() == ["600", "cloudtask-timer"]


@root_only
def test_it_goes_through_systemd_where_that_is_there(machine: Machine) -> None:
    machine.tool("systemd-run", "echo $* >/run/asked")
    assert start_timer(machine, SCRIPT) == ""
    assert "--unit=cloudtask-timer" in machine.says("cat /run/asked") and machine.timers() == 0


@root_only
def test_another_user_needs_sudo(machine: Machine) -> None:
    machine.tool("id", "echo 1000")
    machine.tool("sudo", "echo sudo: a password is required >&2; exit 1")
    assert start_timer(machine, SCRIPT) == "sudo: a password is required"
    machine.tool("sudo", '[ "$1" = -n ] && shift && exec "$@"')
    assert start_timer(machine, SCRIPT) == ""
    machine.settles_at(1)


@root_only
def test_a_machine_that_cannot_hold_it_says_so(machine: Machine) -> None:
    machine.says("mount -o remount,ro /var/lib")
    problem = start_timer(machine, SCRIPT)
    assert "Read-only" in problem and "\n" not in problem
    machine.tool("mkdir", "printf 'x\\033[31mred\\n'; exit 1")
    assert start_timer(machine, SCRIPT) == r"x\x1b[31mred"


def test_never_on_the_controller(connection: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    assert start_timer(connection, "exit 1\n") == "it is the controller itself"
    connection.close()
    assert "closed" in start_timer(connection, "exit 1\n")
