"""Where a bench takes place: loopback sshd's with an ordinary user, a HOME of its own, and ways to run things there.

The user's shell is sh and its home is empty, so that nobody's ``.bashrc`` is measured.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.accounts import Account, borrow, give_back, own_account
from tests.bench.proc import Watch
from tests.sshd import ClientKeys, Sshd, make_client_keys

REPOSITORY = Path(__file__).resolve().parents[2]
_CLOUDTASK = (sys.executable, "-m", "cloudtask")
_LONGEST = 1800.0


@dataclass(frozen=True, kw_only=True)
class Run:
    """One finished command: ``seconds`` elapsed, and what was seen of its main process (not for `Site.run`)."""

    seconds: float
    watch: Watch = field(default_factory=Watch)
    session: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Site:
    """Four servers, an account on them, and the keys to it."""

    folder: Path
    account: Account
    servers: Sequence[Sshd]
    keys: ClientKeys

    @property
    def environment(self) -> dict[str, str]:
        """Nothing of the user's own configuration."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("CLOUDTASK_", "XDG_", "HUB_", "PARALLEL"))}
        return kept | {"HOME": str(self.keys.home), "PYTHONPATH": str(REPOSITORY)}

    @property
    def master_config(self) -> Path:
        """An ssh configuration that shares connections."""
        path = self.folder / "config-master"
        sockets = self.folder / "m"
        sockets.mkdir(exist_ok=True, mode=0o700)
        path.write_text(f"{self.keys.config.read_text()}\n  ControlMaster auto\n  ControlPath {sockets}/%C\n  ControlPersist 300\n")
        return path

    def close_masters(self) -> None:
        """End the shared connections."""
        for server in self.servers:
            command = ["ssh", "-F", str(self.master_config), "-O", "exit", "-p", str(server.port), f"{server.user}@{server.host}"]
            subprocess.run(command, env=self.environment, capture_output=True, check=False)

    def run(self, command: Sequence[str], lines: int = 0) -> Run:
        """Run any command with the numbers up to ``lines`` on stdin.  Raises AssertionError where it fails."""
        jobs = _numbers(lines)
        began = time.perf_counter()
        done = subprocess.run(
            command, input=jobs, env=self.environment, cwd=self.folder, capture_output=True, timeout=_LONGEST, check=False
        )
        seconds = time.perf_counter() - began
        assert done.returncode == 0, f"{command[0]}: exit {done.returncode}: {done.stderr[-2000:].decode(errors='replace')}"
        return Run(seconds=seconds)

    def start(self, workers: str, *command: str, jobs: bytes) -> subprocess.Popen[bytes]:
        """Start the real cloudtask.  Output goes nowhere, messages to a file."""
        errors = self.folder / "stderr"
        with errors.open("wb") as err, (self.folder / "jobs").open("w+b") as source:
            source.write(jobs)
            source.seek(0)
            return subprocess.Popen(
                [*_CLOUDTASK, f"--sessions={self.sessions}", f"--ssh-config={self.keys.config}", f"--workers={workers}", *command],
                stdin=source, stdout=subprocess.DEVNULL, stderr=err, env=self.environment, cwd=self.folder, start_new_session=True,
            )  # fmt: skip

    @property
    def sessions(self) -> Path:
        """Where the sessions are."""
        return self.folder / "sessions"

    def cloudtask(self, workers: str, *command: str, jobs: bytes, watch: bool = False) -> Run:
        """Run cloudtask to its end.  ``watch`` looks at its main process every 50 ms.  Raises AssertionError where it fails."""
        shutil.rmtree(self.sessions, ignore_errors=True)
        seen = Watch()
        began = time.perf_counter()
        process = self.start(workers, *command, jobs=jobs)
        try:
            if watch:
                while process.poll() is None:
                    seen.look(process.pid)
                    time.sleep(0.05)
            status = process.wait(_LONGEST)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait(60)
        seconds = time.perf_counter() - began
        assert status == 0, f"cloudtask: exit {status}: {self.said()}"
        return Run(seconds=seconds, watch=seen, session=self.sessions / "1")

    def said(self) -> str:
        """The end of what cloudtask said."""
        return (self.folder / "stderr").read_bytes()[-2000:].decode(errors="replace")

    def workers(self, slots: int, repeat: int = 1) -> str:
        """For --workers: all servers, each ``repeat`` times."""
        return " ".join(f"{slots}/{server.address}" for server in self.servers for _ in range(repeat))


def _numbers(lines: int) -> bytes:
    return "".join(f"{number}\n" for number in range(1, lines + 1)).encode()


@contextmanager
def open_site(servers: int = 4) -> Iterator[Site]:
    """Put it all up, and take it all down."""
    account = borrow() if os.geteuid() == 0 else own_account()
    with ExitStack() as stack:
        stack.callback(give_back, account)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ctbench.")))
        keys = make_client_keys(folder / "home")
        running = []
        for number in range(servers):
            place = folder / f"sshd{number}"
            place.mkdir()
            # The benches log in more often than the defaults of a server on the internet allow.
            running.append(stack.enter_context(Sshd(place, account, config=["MaxStartups 100"], public_keys=[keys.public])))
        keys.known_hosts.write_text("".join(server.known_hosts_line() for server in running))
        yield Site(folder=folder, account=account, servers=running, keys=keys)
