"""Runs the commands about machines as processes, and asks the ``fake`` provider itself what is there."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from cloudtask.providers import Instance, InstanceState
from cloudtask.providers.fake import FakeProvider
from cloudtask.settings import Settings
from cloudtask.worker_file import WorkerLine, read_worker_file
from tests.running.program import DEADLINE, Controller, alive, command_line, processes_with

MODULES = {"launch": "cloudtask.cli.launch_workers", "destroy": "cloudtask.cli.destroy_workers", "watchdog": "cloudtask.cli.watchdog"}
LOCAL = ("--provider=fake", "--fake-kind=local")


class Operator(Controller):
    """A user with a home of its own who calls the smaller commands, too."""

    def begin(self, command: str, *args: str, stdin: bytes = b"", program: tuple[str, ...] = (), **extra: str) -> subprocess.Popen[bytes]:
        """Start a command; ``program`` stands in its place for a variant of it."""
        number = len(self.runs)
        source = self.directory / f"stdin{number}"
        source.write_bytes(stdin)
        words = [sys.executable, "-m", *(program or (MODULES[command],)), *args]
        with source.open("rb") as given, self.out(number).open("wb") as out, self.err(number).open("wb") as err:
            process = subprocess.Popen(
                words, stdin=given, stdout=out, stderr=err, env=self.environment(**extra), cwd=self.directory, start_new_session=True
            )
        self.runs.append(process)
        return process

    def command(self, command: str, *args: str, stdin: bytes = b"", seconds: float = DEADLINE, **extra: str) -> int:
        """Run one to its end; the exit status."""
        return self.finish(self.begin(command, *args, stdin=stdin, program=(), **extra), seconds)

    @property
    def file(self) -> Path:
        """The list of machines."""
        return self.directory / "list"

    def listed(self) -> list[WorkerLine]:
        """What stands in it; nothing where there is none."""
        return read_worker_file(str(self.file)) if self.file.exists() else []

    def listed_ids(self) -> list[str]:
        """The ids in it, sorted."""
        return sorted(line.facts["id"] for line in self.listed())

    # --- the truth ---------------------------------------------------------------------------------------------------

    @property
    def provider(self) -> FakeProvider:
        """A fresh object."""
        return FakeProvider(Settings(extra={"fake_kind": "local", "fake_state": str(self.home / ".local/state/cloudtask/fake")}))

    def machines(self) -> list[Instance]:
        """What the provider lists."""
        return self.provider.find()

    def machine_ids(self) -> list[str]:
        """The ids of what runs, sorted: what is on its way out does not count."""
        return sorted(each.id for each in self.machines() if each.state is not InstanceState.LEAVING)

    def watchdogs(self) -> list[int]:
        """The watchdogs of this user's sessions."""
        return [pid for pid in processes_with(f"HOME={self.home}") if "cli.watchdog" in command_line(pid) and alive(pid)]

    @property
    def launches(self) -> Path:
        """The directory of launches."""
        return self.home / ".local/state/cloudtask/launches"

    def launch_journal(self, number: int = 1) -> list[dict[str, Any]]:
        """A launch's records."""
        path = self.launches / str(number) / "journal.jsonl"
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith(b"\n")]

    def events(self, number: int = 1) -> list[str]:
        """The names of a launch's records."""
        return [next(iter(record)) for record in self.launch_journal(number)]

    def clean(self) -> None:
        """End what a test left."""
        self.stop_all()
        ids = [each.id for each in self.machines()]
        self.provider.destroy(ids)
