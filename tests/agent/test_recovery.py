"""After kills: of the agent, of agent and guardian, of the machine.  Nothing runs twice, nothing that ended is forgotten."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.agent.client import Client, alive, processes_of, until
from tests.agent.conftest import Connect

DEAF = b"trap '' TERM; echo $$; while :; do sleep 0.05; done"


def agent_and_guardian(client: Client) -> tuple[int, int]:
    """The two processes; the guardian is the one whose parent the agent is and that has a process session of its own."""
    pid = client.agent_pid()
    for found in processes_of(client.home):
        fields = Path(f"/proc/{found}/stat").read_text().rpartition(")")[2].split()
        if int(fields[1]) == pid and int(fields[3]) == found:
            return pid, found
    raise AssertionError("no guardian")


def printed_pids(client: Client, *jobs: int) -> list[int]:
    """The pid that each of the jobs prints."""
    client.pump(lambda: all(client.stdout(job) for job in jobs), "pids")
    return [int(client.stdout(job)) for job in jobs]


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    until(lambda: not alive(pid), "the end of a process")


def test_an_agent_that_is_killed_takes_its_jobs_along_and_the_next_delivers(connect: Connect, home: Path) -> None:
    first = connect()
    first.start(slots=3, grace=0.4)
    many = b"head -c 300000 /dev/zero | tr '\\0' x"
    first.run({1: b"echo small; echo err >&2", 2: many, 3: DEAF, 4: b"setsid sleep 1000 & echo $!; wait"})
    first.result(1)
    first.result(2)
    pids = printed_pids(first, 3, 4)
    pid, guardian = agent_and_guardian(first)
    kill(pid)
    first.wait_eof()
    second = connect()
    welcome = second.start(connection=2)
    assert welcome["pid"] != pid
    assert not any(alive(one) for one in [*pids, guardian])
    rows = second.inventory()
    assert {key: state for key, (state, _) in rows.items()} == {(1, 1): "ended", (2, 1): "ended", (3, 1): "lost", (4, 1): "lost"}
    assert rows[1, 1][1][:13] == first.results[1, 1][:13]
    second.send({"t": "want", "jobs": [[1, 1, 0, 0], [2, 1, 100_000, 0], [3, 1, 0, 0]]})
    second.output[2, 1] = (bytearray(b"x" * 100_000), bytearray())
    assert second.result(1)[:13] == first.results[1, 1][:13]
    assert (second.stdout(1), second.stderr(1)) == (b"small\n", b"err\n")
    assert second.result(2)[:13] == first.results[2, 1][:13]
    assert second.stdout(2) == b"x" * 300_000


def test_what_an_earlier_agent_ran_is_refused_by_the_next(connect: Connect, home: Path) -> None:
    first = connect()
    first.start()
    first.run({1: b"echo 1 >> ran", 2: b"echo 2 >> ran; sleep 1000", 3: b"echo 3 >> ran"})
    first.result(1)
    first.result(3)
    first.ack((3, 1))
    first.send({"t": "beat", "n": 1})
    first.wait("beat")
    kill(first.agent_pid())
    second = connect()
    second.start(connection=2)
    assert {key: state for key, (state, _) in second.inventory().items()} == {(1, 1): "ended", (2, 1): "lost", (3, 1): "acked"}
    second.run(dict.fromkeys((1, 2, 3), b"echo again >> ran"))
    assert sorted(second.wait("refused")["jobs"]) == [[1, 1], [2, 1], [3, 1]]
    second.run([(2, 2, 0, b"echo 2b >> ran")])
    second.result(2, 2)
    assert sorted((home / "ran").read_text().split()) == ["1", "2", "2b", "3"]


def test_queued_attempts_of_a_killed_agent_never_started(connect: Connect, home: Path) -> None:
    first = connect()
    first.start(slots=1)
    first.run({1: b"sleep 1000", 2: b"echo 2 >> ran"})
    first.wait("started")
    kill(first.agent_pid())
    second = connect()
    second.start(connection=2)
    assert list(second.inventory()) == [(1, 1)]
    second.run({2: b"echo 2 >> ran"})
    second.result(2)
    assert (home / "ran").read_text() == "2\n"


@pytest.mark.parametrize("order", ["agent first", "guardian first"])
def test_agent_and_guardian_killed(connect: Connect, order: str) -> None:
    first = connect()
    first.start(slots=2, grace=0.4)
    first.run({1: DEAF, 2: b"set -m; env -i /bin/sh -c 'echo $$; while :; do /bin/sleep 0.1; done' & wait"})
    pids = printed_pids(first, 1, 2)
    pid, guardian = agent_and_guardian(first)
    if order == "agent first":
        os.kill(guardian, signal.SIGSTOP)
        kill(pid)
        kill(guardian)
    else:
        os.kill(pid, signal.SIGSTOP)
        kill(guardian)
        kill(pid)
    assert all(alive(one) for one in pids)
    second = connect()
    second.start(connection=2, grace=0.4)
    assert not any(alive(one) for one in pids)
    assert {state for state, _ in second.inventory().values()} == {"lost"}


def test_a_killed_guardian_is_replaced(connect: Connect) -> None:
    client = connect()
    client.start()
    pid, guardian = agent_and_guardian(client)
    kill(guardian)
    client.run({1: b"echo $$; sleep 1000"})
    job = int(client.pump(lambda: client.stdout(1), "a pid"))

    def another() -> bool:
        try:
            return agent_and_guardian(client)[1] != guardian
        except (AssertionError, OSError):
            return False

    until(another)
    kill(pid)
    until(lambda: not alive(job), "the end of the job")


def test_daemons_started_on_purpose_outlive_a_killed_agent(connect: Connect) -> None:
    client = connect()
    client.start()
    client.run([(-1, 1, 0, b"setsid sleep 1000 >/dev/null 2>&1 & echo $!; sleep 0.1")])
    client.result(-1)
    daemon = int(client.stdout(-1))
    client.run({1: b"sleep 1000"})
    client.wait("started")
    kill(client.agent_pid())
    second = connect()
    second.start(connection=2)
    assert alive(daemon)


def machine(root: Path, machine_id: str, boot: str, start: int) -> dict[str, str]:
    """A file tree that the agent takes for the machine it is on."""
    (root / "etc").mkdir(parents=True, exist_ok=True)
    (root / "proc/sys/kernel/random").mkdir(parents=True, exist_ok=True)
    (root / "proc/1").mkdir(parents=True, exist_ok=True)
    (root / "etc/machine-id").write_text(machine_id + "\n")
    (root / "proc/sys/kernel/random/boot_id").write_text(boot + "\n")
    (root / "proc/1/stat").write_text("1 (init (x)) S " + "0 " * 18 + f"{start} 0 0\n")
    return {"CLOUDTASK_AGENT_PROC_ROOT": str(root)}


def power_off(client: Client) -> None:
    """End the agent and all its jobs at once, as a loss of power would."""
    pid, guardian = agent_and_guardian(client)
    os.kill(guardian, signal.SIGSTOP)
    for one in [pid, guardian, *processes_of(client.home)]:
        if alive(one):
            os.kill(one, signal.SIGKILL)
    until(lambda: not processes_of(client.home))


def test_after_a_reboot_only_whole_results_count(connect: Connect, tmp_path: Path) -> None:
    first = connect(env=machine(tmp_path / "root", "m1", "boot1", 22))
    assert first.start(slots=5)["identity"] == ["m1", "boot1", "22"]
    many = b"head -c 200000 /dev/zero"
    first.run({1: b"echo whole", 2: many, 3: many, 4: b"sleep 1000", 5: b"true", 6: b"exit 3"})
    for job in (1, 2, 3, 5, 6):
        first.result(job)
    first.ack((6, 1))
    first.send({"t": "beat", "n": 1})
    first.wait("beat")
    power_off(first)
    spool = first.agent_home / "spool"
    with open(spool / "3.1.1", "r+b") as file:
        file.seek(150_000)
        file.write(b"!")
    with open(first.agent_home / "journal", "ab") as file:
        file.write(b'["ended",[9,1,1,"exit",0')
    for _ in range(2):  # the second agent of the new boot may not believe more than the first
        second = connect(env=machine(tmp_path / "root", "m1", "boot2", 21))
        welcome = second.start(connection=2 + _)
        assert welcome["rebooted"] is (_ == 0)
        assert welcome["fresh"] is False
        states = {key[0]: state for key, (state, _) in second.inventory().items()}
        assert states == {1: "ended", 2: "ended", 3: "lost", 4: "lost", 5: "ended", 6: "acked"}
        second.send({"t": "want", "jobs": [[1, 1, 0, 0], [2, 1, 0, 0], [5, 1, 0, 0]]})
        assert second.result(2)[8] == 200_000
        assert second.result(5)[3:5] == ["exit", 0]
        second.result(1)
        assert second.stdout(1) == b"whole\n"
        power_off(second)


@pytest.mark.parametrize(("machine_id", "boot", "start"), [("m2", "boot1", 22), ("m2", "boot2", 22), ("m1", "boot1", 99)])
def test_a_home_of_another_machine_is_left_alone(connect: Connect, tmp_path: Path, machine_id: str, boot: str, start: int) -> None:
    first = connect(env=machine(tmp_path / "root", "m1", "boot1", 22))
    first.start()
    first.run({1: b"echo mine"})
    first.result(1)
    before = sorted((path, path.stat().st_mtime_ns) for path in first.agent_home.rglob("*"))
    second = connect(env=machine(tmp_path / "other", machine_id, boot, start))
    welcome = second.start(connection=1)
    assert welcome["home"] == str(first.agent_home) + "~2"
    assert welcome["fresh"] is True
    assert second.inventory() == {}
    second.run({1: b"echo theirs"})
    second.result(1)
    assert sorted((path, path.stat().st_mtime_ns) for path in first.agent_home.rglob("*")) == before
    first.run({2: b"echo still mine"})
    first.result(2)
    again = connect(env=machine(tmp_path / "other", machine_id, boot, start))
    assert again.start(connection=2)["pid"] == welcome["pid"]


def test_a_machine_without_an_id_is_never_taken_for_the_same_one_after_a_boot(connect: Connect, tmp_path: Path) -> None:
    first = connect(env=machine(tmp_path / "root", "", "boot1", 22))
    first.start()
    power_off(first)
    assert connect(env=machine(tmp_path / "root", "", "boot2", 22)).start()["home"].endswith("~2")


def test_home_that_cannot_be_written(connect: Connect, home: Path) -> None:
    (home / ".cloudtask-agent").write_text("in the way")
    client = connect()
    welcome = client.start()
    assert welcome["home"].startswith(f"/var/tmp/cloudtask-agent-{os.getuid()}/")
    client.run({1: b"echo fine"})
    client.result(1)
    client.ack((1, 1))
    client.send({"t": "finish"})
    client.wait_eof()
    assert not os.path.exists(welcome["home"])


def test_a_link_in_the_place_of_the_home_is_refused(connect: Connect, home: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (home / ".cloudtask-agent").symlink_to(tmp_path / "elsewhere")
    client = connect()
    assert client.start()["home"].startswith("/var/tmp/")
    assert list((tmp_path / "elsewhere").iterdir()) == []
    client.send({"t": "finish"})
    client.wait_eof()


def test_attach_waits_for_a_guardian_at_work(connect: Connect) -> None:
    first = connect()
    first.start(grace=1.5)
    first.run({1: DEAF})
    job = int(first.pump(lambda: first.stdout(1), "a pid"))
    os.kill(first.agent_pid(), signal.SIGKILL)
    second = connect()
    second.start(connection=2)
    assert not alive(job)
