"""Whole runs on machines of the ``fake`` provider: launched, used, destroyed, whatever goes wrong; counted in the provider's own list."""

from __future__ import annotations

import os
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from cloudtask.providers import Instance
from cloudtask.providers.fake import FakeProvider
from cloudtask.settings import Settings
from tests.running.program import Controller, alive, command_line, processes_with, wait_until
from tests.sshd import ClientKeys

FAKE = ("--provider=fake", "--fake-kind=local", "--slots=1")
NAMES = [str(number) for number in range(1, 7)]
JOBS = b"".join(name.encode() + b"\n" for name in NAMES)
EXACTLY_ONCE = Counter(NAMES)


def machines(controller: Controller) -> list[Instance]:
    """What the provider lists."""
    extra = {"fake_kind": "local", "fake_state": str(controller.home / ".local/state/cloudtask/fake")}
    return FakeProvider(Settings(extra=extra)).find()


def watchdogs(controller: Controller) -> list[int]:
    """The watchdogs of this controller's sessions."""
    return [pid for pid in processes_with(f"HOME={controller.home}") if "cli.watchdog" in command_line(pid) and alive(pid)]


def events(controller: Controller, event: str) -> list[dict[str, Any]]:
    """The journal's records of one event."""
    return [record for record in controller.journal() if next(iter(record)) == event]


def all_gone(controller: Controller) -> bool:
    """Nothing exists at the provider, and nobody watches any more."""
    return not machines(controller) and not watchdogs(controller)


def test_machines_are_launched_used_and_destroyed(controller: Controller) -> None:
    assert controller.run("--provider=fake", "--split=2", controller.recording(), jobs=JOBS) == 0, controller.said()
    assert controller.begun() == controller.ended() == EXACTLY_ONCE
    said = controller.said()
    assert "# booting instance f-" in said and "launched worker f-" in said and said.count("destroyed worker f-") == 2
    assert "# machines: created 2, confirmed gone 2, " in said.splitlines()[-1]
    assert "host key" not in said, "it is verified, so there is nothing to say of it"
    wait_until(lambda: all_gone(controller), "all is gone")


def test_a_host_key_is_read_from_the_console(controller: Controller) -> None:
    assert controller.run("--provider=fake", "--fake-host-key=console", "echo", jobs=JOBS) == 0, controller.said()
    assert events(controller, "worker")[0]["host_key"].startswith("ssh-ed25519 ")
    assert "taken on trust" not in controller.said()


def test_a_host_key_that_nobody_tells_is_pinned_and_said_to_be_unverified(controller: Controller) -> None:
    assert controller.run("--provider=fake", "--fake-host-key=none", "echo", jobs=JOBS) == 0, controller.said()
    assert "host_key" not in events(controller, "worker")[0]
    assert "taken on trust" in (controller.session() / "log").read_text()
    pinned = (controller.home / ".config/cloudtask/known_hosts").read_text()
    assert pinned.startswith("cloudtask-f-")


def test_order_of_writing(controller: Controller) -> None:
    """Order, ids, ready, destroying, destroyed: each in the journal, and each machine through all of it."""
    assert controller.run(*FAKE, "--split=2", "echo", jobs=JOBS) == 0
    journal = [next(iter(record)) for record in controller.journal()]
    firsts = [journal.index(event) for event in ("order", "launched", "worker", "ready", "destroying", "destroyed")]
    assert firsts == sorted(firsts)
    ids = {id for record in events(controller, "launched") for id in record["instances"]}
    for event in ("destroying", "destroyed"):
        assert {id for record in events(controller, event) for id in record[event]} == ids


def test_only_what_is_missing_is_launched(controller: Controller) -> None:
    options = ("--workers=1/local", "--split=3", "--overlay=")
    assert controller.run(*FAKE, *options, controller.recording("sleep 0.5;"), jobs=JOBS) == 0, controller.said()
    assert [record["count"] for record in events(controller, "order")] == [2]
    assert "using existing worker" in controller.said()


def test_no_more_machines_than_jobs(controller: Controller) -> None:
    assert controller.run(*FAKE, "--split=9", "echo", jobs=b"1\n2\n") == 0
    assert [record["count"] for record in events(controller, "order")] == [2]


def test_what_is_not_ready_in_time_is_replaced(controller: Controller) -> None:
    options = ("--split=1", "--fake-faults=never-boots=1", "--boot-timeout=2s")
    assert controller.run("--provider=fake", *options, "echo", jobs=JOBS) == 0, controller.said()
    assert "not ready within" in controller.said()
    assert "created 2, confirmed gone 2" in controller.said()


def test_three_that_are_never_ready_stop_launching(controller: Controller) -> None:
    options = ("--split=1", "--fake-faults=never-boots=100%", "--boot-timeout=1s")
    assert controller.run("--provider=fake", *options, "echo", jobs=JOBS) == 3, controller.said()
    assert "launching no more machines: 3 machines in a row were never ready: not ready within" in controller.said()
    assert "created 3, confirmed gone 3" in controller.said()
    wait_until(lambda: all_gone(controller), "all is gone")


def test_a_machine_that_dies_is_replaced_and_its_jobs_run_again(controller: Controller) -> None:
    options = ("--split=1", "--fake-faults=boots-then-dies=1@1s")
    assert controller.run(*FAKE, *options, controller.recording("sleep 0.4;"), jobs=JOBS) == 0, controller.said()
    assert controller.ended() == EXACTLY_ONCE
    assert "its machine is gone" in controller.said() and "created 2, confirmed gone 2" in controller.said()


def test_replacements_can_be_limited(controller: Controller) -> None:
    options = ("--split=1", "--replace=0", "--fake-faults=boots-then-dies=1@1s")
    assert controller.run(*FAKE, *options, "sleep 0.4; echo", jobs=JOBS) == 3, controller.said()
    assert "created 1, confirmed gone 1" in controller.said()
    assert "no usable worker is left" in controller.said()


def test_a_reclaimed_machine_burns_no_retry_and_is_no_poison(controller: Controller) -> None:
    """Each of four machines is taken back under the same job: it would be poison if it were the job's doing."""
    options = ("--split=1", "--fake-faults=reclaim=2@0.3s,reclaim-notice=0.3s", "--retries=0")
    assert controller.run(*FAKE, *options, controller.recording("sleep 1;"), jobs=b"1\n") == 0, controller.said()
    lost = events(controller, "lost")
    assert len(lost) == 2 and all(record["uncounted"] for record in lost)
    assert controller.begun()["1"] == 3 and controller.ended()["1"] == 1


def test_fewer_than_min_split_is_none(controller: Controller) -> None:
    options = ("--split=3", "--min-split=2", "--fake-capacity=1")
    assert controller.run(*FAKE, *options, controller.recording(), jobs=JOBS) == 3, controller.said()
    assert "--min-split=2 cannot be reached: 1 worker" in controller.said()
    assert not controller.begun()
    wait_until(lambda: all_gone(controller), "all is gone")


def test_min_split_asks_for_no_more_than_there_are_jobs(controller: Controller) -> None:
    assert controller.run(*FAKE, "--split=3", "--min-split=2", "echo", jobs=b"1\n", seconds=20) == 0, controller.said()
    assert "created 1, confirmed gone 1" in controller.said()


def test_fewer_than_the_split_go_on_without_min_split(controller: Controller) -> None:
    assert controller.run(*FAKE, "--split=3", "--fake-capacity=2", "echo", jobs=JOBS) == 0, controller.said()
    assert "# failed to launch 1 of 3 instances" in controller.said()
    assert "created 2, confirmed gone 2" in controller.said()


def test_a_provider_that_refuses_ends_the_run_with_its_words(controller: Controller) -> None:
    assert controller.run(*FAKE, "--fake-faults=refuse=QuotaExceeded", "echo", jobs=JOBS) == 3
    assert "# failed to launch instance: fake: QuotaExceeded" in controller.said()
    assert "created 0, confirmed gone 0" in controller.said()


def test_an_answer_that_is_lost_makes_no_machine_twice(controller: Controller) -> None:
    assert controller.run(*FAKE, "--split=2", "--fake-faults=lost-answer=1", "echo", jobs=JOBS) == 0, controller.said()
    assert "created 2, confirmed gone 2" in controller.said()
    wait_until(lambda: all_gone(controller), "all is gone")


def test_a_destruction_that_is_ignored_is_asked_for_again(controller: Controller) -> None:
    faults = "--fake-faults=destroy-ignored=1"
    assert controller.run(*FAKE, faults, "echo", jobs=JOBS, seconds=60) == 0, controller.said()
    assert "confirmed gone 1" in controller.said()
    wait_until(lambda: all_gone(controller), "all is gone")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_machines_boot_leaves_nothing(controller: Controller, number: signal.Signals) -> None:
    run = controller.start("--provider=fake", "--split=2", "--fake-faults=slow-boot=30s", "echo", jobs=JOBS)
    wait_until(lambda: len(machines(controller)) == 2, "the machines boot")
    run.send_signal(number)
    assert controller.finish(run) == 128 + number, controller.said()
    assert "created 2, confirmed gone 2" in controller.said()
    wait_until(lambda: all_gone(controller), "all is gone")


def test_a_signal_before_the_answer_leaves_nothing(controller: Controller) -> None:
    run = controller.start(*FAKE, "--split=2", "--fake-faults=slow-api=1s", "echo", jobs=JOBS)
    wait_until(lambda: events(controller, "order"), "the order is given")
    run.send_signal(signal.SIGINT)
    assert controller.finish(run) == 130, controller.said()
    wait_until(lambda: all_gone(controller), "all is gone")


def test_nothing_is_ordered_again_after_a_signal(controller: Controller) -> None:
    """The answer never comes: the provider's list is looked at once, and the rest is the watchdog's."""
    faults = "--fake-faults=throttle=100%,slow-api=0.5s"
    run = controller.start(*FAKE, "--split=2", faults, "echo", jobs=JOBS)
    wait_until(lambda: "no answer to an order" in controller.said(), "the order was given in vain")
    run.send_signal(signal.SIGINT)
    assert controller.finish(run, seconds=10) == 130, controller.said()
    assert controller.said().count("no answer to an order") <= 2
    assert "created 0, confirmed gone 0, unconfirmed 1" in controller.said()


def test_an_answer_that_is_lost_with_the_run_leaves_nothing(controller: Controller) -> None:
    run = controller.start(*FAKE, "--split=2", "--fake-faults=lost-answer=1,slow-api=1s", "echo", jobs=JOBS)
    wait_until(lambda: events(controller, "order"), "the order is given")
    run.send_signal(signal.SIGINT)
    assert controller.finish(run) == 130, controller.said()
    assert "created 2, confirmed gone 2" in controller.said() and "unconfirmed" not in controller.said()
    wait_until(lambda: all_gone(controller), "all is gone")


def test_a_second_signal_leaves_the_rest_to_the_watchdog(controller: Controller) -> None:
    run = controller.start(*FAKE, "--split=2", "--resume-grace=0", "--fake-faults=slow-destroy=2s", "sleep 30; echo", jobs=JOBS)
    wait_until(lambda: events(controller, "started"), "jobs run")
    run.send_signal(signal.SIGINT)
    wait_until(lambda: events(controller, "destroying"), "the machines are being destroyed")
    run.send_signal(signal.SIGINT)
    assert controller.finish(run) == 130
    assert "unconfirmed 2" in controller.said() and "the watchdog goes on until they are gone: f-" in controller.said()
    wait_until(lambda: all_gone(controller), "the watchdog destroyed them")
    assert {id for record in events(controller, "destroyed") for id in record["destroyed"]}


def test_a_resume_does_not_wait_for_machines_that_an_earlier_run_gave_up(controller: Controller) -> None:
    """Two signals at once: the journal says that the machines are to be destroyed, and that jobs may run there."""
    run = controller.start(*FAKE, "--split=2", "sleep 4; echo", jobs=b"1\n2\n")
    wait_until(lambda: len(events(controller, "started")) >= 2, "two jobs run")
    for pid in watchdogs(controller):
        os.kill(pid, signal.SIGKILL)
    for number in (signal.SIGSTOP, signal.SIGINT, signal.SIGTERM, signal.SIGCONT):
        run.send_signal(number)
    assert controller.finish(run) in (130, 143)
    assert "unconfirmed 2" in controller.said()
    assert controller.run("--resume=last", seconds=30) == 0, controller.said()
    assert all(record["uncounted"] for record in events(controller, "lost"))
    assert "created 4, confirmed gone 4" in controller.said()


def test_kill_9_while_running_and_the_watchdog_destroys(controller: Controller) -> None:
    """Results that were finished meanwhile are fetched first; a resume runs the rest on new machines."""
    run = controller.start(*FAKE, "--split=2", "--resume-grace=2s", controller.recording("sleep 1;"), jobs=JOBS)
    wait_until(lambda: len(events(controller, "started")) >= 2, "two jobs run")
    run.kill()
    run.wait()
    wait_until(lambda: all_gone(controller), "the watchdog destroyed them")
    log = (controller.session() / "log").read_text()
    assert "# watchdog: destroying zombie instances: f-" in log and "# watchdog: destroyed zombie instances: f-" in log
    assert len(controller.ended()) == 2
    assert controller.run("--resume=last") == 0, controller.said()
    assert controller.begun() == controller.ended() == EXACTLY_ONCE
    assert "created 4, confirmed gone 4" in controller.said()
    wait_until(lambda: all_gone(controller), "all is gone")


def test_a_resume_within_the_grace_takes_up_the_machines(controller: Controller) -> None:
    run = controller.start(*FAKE, "--split=2", controller.recording("sleep 1;"), jobs=JOBS)
    wait_until(lambda: len(events(controller, "started")) >= 2, "two jobs run")
    run.kill()
    run.wait()
    assert controller.run("--resume=last") == 0, controller.said()
    assert controller.begun() == controller.ended() == EXACTLY_ONCE
    assert len(events(controller, "order")) == 1
    assert "created 2, confirmed gone 2" in controller.said()
    wait_until(lambda: all_gone(controller), "all is gone")


def test_a_resume_finds_machines_whose_jobs_have_ended(controller: Controller) -> None:
    """They take jobs again at once, though their timer is looked after first."""
    run = controller.start(*FAKE, "--split=1", controller.recording("sleep 0.5;"), jobs=JOBS)
    wait_until(lambda: events(controller, "started"), "a job runs")
    run.kill()
    run.wait()
    wait_until(lambda: controller.ended(), "it has ended")
    assert controller.run("--resume=last", seconds=20) == 0, controller.said()
    assert controller.begun() == controller.ended() == EXACTLY_ONCE


def test_a_resume_elsewhere_is_refused_while_machines_are_left(controller: Controller) -> None:
    """They would be looked for in the wrong place, by the watchdog too."""
    run = controller.start(*FAKE, "--split=2", "sleep 1; echo", jobs=JOBS)
    wait_until(lambda: events(controller, "started"), "a job runs")
    run.kill()
    run.wait()
    assert controller.run("--resume=last", "--provider=hub", "--hub-apikey=KEY") == 2
    assert "still has machines, or an open order, at fake here, and this is hub us-east-1" in controller.said()
    assert controller.run("--resume=last") == 0, controller.said()


def test_kill_9_while_machines_boot(controller: Controller) -> None:
    run = controller.start(*FAKE, "--split=2", "--resume-grace=0", "--fake-faults=slow-boot=20s", "echo", jobs=JOBS)
    wait_until(lambda: events(controller, "launched"), "the machines are launched")
    run.kill()
    run.wait()
    wait_until(lambda: all_gone(controller), "the watchdog destroyed them")


def test_a_watchdog_that_was_killed_too_is_made_up_for_by_all(controller: Controller) -> None:
    run = controller.start(*FAKE, "--split=2", "--fake-faults=slow-boot=20s", "echo", jobs=JOBS)
    wait_until(lambda: events(controller, "launched") and watchdogs(controller), "the machines are launched")
    for pid in [*watchdogs(controller), run.pid]:
        os.kill(pid, signal.SIGKILL)
    run.wait()
    watchdog = ("-m", "cloudtask.cli.watchdog", "--all", f"--sessions={controller.sessions}")
    assert controller.call(*watchdog) == 0 and machines(controller), "the grace for a resume is not over"
    assert controller.call(*watchdog, "--resume-grace=0") == 0
    assert all_gone(controller)


def test_a_frozen_run_is_ended(controller: Controller) -> None:
    run = controller.start(*FAKE, "--split=1", "--resume-grace=0", "sleep 60; echo", jobs=JOBS)
    wait_until(lambda: events(controller, "started") and watchdogs(controller), "a job runs")
    for pid in watchdogs(controller):
        os.kill(pid, signal.SIGKILL)
    run.send_signal(signal.SIGSTOP)
    watchdog = ("-m", "cloudtask.cli.watchdog", "--frozen=4s", str(controller.session()))
    assert controller.call(*watchdog) == 0
    assert "is stopped (Ctrl-Z?)" in (controller.session() / "log").read_text()
    assert "the controller has been frozen" in (controller.session() / "log").read_text()
    assert controller.finish(run) in (143, -signal.SIGKILL)
    assert all_gone(controller)


def test_a_long_silent_job_is_not_frozen(controller: Controller) -> None:
    run = controller.start(*FAKE, "--timeout=0", "sleep 8; echo", jobs=b"1\n")
    wait_until(lambda: events(controller, "started") and watchdogs(controller), "a job runs")
    for pid in watchdogs(controller):
        os.kill(pid, signal.SIGKILL)
    # It beats every five seconds.
    assert controller.call("-m", "cloudtask.cli.watchdog", "--frozen=6s", str(controller.session())) == 0
    assert controller.finish(run) == 0, controller.said()


def test_the_budget_ends_a_run(controller: Controller) -> None:
    """$3,600 an hour is a dollar a second."""
    options = ("--split=1", "--fake-price=3600", "--max-cost=3")
    assert controller.run(*FAKE, *options, "sleep 0.5; echo", jobs=b"2\n" * 40) == 3, controller.said()
    assert "--max-cost is reached ($3." in controller.said()
    assert "resume with" in controller.said()
    wait_until(lambda: all_gone(controller), "all is gone")


def test_a_drained_run_does_not_go_on_booting_machines(controller: Controller) -> None:
    options = ("--workers=1/local", "--split=2", "--fake-faults=slow-boot=60s")
    run = controller.start(*FAKE, *options, controller.recording("sleep 8;"), jobs=b"1\n2\n3\n")
    wait_until(lambda: events(controller, "started") and events(controller, "launched"), "a job runs, and a machine boots")
    run.send_signal(signal.SIGUSR1)
    wait_until(lambda: not machines(controller), "the machine is destroyed")
    assert not controller.ended(), "at once, and not with the last job"
    assert controller.finish(run) == 3 and controller.ended() == {"1": 1}


def test_the_hourly_limit_makes_the_split_smaller(controller: Controller) -> None:
    options = ("--split=5", "--fake-price=0.5", "--max-hourly=1.2")
    assert controller.run(*FAKE, *options, "echo", jobs=JOBS) == 0, controller.said()
    assert "created 2, confirmed gone 2" in controller.said()


def test_a_machine_that_drains_counts_for_max_workers(controller: Controller) -> None:
    """It takes no more jobs and is to be replaced; while its last job runs it is there, and costs."""
    code = "if [ {} = long ]; then sleep 5; else sleep 0.2; exit 1; fi"
    options = ("--provider=fake", "--fake-kind=local", "--slots=2", "--split=1", "--max-workers=1", "--strikes=2")
    run = controller.start(*options, code, jobs=b"long\na\nb\nc\n")
    most = 0

    def is_over() -> bool:
        nonlocal most
        most = max(most, len(machines(controller)))
        return run.poll() is not None

    wait_until(is_over, "the run ends")
    assert run.returncode == 1 and "terminating worker after 2 strikes" in controller.said()
    assert most == 1 and "created 2, confirmed gone 2" in controller.said()


def test_kept_machines_serve_the_next_session(controller: Controller, tmp_path: Path) -> None:
    file = tmp_path / "machines"
    assert controller.run(*FAKE, "--split=2", f"--keep={file}", "echo", jobs=JOBS) == 0, controller.said()
    assert "created 2, confirmed gone 0, kept 2" in controller.said()
    wait_until(lambda: not watchdogs(controller), "the watchdog has nothing to do")
    assert len(machines(controller)) == 2
    assert len(file.read_text().splitlines()) == 2 and "#: provider=fake" in file.read_text()
    assert controller.run(f"--workers={file}", controller.recording(), jobs=JOBS) == 0, controller.said()
    assert controller.ended() == EXACTLY_ONCE and len(machines(controller)) == 2


def test_kept_machines_let_their_user_in(controller: Controller, client_keys: ClientKeys) -> None:
    """By ssh: the session's key is gone when the session is."""
    file = controller.directory / "machines"
    config = f"--ssh-config={client_keys.config}"
    assert controller.run("--provider=fake", config, f"--keep={file}", "echo", jobs=JOBS) == 0, controller.said()
    assert controller.run(f"--workers={file}", config, controller.recording(), jobs=JOBS) == 0, controller.said()
    assert controller.ended() == EXACTLY_ONCE
