"""The same against EC2 (moto over HTTP, machines on the stage): killed at every journal step, while calls fail and answers are lost."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cloudtask.session import layout, replay
from tests.running.program import Controller, processes_with, wait_until
from tests.stage.ec2_server import ATTEMPTS_OF_BOTO, Ec2Server, staged_ec2

STEPS = range(1, 25)
AT_ONCE = 6


@pytest.fixture
def ec2() -> Iterator[Ec2Server]:
    with staged_ec2(commands=False) as server:
        yield server


def run_to_its_death(home: Path, step: int, moment: str, server: Ec2Server) -> None:
    options = ("--provider=ec2", "--slots=1", "--split=2", "--resume-grace=0", "echo")
    command = [sys.executable, "-m", "tests.chaos.killed", str(step), moment, *options]
    jobs = b"1\n2\n3\n4\n"
    environment = Controller(home).environment(**server.environment)
    subprocess.run(
        command, input=jobs, env=environment, cwd=home, capture_output=True, timeout=90, start_new_session=True, check=False
    )


def machines_to_see_to(home: Path) -> list[str]:
    """The machines that the session's journal knows and that are not gone.  An order in doubt stays open for longer than a test."""
    journal = layout.Paths(str(home / "sessions" / "1")).journal
    return [each.id for each in replay.replay(journal, strict=True).bookings.ours()] if os.path.exists(journal) else []


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("moment", ["before", "after"])
def test_nothing_is_left_at_ec2_after_a_kill_at_any_step(ec2: Ec2Server, tmp_path: Path, moment: str) -> None:
    dice = random.Random(moment)
    homes = [tmp_path / str(step) for step in STEPS]
    try:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            for step, home in zip(STEPS, homes, strict=True):
                for action in ("DescribeInstances", "TerminateInstances", "RunInstances"):
                    if dice.random() < 0.2:
                        ec2.fail(action, times=ATTEMPTS_OF_BOTO)
                if dice.random() < 0.2:
                    ec2.lose("RunInstances", times=ATTEMPTS_OF_BOTO)
                pool.submit(run_to_its_death, home, step, moment, ec2)
        wait_until(lambda: not ec2.alive(), "nothing exists at EC2", 120)
        wait_until(lambda: not any(map(machines_to_see_to, homes)), "every journal says so", 120)
        assert len(ec2.instances()) > len(STEPS), "most of the runs came to launch something"
    finally:
        for home in homes:
            for pid in list(processes_with(f"HOME={home / 'home'}")):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
