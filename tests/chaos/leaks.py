"""One seed: a run on fake machines with faults, killed at some journal step, and its watchdog: afterwards the provider lists nothing."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from cloudtask.providers import Instance
from cloudtask.providers.fake import FakeProvider
from cloudtask.settings import Settings
from tests.running.program import REPOSITORY, alive, command_line, processes_with

DEADLINE = 90.0
MOST_STEPS = 34
"""Journal steps of the longest of these runs, roughly: a run that ends before its step is not killed, which is a case too."""

JOBS = 6


@dataclass(frozen=True, kw_only=True)
class Case:
    """What a seed does: the options of the run, the step at which it dies, and whether before or after that is written."""

    seed: int
    options: tuple[str, ...]
    step: int
    moment: str

    def __str__(self) -> str:
        return f"seed {self.seed}: killed {self.moment} step {self.step}, {' '.join(self.options)}"


def case(seed: int) -> Case:
    """The case of a seed, always the same."""
    dice = random.Random(seed)
    faults = [f"seed={seed}"]
    for fault in ("api-500=15%", "throttle=10%", "lost-answer=1", "destroy-ignored=1", "slow-boot=0.3s", "slow-destroy=0.5s"):
        if dice.random() < 0.35:
            faults.append(fault)
    if dice.random() < 0.2:
        faults.append(dice.choice(["boots-then-dies=1@0.3s", "never-boots=1", "reclaim=1@0.2s,reclaim-notice=0.2s"]))
    options = [f"--split={dice.randint(1, 3)}", f"--fake-faults={','.join(faults)}", "--boot-timeout=3s", "--resume-grace=0"]
    if dice.random() < 0.2:
        options.append("--fake-settles=0.5s")
    return Case(seed=seed, options=tuple(options), step=dice.randint(1, MOST_STEPS), moment=dice.choice(["before", "after"]))


def run(case: Case) -> str:
    """Run it; what is wrong afterwards, empty where nothing is."""
    with tempfile.TemporaryDirectory(prefix="cloudtask-chaos-", ignore_cleanup_errors=True) as directory:
        home = Path(directory)
        try:
            _run_to_its_death(case, home)
            return _what_is_left(home)
        finally:
            _end_all(home)


def _run_to_its_death(case: Case, home: Path) -> None:
    options = ("--provider=fake", "--fake-kind=local", "--slots=1", *case.options, "sleep 0.05; echo")
    command = [sys.executable, "-m", "tests.chaos.killed", str(case.step), case.moment, *options]
    keep = {name: value for name, value in os.environ.items() if not name.startswith(("CLOUDTASK_", "XDG_", "HUB_"))}
    with (home / "said").open("wb") as said:
        subprocess.run(
            command,
            input=b"".join(b"%d\n" % number for number in range(JOBS)),
            stdout=subprocess.DEVNULL,
            stderr=said,
            env=keep | {"HOME": str(home), "PYTHONPATH": str(REPOSITORY)},
            cwd=home,
            start_new_session=True,
            timeout=DEADLINE,
            check=False,
        )


def _what_is_left(home: Path) -> str:
    end = time.monotonic() + DEADLINE
    while time.monotonic() < end:
        if not _watchdogs(home):
            left = [f"{each.id} is {each.state.value}" for each in _machines(home)]
            return "; ".join(left) and f"{'; '.join(left)}\n{_log(home)}"
        time.sleep(0.1)
    return f"the watchdog has not ended\n{_log(home)}"


def _machines(home: Path) -> list[Instance]:
    state = str(home / ".local/state/cloudtask/fake")
    return FakeProvider(Settings(extra={"fake_kind": "local", "fake_state": state})).find()


def _watchdogs(home: Path) -> list[int]:
    return [pid for pid in processes_with(f"HOME={home}") if "cli.watchdog" in command_line(pid) and alive(pid)]


def _log(home: Path) -> str:
    logs = [path.read_text(errors="replace") for path in home.glob(".cloudtask/*/log")]
    return "\n".join([*logs, (home / "said").read_text(errors="replace")])


def _end_all(home: Path) -> None:
    for pid in processes_with(f"HOME={home}"):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
