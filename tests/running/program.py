"""Runs the real ``cloudtask`` as a process, and reads what its jobs wrote.

The controller's home, state and sessions are in a directory of the test.  Jobs tell of themselves by appending lines to one
file, which a short write with O_APPEND does whole: that is the witness for what ran, and how often.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
DEADLINE = 40.0


def wait_until(condition: Callable[[], object], what: str, seconds: float = DEADLINE) -> None:
    """Poll until the condition holds; fail with its name at the deadline."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"not within {seconds:g} s: {what}")
        time.sleep(0.02)


class Controller:
    """A home of its own for the controller, and the witness file of its jobs."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.home = directory / "home"
        self.home.mkdir(parents=True)
        self.sessions = directory / "sessions"
        self.witness = directory / "witness"
        self.witness.touch()
        # Jobs may run as another user.
        self.witness.chmod(0o666)
        directory.chmod(0o711)
        self.runs: list[subprocess.Popen[bytes]] = []

    def environment(self, **extra: str) -> dict[str, str]:
        """The environment of a run: nothing of the tester's own configuration."""
        keep = {name: value for name, value in os.environ.items() if not name.startswith(("CLOUDTASK_", "XDG_", "HUB_"))}
        return keep | {"HOME": str(self.home), "PYTHONPATH": str(REPOSITORY), "CLOUDTASK_SESSIONS": str(self.sessions)} | extra

    def start(self, *args: str, jobs: bytes = b"", **extra: str) -> subprocess.Popen[bytes]:
        """Start ``cloudtask args`` with jobs on stdin; output goes to files."""
        number = len(self.runs)
        stdin = self.directory / f"stdin{number}"
        stdin.write_bytes(jobs)
        with stdin.open("rb") as source, self.out(number).open("wb") as out, self.err(number).open("wb") as err:
            process = subprocess.Popen(
                [sys.executable, "-m", "cloudtask", *args],
                stdin=source, stdout=out, stderr=err, env=self.environment(**extra), cwd=self.directory, start_new_session=True,
            )  # fmt: skip
        self.runs.append(process)
        return process

    def run(self, *args: str, jobs: bytes = b"", seconds: float = DEADLINE, **extra: str) -> int:
        """Start, and wait for the end; returns the exit status."""
        return self.finish(self.start(*args, jobs=jobs, **extra), seconds)

    def finish(self, process: subprocess.Popen[bytes], seconds: float = DEADLINE) -> int:
        """Wait for a run's end."""
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {seconds:g} s; it said:\n{self.said()[-4000:]}") from None

    def call(self, *args: str, seconds: float = DEADLINE, **extra: str) -> int:
        """Run ``python args`` in the controller's home; its exit status.  What it says comes with a failure only."""
        command = [sys.executable, *args]
        return subprocess.run(command, stdin=subprocess.DEVNULL, env=self.environment(**extra), timeout=seconds, check=False).returncode

    def out(self, number: int = -1) -> Path:
        """The standard output of a run, the last one unless said otherwise."""
        return self.directory / f"out{number % len(self.runs) if number < 0 else number}"

    def err(self, number: int = -1) -> Path:
        """The standard error of a run."""
        return self.directory / f"err{number % len(self.runs) if number < 0 else number}"

    def said(self) -> str:
        """What the last run wrote on standard error."""
        return self.err().read_text(errors="replace")

    def summary(self) -> str:
        """The last run's final figures."""
        return next(line for line in reversed(self.said().splitlines()) if " :: session " in line)

    # --- the session -------------------------------------------------------------------------------------------------

    def session(self, number: int = 1) -> Path:
        """A session's directory."""
        return self.sessions / str(number)

    def journal(self, number: int = 1) -> list[dict[str, Any]]:
        """A session's records."""
        path = self.session(number) / "journal.jsonl"
        if not path.exists():
            return []
        return [json.loads(line) for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]

    def supervisors(self) -> list[int]:
        """The pids of the supervisors of the last run."""
        server = [pid for pid in children_of(self.runs[-1].pid) if "forkserver" in command_line(pid)]
        return [pid for parent in server for pid in children_of(parent)]

    def agents(self) -> list[int]:
        """The pids of the agents that look after this controller's sessions, guardians left out."""
        found = []
        for home in self.agent_homes():
            with contextlib.suppress(OSError, ValueError, KeyError):
                found.append(int(json.loads((home / "state").read_text())["agent"][0]))
        return [pid for pid in found if alive(pid)]

    def agent_homes(self) -> list[Path]:
        """The homes of agents on the local worker."""
        root = self.home / ".cloudtask-agent"
        return [path for path in root.iterdir() if path.is_dir()] if root.is_dir() else []

    # --- the witness -------------------------------------------------------------------------------------------------

    def recording(self, body: str = "") -> str:
        """Shell code of a job that tells when it begins and ends; its word is ``{}``."""
        return f"echo begin {{}} >> {self.witness}; {body} echo end {{}} >> {self.witness}"

    def told(self) -> list[list[str]]:
        """What the jobs told so far, as words."""
        return [line.split() for line in self.witness.read_text().splitlines()]

    def begun(self) -> Counter[str]:
        """How often each job began."""
        return Counter(words[1] for words in self.told() if words[0] == "begin")

    def ended(self) -> Counter[str]:
        """How often each job came to its end."""
        return Counter(words[1] for words in self.told() if words[0] == "end")

    def stop_all(self) -> None:
        """End what a failed test left: runs by their process groups, agents by their pids."""
        for process in self.runs:
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        for pid in [*processes_with(f"HOME={self.home}")]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def alive(pid: int) -> bool:
    """True for a process that runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def command_line(pid: int) -> str:
    """A process's arguments, joined by blanks."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return ""


def children_of(pid: int) -> list[int]:
    """The pids of a process's children."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, IndexError):
                if int((entry / "stat").read_text().rpartition(")")[2].split()[1]) == pid:
                    found.append(int(entry.name))
    return found


def processes_with(entry: str) -> Iterator[int]:
    """The pids of processes with this entry in their environment."""
    for path in Path("/proc").iterdir():
        if path.name.isdigit() and int(path.name) != os.getpid():
            with contextlib.suppress(OSError):
                if entry.encode() in (path / "environ").read_bytes().split(b"\0"):
                    yield int(path.name)
