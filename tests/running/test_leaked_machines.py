"""``cloudtask-destroy-workers --leaked`` and ``cloudtask-watchdog --all --adopt``: machines that nobody looks after any more."""

from __future__ import annotations

import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from cloudtask.providers import Instance, Order, Tags
from tests.running.operator import LOCAL, Operator
from tests.running.program import wait_until

FAKE = ("--provider=fake", "--fake-kind=local")
HOUR = 3600.0


def controller_of(operator: Operator) -> str:
    """This controller's id, which is made where there is none yet."""
    path = operator.home / ".local/state/cloudtask/controller"
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        path.write_text("0123456789abcdef\n")
    return path.read_text().strip()


def stray(operator: Operator, controller: str, expires: float) -> Instance:
    """A machine whose session is nowhere; ``expires`` is in seconds from now."""
    tags = Tags(session="77-0123456789ab", controller=controller, token=f"o{os.urandom(8).hex()}", expires=int(time.time() + expires))
    [instance] = operator.provider.launch(Order(count=1, tags=tags)).instances
    return instance


def leaked(operator: Operator, *options: str) -> int:
    """Destroy what is leaked; the exit status."""
    return operator.command("destroy", "--leaked", "--provider=fake", "--fake-kind=local", *options)


def test_by_the_expiry_where_the_session_is_not_here(operator: Operator) -> None:
    ours = controller_of(operator)
    spared = [stray(operator, ours, 60), stray(operator, "f" * 16, 60), stray(operator, "f" * 16, -HOUR / 2)]
    gone = [stray(operator, ours, -60), stray(operator, "f" * 16, -2 * HOUR)]
    assert leaked(operator, "--dry-run") == 0
    said = operator.said()
    assert all(f"leaked: {each.id} (fake here local" in said for each in gone)
    assert all(f"spared: {each.id} (fake here local" in said for each in spared)
    assert "# 2 leaked, 3 spared; " in said and len(operator.machine_ids()) == 5

    assert leaked(operator) == 0, operator.said()
    assert all(f"destroyed worker {each.id}" in operator.said() for each in gone)
    assert operator.machine_ids() == sorted(each.id for each in spared)


def test_a_living_session_keeps_its_machines(operator: Operator) -> None:
    run = operator.start(*FAKE, "--split=2", "--fake-price=2", "sleep 60; echo", jobs=b"1\n2\n")
    wait_until(lambda: len(operator.machine_ids()) == 2, "machines are there")
    assert leaked(operator) == 0, operator.said()
    said = operator.said()
    assert "# 0 leaked, 2 spared" in said and "session 1 is living: pid" in said and "$2 an hour" in said
    assert operator.run("--version") == 0  # another run's number
    run.send_signal(signal.SIGINT)
    assert operator.finish(run) == 130


def test_a_dead_session_keeps_them_for_a_resume_and_no_longer(operator: Operator) -> None:
    """What it has finished meanwhile is fetched before they go."""
    run = operator.start(*FAKE, "--resume-grace=4s", operator.recording("sleep 0.5;"), jobs=b"1\n")
    wait_until(lambda: operator.begun().total() == 1 and operator.watchdogs(), "the job runs")
    for pid in [*operator.watchdogs(), run.pid]:
        os.kill(pid, signal.SIGKILL)
    run.wait()
    assert leaked(operator) == 0 and "it can be resumed for" in operator.said() and operator.machine_ids()

    def over() -> bool:
        assert leaked(operator) == 0
        return not operator.machines()

    wait_until(over, "the grace is over")
    assert "session 1 is over" in operator.said()
    events = [next(iter(record)) for record in operator.journal()]
    assert "ended" in events and events.index("ended") < events.index("destroying") < events.index("destroyed")
    assert operator.run("--resume=last") == 0, operator.said()
    assert operator.ended().total() == 1


def test_kept_machines_are_spared_until_their_time(operator: Operator) -> None:
    assert operator.command("launch", *LOCAL, "--keep-for=3s", "2", str(operator.file)) == 0
    assert leaked(operator) == 0 and "launch 1 kept it until" in operator.said()
    assert len(operator.machine_ids()) == 2

    def over() -> bool:
        assert leaked(operator) == 0
        return not operator.machines()

    wait_until(over, "their time is over")
    assert {"destroying", "destroyed"} <= set(operator.events())
    assert operator.command("destroy", str(operator.file)) == 0, "they are gone already"


def test_kept_machines_are_spared_as_long_as_they_are_used(operator: Operator) -> None:
    assert operator.command("launch", *LOCAL, "--keep-for=1s", "1", str(operator.file)) == 0
    run = operator.start(f"--workers={operator.file}", operator.recording("sleep 60;"), jobs=b"1\n")
    wait_until(lambda: operator.begun().total() == 1, "it is used")
    until = next(record["until"] for record in operator.launch_journal() if "kept" in record)
    wait_until(lambda: time.time() > until, "its time is over")
    assert leaked(operator) == 0 and "it is a worker of session 1" in operator.said()
    assert operator.machine_ids()
    run.send_signal(signal.SIGINT)
    assert operator.finish(run) == 130
    assert leaked(operator, "--sessions=" + str(operator.sessions)) == 0 and not operator.machines(), operator.said()


def test_providers_are_those_of_the_sessions_here(operator: Operator) -> None:
    """Each with the settings that its session had."""
    elsewhere = operator.directory / "elsewhere"
    assert operator.command("launch", *LOCAL, f"--fake-state={elsewhere}", "--keep-for=1s", "1", str(operator.file)) == 0
    until = next(record["until"] for record in operator.launch_journal() if "kept" in record)
    wait_until(lambda: time.time() > until, "its time is over")
    assert operator.command("destroy", "--leaked") == 0, operator.said()
    assert f"destroyed worker {operator.listed_ids()[0]}" in operator.said()


def test_without_any_provider_there_is_nothing_to_ask(operator: Operator) -> None:
    assert operator.command("destroy", "--leaked") == 2
    assert "name one with --provider" in operator.said()


def test_a_provider_that_cannot_be_asked_is_said(operator: Operator) -> None:
    assert leaked(operator, "--fake-faults=api-500=100%") == 1
    assert "warning: fake: " in operator.said()


def test_what_cannot_be_destroyed_is_said(operator: Operator) -> None:
    stray(operator, controller_of(operator), -60)
    assert leaked(operator, "--fake-faults=slow-destroy=60s", "--wait=1s") == 1
    assert "warning: can't destroy f-" in operator.said()


# --- the watchdog over all -------------------------------------------------------------------------------------------


def test_the_watchdog_adopts_what_is_leaked(operator: Operator) -> None:
    assert operator.command("launch", *LOCAL, "--keep-for=1h", "1", str(operator.file)) == 0
    kept = operator.machine_ids()
    lost = stray(operator, controller_of(operator), -60)
    assert operator.command("watchdog", "--all") == 0 and lost.id in operator.machine_ids(), "only when it is told to"
    assert operator.command("watchdog", "--all", "--adopt") == 0, operator.said()
    assert f"leaked: {lost.id}" in operator.said() and operator.machine_ids() == kept


def test_a_launch_whose_folder_is_lost(operator: Operator) -> None:
    """Its machines are told by their tags; another launch here says where to look."""
    assert operator.command("launch", *LOCAL, "1", str(operator.file)) == 0
    assert operator.command("launch", *LOCAL, "--keep-for=1s", "1", "-") == 0
    wait_until(lambda: not operator.watchdogs(), "the watchdogs have ended")
    shutil.rmtree(operator.launches / "1")
    assert operator.command("watchdog", "--all", "--adopt") == 0, operator.said()
    assert operator.listed_ids()[0] in operator.machine_ids(), "its tags have not expired"


def test_adopt_goes_with_all(operator: Operator) -> None:
    assert operator.command("watchdog", "--adopt", "1") == 2
    assert "--adopt goes with --all" in operator.said()


# --- the question ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("answer", "options", "status", "left"), [("no", (), 2, 1), ("yes", (), 0, 0), (None, ("--force",), 0, 0)])
def test_the_question_on_a_terminal(operator: Operator, answer: str | None, options: tuple[str, ...], status: int, left: int) -> None:
    stray(operator, controller_of(operator), -60)
    primary, secondary = pty.openpty()
    command = [sys.executable, "-m", "cloudtask.cli.destroy_workers", "--leaked", *FAKE, *options]
    process = subprocess.Popen(
        command, stdin=secondary, stdout=secondary, stderr=secondary, env=operator.environment(), preexec_fn=_own_terminal(secondary)
    )
    os.close(secondary)
    said = b""
    while True:
        if select.select([primary], [], [], 20)[0]:
            try:
                said += os.read(primary, 4096)
            except OSError:
                break
        if answer and b"[yes/no]" in said:
            os.write(primary, f"{answer}\n".encode())
            answer = None
    assert process.wait(20) == status, said
    assert len(operator.machine_ids()) == left
    os.close(primary)


def _own_terminal(descriptor: int) -> Callable[[], None]:
    """The terminal that the process asks at is this one."""
    import fcntl
    import termios

    def take() -> None:
        os.setsid()
        fcntl.ioctl(descriptor, termios.TIOCSCTTY, 0)

    return take
