"""Runs with a watchdog over them: it never takes a living one for frozen."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from tests.running.program import Controller, wait_until
from tests.running.test_launched import FAKE, all_gone, events, machines, watchdogs


@contextlib.contextmanager
def impatient_watchdog(controller: Controller, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """One that takes the place of the run's own."""
    for pid in watchdogs(controller):
        os.kill(pid, signal.SIGKILL)
    command = [sys.executable, "-m", "cloudtask.cli.watchdog", *options, str(controller.session())]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, env=controller.environment()) as process:
        try:
            yield process
        finally:
            process.kill()


def log(controller: Controller) -> str:
    """The session's log."""
    return (controller.session() / "log").read_text()


def let_pass(seconds: float) -> None:
    """For what must not happen within some time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.1)


def test_waiting_for_a_reader_is_not_frozen(controller: Controller) -> None:
    """All jobs are done and nobody reads standard output (``| less``): that may last for days."""
    stdin = controller.directory / "jobs"
    stdin.write_bytes(b"1\n")
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as output, stdin.open("rb") as source, (controller.directory / "err0").open("wb") as err:
        command = [sys.executable, "-m", "cloudtask", *FAKE, "head -c 300000 /dev/zero; echo"]
        run = subprocess.Popen(
            command, stdin=source, stdout=writer, stderr=err, env=controller.environment(), cwd=controller.directory, start_new_session=True
        )
        os.close(writer)
        controller.runs.append(run)
        wait_until(lambda: "waiting for standard output to be read" in controller.said(), "it waits for a reader")
        with impatient_watchdog(controller, "--frozen=7s"):
            let_pass(11)
        assert "frozen" not in log(controller) and run.poll() is None
        assert len(output.read()) == 300002
    assert controller.finish(run) == 0, controller.said()


def test_a_run_that_was_frozen_together_with_its_watchdog_is_not_ended(controller: Controller) -> None:
    """``docker pause``, a frozen cgroup: the clock goes on while neither of them runs."""
    run = controller.start(*FAKE, "sleep 60; echo", jobs=b"1\n")
    wait_until(lambda: events(controller, "started") and watchdogs(controller), "a job runs")
    with impatient_watchdog(controller, "--frozen=7s") as watchdog:
        let_pass(2)
        for process in (run, watchdog):
            process.send_signal(signal.SIGSTOP)
        let_pass(9)
        watchdog.send_signal(signal.SIGCONT)
        let_pass(1.5)
        run.send_signal(signal.SIGCONT)
        let_pass(2)
        assert "frozen" not in log(controller) and run.poll() is None
    run.send_signal(signal.SIGINT)
    assert controller.finish(run) == 130


def test_a_watchdog_that_was_killed_is_replaced(controller: Controller) -> None:
    run = controller.start(*FAKE, "--resume-grace=0", "sleep 60; echo", jobs=b"1\n")
    wait_until(lambda: events(controller, "started") and watchdogs(controller), "a job runs")
    for pid in watchdogs(controller):
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: watchdogs(controller), "there is another")
    assert "there is no watchdog over this session" in controller.said()
    run.kill()
    run.wait()
    wait_until(lambda: all_gone(controller), "it destroyed the machine")


@pytest.mark.parametrize("moved", [True, False])
def test_a_session_that_is_moved_or_deleted_leaves_no_machine(controller: Controller, moved: bool) -> None:
    run = controller.start(*FAKE, "--resume-grace=1", "sleep 60; echo", jobs=b"1\n")
    wait_until(lambda: events(controller, "started") and watchdogs(controller), "a job runs")
    wait_until(lambda: (controller.session() / "watchdog").exists(), "the watchdog is up")
    let_pass(1.5)
    if moved:
        controller.sessions.rename(controller.directory / "elsewhere")
    else:
        shutil.rmtree(controller.sessions)
    let_pass(1.5)
    assert run.poll() is None and len(machines(controller)) == 1
    run.kill()
    run.wait()
    wait_until(lambda: all_gone(controller), "the machine is gone, and the watchdog with it")


def test_a_damaged_journal_is_no_reason_to_leave_machines(controller: Controller) -> None:
    run = controller.start(*FAKE, "--split=2", "--resume-grace=1", "sleep 60; echo", jobs=b"1\n2\n")
    wait_until(lambda: len(events(controller, "started")) == 2, "the jobs run")
    wait_until(lambda: (controller.session() / "watchdog").exists(), "the watchdog is up")
    run.kill()
    run.wait()
    with (controller.session() / "journal.jsonl").open("ab") as journal:
        journal.write(b"\0\0\0\n{}\n")
    wait_until(lambda: all_gone(controller), "the watchdog destroyed them")
    assert "the journal cannot be read" in log(controller)
