"""A full disk on the worker: nothing new starts, nothing is lost, and the agent goes on."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.agent.client import Client, kill_all
from tests.agent.conftest import Connect


@pytest.fixture
def small_disk(home: Path) -> Iterator[Path]:
    """HOME on a file system of 2 MiB."""
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m,mode=0700", "tmpfs", str(home)], stderr=subprocess.DEVNULL).returncode:
        pytest.skip("a small file system can only be mounted by root")
    yield home
    kill_all(home)
    subprocess.run(["umount", "-l", str(home)], check=True)


def fill(home: Path) -> Path:
    """Take all the space there is."""
    path = home / "filler"
    with open(path, "ab", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            return path


def test_a_job_that_fills_the_disk(small_disk: Path, connect: Connect) -> None:
    client: Client = connect()
    client.start(slots=1)
    client.run({1: b"cat /dev/zero > big; echo failed; exit 1", **dict.fromkeys(range(2, 6), b"echo never >> ran")})
    assert client.result(1)[3:5] == ["exit", 1]
    assert "free" in client.wait("full")["error"]
    assert sorted(client.pump(lambda: client.wait("returned"), "returned")["jobs"]) == [[job, 1] for job in range(2, 6)]
    assert not (small_disk / "ran").exists()
    client.run({6: b"true"})
    client.pump(lambda: [6, 1] in client.wait("returned")["jobs"], "returned")
    (small_disk / "big").unlink()
    client.send({"t": "beat", "n": 1})
    client.wait("beat")
    client.run({7: b"echo room"})
    client.result(7)
    assert client.stdout(7) == b"room\n"


def test_results_of_running_jobs_survive_a_full_disk_and_a_killed_agent(small_disk: Path, connect: Connect) -> None:
    first: Client = connect()
    first.start(slots=4)
    (small_disk / "wait").touch()
    first.run({job: b"until test -e go; do sleep 0.02; done; exit %d" % job for job in range(1, 4)})
    first.pump(lambda: len(first.started()) == 3, "three starts")
    fill(small_disk)
    (small_disk / "wait").rename(small_disk / "go")
    for job in range(1, 4):
        assert first.result(job)[3] == "exit"
    first.run({9: b"true"})
    first.wait("full")
    os.kill(first.agent_pid(), 9)
    first.wait_eof()
    (small_disk / "filler").unlink()
    second: Client = connect()
    second.start(connection=2)
    assert {key[0]: state for key, (state, _) in second.inventory().items()} == {1: "ended", 2: "ended", 3: "ended"}


def test_output_that_does_not_fit_is_the_jobs_own_failure(small_disk: Path, connect: Connect) -> None:
    client: Client = connect()
    client.start(slots=1)
    client.run({1: b"head -c 20000000 /dev/zero"})
    row = client.result(1)
    assert row[3] == "exit"
    assert row[4] != 0
    assert 0 < row[8] < 3_000_000
    assert client.stdout(1) == bytes(row[8])
    client.wait("full")
    client.ack((1, 1))
    client.send({"t": "beat", "n": 1})
    client.wait("beat")
    client.run({2: b"echo room again"})
    assert client.result(2)[3:5] == ["exit", 0]


def test_a_new_agent_delivers_from_a_full_disk(small_disk: Path, connect: Connect) -> None:
    first: Client = connect()
    first.start()
    first.run({1: b"echo whole", 2: b"head -c 100000 /dev/zero"})
    first.result(1)
    first.result(2)
    os.kill(first.agent_pid(), 9)
    first.wait_eof()
    fill(small_disk)
    second: Client = connect()
    second.start(connection=2)
    second.send({"t": "want", "jobs": [[1, 1, 0, 0], [2, 1, 0, 0]]})
    assert second.result(2)[:13] == first.results[2, 1][:13]
    second.result(1)
    assert second.stdout(1) == b"whole\n"
    second.run({3: b"true"})
    assert second.wait("returned")["jobs"] == [[3, 1]]
    assert second.wait("full")["error"]


def test_a_home_that_cannot_be_made_on_a_full_disk_is_made_elsewhere(small_disk: Path, connect: Connect) -> None:
    fill(small_disk)
    client: Client = connect()
    assert client.start()["home"].startswith("/var/tmp/")
    client.run({1: b"echo fine"})
    assert client.result(1)[3:5] == ["exit", 0]
    client.ack((1, 1))
    client.send({"t": "finish"})
    client.wait_eof()
