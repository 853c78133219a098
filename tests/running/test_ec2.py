"""Whole runs with ``--provider=ec2``: moto over HTTP, boto3, and behind each instance a machine with an address and an sshd of its own."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import Any

import pytest

from tests.running.program import Controller, alive, command_line, processes_with, wait_until
from tests.stage.ec2_server import ATTEMPTS_OF_BOTO, Ec2Server, staged_ec2

JOBS = b"".join(b"%d\n" % number for number in range(1, 7))
EC2 = ("--provider=ec2", "--slots=1")
SECONDS = 60.0


@pytest.fixture
def ec2(controller: Controller, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ec2Server]:
    """An EC2 whose machines see the controller's directory, where their jobs leave word."""
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    with staged_ec2(controller.directory) as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        yield server
        controller.stop_all()


def events(controller: Controller, event: str) -> list[dict[str, Any]]:
    """The journal's records of one event."""
    return [record for record in controller.journal() if next(iter(record)) == event]


def all_gone(controller: Controller, ec2: Ec2Server) -> bool:
    """Nothing exists at EC2 or on the stage, no disk either, and nobody watches any more."""
    watched = [pid for pid in processes_with(f"HOME={controller.home}") if "cli.watchdog" in command_line(pid) and alive(pid)]
    assert ec2.stage
    return not ec2.alive() and not ec2.volumes() and not ec2.stage.machines and not watched


@pytest.mark.slow
def test_machines_are_launched_used_and_destroyed(controller: Controller, ec2: Ec2Server) -> None:
    assert controller.run(*EC2, "--split=2", controller.recording("hostname;"), jobs=JOBS, seconds=SECONDS) == 0, controller.said()
    assert sorted(controller.ended().elements()) == sorted(controller.begun().elements()) == list("123456")
    said = controller.said()
    assert "created 2, confirmed gone 2" in said and "$" in said.splitlines()[-1]
    assert "host key" not in said, "it is verified, so there is nothing to say of it"
    assert set(controller.out().read_text().split()) <= {each.id for each in ec2.instances()}
    wait_until(lambda: all_gone(controller, ec2), "all is gone")


@pytest.mark.slow
def test_ctrl_c_while_they_boot_leaves_nothing(controller: Controller, ec2: Ec2Server) -> None:
    ec2.boot_seconds = 60.0
    run = controller.start(*EC2, "--split=3", "echo", jobs=JOBS)
    wait_until(lambda: len(ec2.alive()) == 3, "three machines boot")
    run.send_signal(signal.SIGINT)
    assert controller.finish(run, SECONDS) == 130, controller.said()
    assert "created 3, confirmed gone 3" in controller.said()
    wait_until(lambda: all_gone(controller, ec2), "all is gone")


@pytest.mark.slow
def test_kill_9_and_the_watchdog(controller: Controller, ec2: Ec2Server) -> None:
    run = controller.start(*EC2, "--split=2", "--resume-grace=0", controller.recording("sleep 1;"), jobs=JOBS)
    wait_until(lambda: len(events(controller, "started")) >= 2, "two jobs run", SECONDS)
    run.kill()
    run.wait()
    wait_until(lambda: all_gone(controller, ec2), "the watchdog destroyed them", SECONDS)
    assert controller.run("--resume=last", seconds=SECONDS) == 0, controller.said()
    assert sorted(controller.ended().elements()) == list("123456")
    wait_until(lambda: all_gone(controller, ec2), "all is gone")


@pytest.mark.slow
def test_an_order_whose_answer_is_lost_is_made_once(controller: Controller, ec2: Ec2Server) -> None:
    ec2.lose("RunInstances", times=ATTEMPTS_OF_BOTO)
    assert controller.run(*EC2, "--split=2", "echo", jobs=JOBS, seconds=SECONDS) == 0, controller.said()
    assert "created 2, confirmed gone 2" in controller.said()
    assert len(ec2.instances()) == 2
    wait_until(lambda: all_gone(controller, ec2), "all is gone")


@pytest.mark.slow
def test_a_spot_machine_that_is_taken_back_burns_no_retry(controller: Controller, ec2: Ec2Server) -> None:
    options = ("--ec2-spot=0.01", "--split=2", "--retries=0", "--lost-timeout=5s", "--heartbeat=1s")
    run = controller.start(*EC2, *options, controller.recording("sleep 1;"), jobs=JOBS)
    wait_until(lambda: len(events(controller, "started")) >= 2, "two jobs run", SECONDS)
    ec2.take_back(ec2.alive()[0])
    assert controller.finish(run, SECONDS) == 0, controller.said()
    assert set(controller.ended()) == set("123456")
    assert "its machine is gone: Server.SpotInstanceTermination" in controller.said()
    assert "6 OK" in controller.summary()
    wait_until(lambda: all_gone(controller, ec2), "all is gone")
