"""How other launchers were reported to leak machines: each report is a test, here or where it is named.

======================================================================  ==========================================================
report                                                                  test
======================================================================  ==========================================================
skypilot#4431: polled before it was visible, the record was deleted     `test_a_machine_that_is_not_visible_yet_is_not_gone`
skypilot#4410: cancelled during recovery                                `test_a_signal_while_a_replacement_boots_leaves_nothing`
skypilot#4605: teardown reported done with invalid credentials          `test_what_cannot_be_destroyed_is_said_to_be_unconfirmed`
skypilot#4392: creation that takes too long                             test_launched: ``never_ready``, ``not_ready_in_time``
skypilot#632, #1496: changed by hand at the console                     test_launched: ``a_machine_that_dies``; test_docker_life
dstack#1551: marked terminated while billed                             test_launched: ``a_destruction_that_is_ignored``
dstack#2068: Ctrl-C during provisioning                                 test_launched: ``a_signal_before_the_answer``
dstack#3449: added to a fleet that is being deleted                     test_launched: ``an_answer_that_is_lost_with_the_run``
dstack#890: the machine of a running job ended as idle                  test_timer, in the providers' tests
dstack#3106: idle time ignored                                          test_hosts, in the providers' tests
nextflow#7445: submissions go on after an abort                         test_launched: ``nothing_is_ordered_again_after_a_signal``
nextflow#3847, #2169: machines outlive the kill of the controller       test_launched: ``kill_9``; test_leaks
======================================================================  ==========================================================
"""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from tests.running.program import Controller, wait_until
from tests.running.test_launched import FAKE, JOBS, all_gone, events, machines
from tests.stage.ec2_server import ACCESS_KEY, Ec2Server, staged_ec2


def test_a_machine_that_is_not_visible_yet_is_not_gone(controller: Controller) -> None:
    assert controller.run(*FAKE, "--split=2", "--fake-settles=1.5s", "echo", jobs=JOBS) == 0, controller.said()
    assert "created 2, confirmed gone 2" in controller.said(), "none was given up and replaced"
    wait_until(lambda: all_gone(controller), "all is gone")


def test_a_signal_while_a_replacement_boots_leaves_nothing(controller: Controller) -> None:
    faults = "--fake-faults=boots-then-dies=1@1s,slow-boot=1s"
    run = controller.start("--provider=fake", "--fake-kind=local", "--slots=1", "--split=1", faults, "sleep 30; echo", jobs=JOBS)
    wait_until(lambda: len(events(controller, "launched")) == 2, "a replacement is launched")
    run.send_signal(signal.SIGINT)
    assert controller.finish(run) == 130, controller.said()
    assert "created 2, confirmed gone 2" in controller.said()
    wait_until(lambda: not machines(controller), "nothing is there")


@pytest.fixture
def ec2(controller: Controller, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ec2Server]:
    """An EC2 whose machines see the controller's directory."""
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    with staged_ec2(controller.directory) as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        yield server
        controller.stop_all()


@pytest.mark.slow
def test_what_cannot_be_destroyed_is_said_to_be_unconfirmed(controller: Controller, ec2: Ec2Server) -> None:
    """The credentials are revoked in the middle.  When they are valid again, the watchdog destroys what was left."""
    run = controller.start("--provider=ec2", "--slots=1", "--resume-grace=0", "sleep 60; echo", jobs=b"1\n")
    wait_until(lambda: events(controller, "started"), "the job runs")
    ec2.refused_keys.add(ACCESS_KEY)
    run.send_signal(signal.SIGINT)
    wait_until(lambda: "failed to destroy worker" in controller.said(), "it says so")
    run.send_signal(signal.SIGINT)
    assert controller.finish(run) == 130
    assert "created 1, confirmed gone 0, unconfirmed 1" in controller.said() and "the watchdog goes on" in controller.said()
    assert ec2.alive()
    ec2.refused_keys.clear()
    wait_until(lambda: not ec2.alive(), "the watchdog destroyed it")
