"""``cloudtask-launch-workers`` and ``cloudtask-destroy-workers``, as processes, on machines of the ``fake`` provider, which counts them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.running.operator import LOCAL, Operator
from tests.running.program import wait_until
from tests.sshd import keygen, sshd_program

JOBS = b"a\nb\nc\n"


@pytest.fixture
def ssh_options(operator: Operator) -> list[str]:
    """The options that make the user log in with a key of the test's own, and with nothing of the tester's."""
    sshd_program()
    config = operator.directory / "ssh_config"
    config.write_text("IdentityAgent none\n")
    return [f"--ssh-identity={keygen(operator.directory / 'key')}", f"--ssh-config={config}"]


def launched(operator: Operator, count: int = 2, *options: str) -> list[str]:
    """Machines in the file; their ids."""
    assert operator.command("launch", *LOCAL, *options, str(count), str(operator.file)) == 0, operator.said()
    return operator.listed_ids()


@pytest.mark.parametrize("command", ["launch", "destroy", "watchdog"])
def test_help_and_version(operator: Operator, command: str) -> None:
    assert operator.command(command, "--help") == 0 and not operator.said()
    assert "--version" in operator.out().read_text() and max(map(len, operator.out().read_text().splitlines())) <= 80
    assert operator.command(command, "--version") == 0
    assert operator.out().read_text().split()[0].startswith("cloudtask-")


# --- launching -------------------------------------------------------------------------------------------------------


def test_machines_are_listed_used_and_destroyed(operator: Operator) -> None:
    ids = launched(operator, 3)
    assert len(ids) == 3 and ids == operator.machine_ids()
    assert all(line.facts["provider"] == "fake" and line.facts["session"].startswith("1-") for line in operator.listed())
    said = operator.said()
    assert "# launching 3 machines: fake here local" in said and said.count("# booting instance f-") == 3
    assert "# machines: created 3, confirmed gone 0, kept 3, " in said.splitlines()[-1]
    wait_until(lambda: not operator.watchdogs(), "the watchdog has nothing to do")
    assert operator.machine_ids() == ids

    assert operator.run(f"--workers={operator.file}", operator.recording(), jobs=JOBS) == 0, operator.said()
    assert operator.ended().total() == 3 and operator.machine_ids() == ids

    assert operator.command("destroy", str(operator.file)) == 0, operator.said()
    assert sorted(line.removeprefix("destroyed worker ") for line in operator.said().splitlines()) == ids
    assert not operator.machines() and not operator.file.exists()
    assert {"destroying", "destroyed"} <= set(operator.events()), "the launch's journal knows of it"


def test_machines_are_reached_by_ssh_with_the_users_key_and_their_own_host_key(operator: Operator, ssh_options: list[str]) -> None:
    assert operator.command("launch", "--provider=fake", *ssh_options, "2", str(operator.file)) == 0, operator.said()
    assert all(line.address.host_key and line.address.port for line in operator.listed())
    assert "trust" not in operator.said()
    assert operator.run(f"--workers={operator.file}", *ssh_options, operator.recording(), jobs=JOBS) == 0, operator.said()
    assert operator.ended().total() == 3


def test_a_host_key_that_nobody_vouches_for_is_said(operator: Operator, ssh_options: list[str]) -> None:
    assert operator.command("launch", "--provider=fake", "--fake-host-key=none", *ssh_options, "1", str(operator.file)) == 0
    assert "taken on trust (not verified)" in operator.said()
    assert operator.run(f"--workers={operator.file}", *ssh_options, "echo", jobs=JOBS) == 0, operator.said()


def test_standard_output_can_be_the_list(operator: Operator) -> None:
    assert operator.command("launch", "2", "-", *LOCAL) == 0, operator.said()
    lines = operator.out().read_bytes()
    assert lines.count(b"\n") == 2
    assert operator.command("destroy", "-", stdin=lines) == 0, operator.said()
    assert not operator.machines() and operator.out().read_bytes() == b""


def test_what_is_ready_is_listed_at_once(operator: Operator) -> None:
    run = operator.begin("launch", *LOCAL, "--fake-faults=never-boots=1", "--boot-timeout=20s", "2", str(operator.file))
    wait_until(lambda: len(operator.listed()) == 1, "the one that boots is listed")
    assert run.poll() is None
    run.send_signal(signal.SIGTERM)
    assert operator.finish(run) == 143


@pytest.mark.parametrize("arguments", [("2",), ("2", "x", "y"), ("none", "x"), ("0", "x"), ("2", "x", "--no-such-option")])
def test_wrong_use(operator: Operator, arguments: tuple[str, ...]) -> None:
    assert operator.command("launch", *LOCAL, *arguments) == 2
    assert operator.said().startswith("cloudtask-launch-workers: ") and operator.said().count("\n") == 1
    assert not operator.launches.exists()


def test_an_existing_file_is_refused(operator: Operator) -> None:
    operator.file.write_text("precious\n")
    assert operator.command("launch", *LOCAL, "1", str(operator.file)) == 2
    assert "exists already" in operator.said() and operator.file.read_text() == "precious\n"
    assert not operator.machines()


def test_without_a_provider_there_is_no_launch(operator: Operator) -> None:
    assert operator.command("launch", "1", str(operator.file)) == 2
    assert "--provider" in operator.said() and "HUB_APIKEY" in operator.said()


def test_without_a_key_there_is_no_launch(operator: Operator) -> None:
    config = operator.directory / "ssh_config"
    config.write_text("IdentityFile /nonexistent\nIdentityAgent none\n")
    assert operator.command("launch", "--provider=fake", f"--ssh-config={config}", "1", str(operator.file)) == 2
    assert "no ssh key of yours" in operator.said() and "ssh-keygen" in operator.said()
    assert not operator.machines() and not operator.file.exists() and not operator.launches.exists()


def test_names_of_the_original_and_the_environment(operator: Operator) -> None:
    options = ("--region=eu-west-1", "--size=m1.large", "--type=ebs", "--label=mine", "1", str(operator.file))
    assert operator.command("launch", *options, CLOUDTASK_PROVIDER="fake", CLOUDTASK_FAKE_KIND="local") == 0, operator.said()
    conf = (operator.launches / "1" / "conf.yaml").read_text()
    assert "ec2-region: eu-west-1" in conf and "ec2-size: m1.large" in conf and "ec2-type: ebs" in conf
    assert [record["label"] for record in operator.launch_journal() if "order" in record] == ["mine"]


@pytest.mark.parametrize(
    ("option", "words"),
    [("--max-workers=1", "more than --max-workers=1"), ("--max-hourly=3", "$4 an hour"), ("--max-cost=30", "kept for 8h cost $32")],
)
def test_a_budget_is_kept_to_before_anything_is_launched(operator: Operator, option: str, words: str) -> None:
    assert operator.command("launch", *LOCAL, "--fake-price=2", option, "2", str(operator.file)) == 2
    assert words in operator.said() and not operator.machines()


# --- launching that goes wrong ---------------------------------------------------------------------------------------


def test_what_never_boots_is_replaced(operator: Operator) -> None:
    launched(operator, 2, "--fake-faults=never-boots=1", "--boot-timeout=2s")
    assert "not ready within 2 seconds" in operator.said() and "created 3, confirmed gone 1, kept 2" in operator.said()
    assert operator.listed_ids() == operator.machine_ids()


def test_three_in_a_row_end_it(operator: Operator) -> None:
    options = ("--fake-faults=never-boots=100%", "--boot-timeout=1s", "1", str(operator.file))
    assert operator.command("launch", *LOCAL, *options) == 1, operator.said()
    assert "3 machines in a row were never ready" in operator.said()
    assert not operator.machines() and not operator.file.exists()


@pytest.mark.parametrize(("least", "status"), [("2", 0), ("3", 1)])
def test_fewer_than_were_asked_for(operator: Operator, least: str, status: int) -> None:
    options = ("--fake-capacity=2", f"--min-split={least}", "4", str(operator.file))
    assert operator.command("launch", *LOCAL, *options) == status, operator.said()
    assert "# failed to launch 2 of 4 instances" in operator.said()
    assert operator.listed_ids() == operator.machine_ids() and len(operator.listed()) == 2


def test_a_refusal_is_said_in_the_providers_words(operator: Operator) -> None:
    assert operator.command("launch", *LOCAL, "--fake-faults=refuse=QuotaExceeded", "1", str(operator.file)) == 1
    assert "QuotaExceeded" in operator.said() and not operator.file.exists()


def test_an_answer_that_is_lost_makes_no_machine_twice(operator: Operator) -> None:
    ids = launched(operator, 2, "--fake-faults=lost-answer=1")
    assert ids == operator.machine_ids()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_machines_boot_leaves_nothing(operator: Operator, number: signal.Signals) -> None:
    run = operator.begin("launch", *LOCAL, "--fake-faults=slow-boot=30s", "3", str(operator.file))
    wait_until(lambda: len(operator.machines()) == 3, "machines boot")
    run.send_signal(number)
    assert operator.finish(run) == 128 + number, operator.said()
    assert f"# caught {number.name}, stopping launch\n" in operator.said() and "created 3, confirmed gone 3" in operator.said()
    assert not operator.machines() and not operator.file.exists()


def test_a_signal_leaves_what_was_handed_over(operator: Operator) -> None:
    run = operator.begin("launch", *LOCAL, "--fake-faults=never-boots=1", "3", str(operator.file))
    wait_until(lambda: operator.events().count("kept") == 2, "two are handed over")
    run.send_signal(signal.SIGINT)
    assert operator.finish(run) == 130, operator.said()
    assert "stopping launch; 2 handed over stay" in operator.said()
    assert operator.listed_ids() == operator.machine_ids() and len(operator.listed()) == 2


def test_a_second_signal_leaves_the_rest_to_the_watchdog(operator: Operator) -> None:
    run = operator.begin("launch", *LOCAL, "--fake-faults=slow-boot=30s,slow-destroy=2s", "2", str(operator.file))
    wait_until(lambda: len(operator.machines()) == 2, "machines boot")
    run.send_signal(signal.SIGINT)
    wait_until(lambda: "destroying" in operator.events(), "they are being destroyed")
    run.send_signal(signal.SIGINT)
    assert operator.finish(run) == 130
    assert "the watchdog goes on" in operator.said()
    wait_until(lambda: not operator.machines() and not operator.watchdogs(), "the watchdog destroyed them")


def test_nobody_reads_the_list(operator: Operator) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    words = [sys.executable, "-m", "cloudtask.cli.launch_workers"]
    run = subprocess.run(
        [*words, *LOCAL, "2", "-"], stdout=writer, stderr=subprocess.PIPE, env=operator.environment(), timeout=40, check=False
    )
    os.close(writer)
    assert run.returncode == 1 and b"cannot be written: Broken pipe" in run.stderr, run.stderr
    assert not operator.machines()


def test_kill_9_while_machines_boot(operator: Operator) -> None:
    run = operator.begin("launch", *LOCAL, "--fake-faults=never-boots=1", "3", str(operator.file))
    wait_until(lambda: operator.events().count("kept") == 2, "two are handed over")
    run.kill()
    run.wait()
    wait_until(lambda: not operator.watchdogs(), "the watchdog has cleaned up")
    assert operator.machine_ids() == operator.listed_ids() and len(operator.listed()) == 2


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["before", "after"])
def test_kill_9_at_any_step_loses_no_machine(operator: Operator, moment: str) -> None:
    """Whatever the step: each machine that is left stands in the file.  One line at most may name a machine that is gone."""
    steps = 0
    while True:
        steps += 1
        operator.file.unlink(missing_ok=True)
        before = set(operator.machine_ids())
        program = ("tests.running.killed_launch", str(steps), moment)
        status = operator.finish(operator.begin("launch", *LOCAL, "2", str(operator.file), program=program))
        wait_until(lambda: not operator.watchdogs(), "the watchdog has cleaned up")
        left = set(operator.machine_ids()) - before
        listed = set(operator.listed_ids())
        assert left <= listed, f"step {steps}: {left - listed} is lost"
        assert len(listed - left) <= 1, f"step {steps}: {listed - left}"
        if status == 0:
            break
        assert status == -signal.SIGKILL
    assert steps > 8


# --- destroying ------------------------------------------------------------------------------------------------------


def test_an_empty_list(operator: Operator) -> None:
    operator.file.write_text("# nobody\n")
    assert operator.command("destroy", str(operator.file)) == 0
    assert operator.said() == "no workers to destroy\n"


@pytest.mark.parametrize("arguments", [(), ("a", "b"), ("/nonexistent/list",), ("--leaked", "x"), ("--wait=soon", "x")])
def test_wrong_use_of_destroy(operator: Operator, arguments: tuple[str, ...]) -> None:
    assert operator.command("destroy", *arguments) == 2
    assert operator.said().startswith("cloudtask-destroy-workers: ") and operator.said().count("\n") == 1


def test_a_line_that_is_no_worker_destroys_nothing(operator: Operator) -> None:
    ids = launched(operator)
    operator.file.write_text(operator.file.read_text() + "not a worker at all\n")
    assert operator.command("destroy", str(operator.file)) == 2
    assert "line 3" in operator.said() and operator.machine_ids() == ids


def test_what_cannot_be_destroyed_stays_in_the_file(operator: Operator) -> None:
    launched(operator)
    operator.file.write_text("# mine\n" + operator.file.read_text() + "host.example.com\n")
    assert operator.command("destroy", str(operator.file)) == 1
    assert "warning: can't destroy host.example.com: " in operator.said()
    assert operator.file.read_text() == "# mine\nhost.example.com\n"
    assert not operator.machines()


def test_a_bare_address_is_a_machine_that_has_it(operator: Operator) -> None:
    first, second = sorted(launched(operator, 2, "--fake-faults=slow-boot=0s"))
    [address] = [str(line.address) for line in operator.listed() if line.facts["id"] == first]
    assert operator.command("destroy", "-", stdin=f"{address}\n".encode()) == 0, operator.said()
    assert operator.machine_ids() == [second]


def test_dry_run_destroys_nothing(operator: Operator) -> None:
    ids = launched(operator)
    assert operator.command("destroy", "--dry-run", str(operator.file)) == 0
    assert operator.said().count("would destroy worker f-") == 2
    assert operator.machine_ids() == ids == operator.listed_ids()


def test_settings_of_the_launch_are_used(operator: Operator, tmp_path: Path) -> None:
    """The line names the launch, and the launch knows at which provider's which account it was."""
    launched(operator, 1, f"--fake-state={tmp_path}/elsewhere")
    assert not operator.machines()
    assert operator.command("destroy", str(operator.file)) == 0, operator.said()
    assert not any((tmp_path / "elsewhere" / "disks").iterdir())


def test_a_machine_that_is_gone_already(operator: Operator) -> None:
    ids = launched(operator)
    operator.provider.destroy(ids)
    assert operator.command("destroy", str(operator.file)) == 0, operator.said()
    assert not operator.file.exists()


def test_a_machine_that_nobody_knows_stays_in_the_file(operator: Operator) -> None:
    """The provider that is configured may be the wrong one; --force says that it is not."""
    operator.file.write_text("host.example.com #: provider=fake id=f-0123456789ab\n")
    assert operator.command("destroy", "--fake-kind=local", str(operator.file)) == 1
    assert "no such machine is known there" in operator.said() and operator.listed_ids() == ["f-0123456789ab"]
    assert operator.command("destroy", "--fake-kind=local", "--force", str(operator.file)) == 0, operator.said()
    assert not operator.file.exists()


def test_a_destruction_that_is_ignored_is_asked_for_again_or_said(operator: Operator) -> None:
    ids = launched(operator, 1, "--fake-faults=destroy-ignored=1")
    assert operator.command("destroy", "--wait=2s", str(operator.file)) == 1
    assert f"warning: can't destroy {ids[0]}: it is running" in operator.said() and operator.listed_ids() == ids
    assert operator.command("destroy", str(operator.file)) == 0, operator.said()
    assert not operator.machines() and not operator.file.exists()


def test_errors_of_the_provider_do_not_end_it(operator: Operator) -> None:
    launched(operator, 3)
    assert operator.command("destroy", "--fake-faults=api-500=30%,throttle=10%", str(operator.file)) == 0, operator.said()
    assert not operator.machines()


def test_a_signal_while_waiting_keeps_what_is_not_proven(operator: Operator) -> None:
    ids = launched(operator, 2, "--fake-faults=slow-destroy=30s")
    run = operator.begin("destroy", str(operator.file))
    wait_until(lambda: not operator.machine_ids(), "they are on their way out")
    run.send_signal(signal.SIGINT)
    assert operator.finish(run) == 130, operator.said()
    assert operator.listed_ids() == ids


def test_a_file_that_is_being_written_is_left_alone(operator: Operator) -> None:
    run = operator.begin("launch", *LOCAL, "--fake-faults=never-boots=1", "2", str(operator.file))
    wait_until(lambda: len(operator.listed()) == 1, "one is listed")
    assert operator.command("destroy", str(operator.file)) == 2
    assert "is being written by a launch" in operator.said()
    run.send_signal(signal.SIGINT)
    assert operator.finish(run) == 130


def test_machines_that_a_run_kept_are_destroyed_with_its_settings(operator: Operator, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    options = (*LOCAL, f"--fake-state={elsewhere}", f"--keep={operator.file}")
    assert operator.run(*options, "--split=2", "echo", jobs=JOBS) == 0, operator.said()
    assert len(operator.listed()) == 2 and len(list((elsewhere / "disks").iterdir())) == 2
    assert operator.command("destroy", str(operator.file)) == 0, operator.said()
    assert not any((elsewhere / "disks").iterdir())
    assert "destroyed" in [next(iter(record)) for record in operator.journal()]
