"""Ending jobs: time limits, kills, what escapes, what is deaf, what is stopped."""

from __future__ import annotations

import functools
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.agent.client import Client, alive, until
from tests.agent.conftest import Connect


@pytest.fixture
def client(connect: Connect) -> Client:
    client = connect()
    client.start(grace=0.5)
    return client


def pids(client: Client, job: int, count: int) -> list[int]:
    """The pids that a job has printed, one a line."""
    client.pump(lambda: client.stdout(job).count(b"\n") >= count, "pids")
    return [int(word) for word in client.stdout(job).split()]


def test_time_limit(client: Client) -> None:
    client.run({1: b"echo begun; exec sleep 1000"}, timeout=0.3)
    row = client.result(1)
    assert row[3:5] == ["timeout", 0]
    assert 0.3 <= row[5] < 5
    assert client.stdout(1) == b"begun\n"


def test_each_job_has_its_own_limit(client: Client) -> None:
    client.run([(1, 1, 0.2, b"sleep 1000"), (2, 1, 0, b"sleep 0.6")])
    assert client.result(1)[3] == "timeout"
    assert client.result(2)[3:5] == ["exit", 0]


def test_a_job_may_tidy_up_within_the_grace(client: Client) -> None:
    client.run({1: b"trap 'echo tidied; exit 0' TERM; while :; do sleep 0.05; done"}, timeout=0.3)
    assert client.result(1)[3] == "timeout"
    assert client.stdout(1) == b"tidied\n"


def test_a_deaf_job_is_killed_after_the_grace(client: Client) -> None:
    client.run({1: b"trap '' TERM; echo $$; while :; do sleep 0.05; done"}, timeout=0.3)
    (pid,) = pids(client, 1, 1)
    row = client.result(1)
    assert row[3] == "timeout"
    assert row[5] >= 0.8
    assert not alive(pid)


def test_what_left_the_group_is_ended_too(client: Client) -> None:
    client.run({1: b"setsid sh -c 'echo $$; exec sleep 1000' & sleep 1000"}, timeout=0.5)
    (pid,) = pids(client, 1, 1)
    assert client.result(1)[3] == "timeout"
    assert not alive(pid)


def test_what_left_the_group_and_is_deaf_is_killed(client: Client) -> None:
    client.run({1: b"setsid sh -c 'trap \"\" TERM; echo $$; while :; do sleep 0.05; done' & sleep 1000"}, timeout=0.5)
    (pid,) = pids(client, 1, 1)
    assert client.result(1)[3] == "timeout"
    assert not alive(pid)


def test_a_child_without_our_variables_in_a_session_of_its_own_is_ended(client: Client) -> None:
    client.run({1: b"setsid env -i /bin/sh -c 'echo $$; while :; do /bin/sleep 0.1; done' & sleep 1000"}, timeout=0.5)
    (pid,) = pids(client, 1, 1)
    assert client.result(1)[3] == "timeout"
    assert not alive(pid)


def test_a_stopped_job_ends(client: Client) -> None:
    client.run({1: b"echo $$; exec sleep 1000"}, timeout=0.5)
    (pid,) = pids(client, 1, 1)
    os.kill(pid, signal.SIGSTOP)
    row = client.result(1)
    assert row[3] == "timeout"
    assert row[5] < 0.9, "it took the KILL"


def test_escapees_of_other_attempts_are_left_alone(client: Client) -> None:
    client.run([(1, 1, 0, b"setsid sh -c 'echo $$; exec sleep 1000' & sleep 0.2"), (2, 1, 0.5, b"sleep 1000")])
    (pid,) = pids(client, 1, 1)
    assert client.result(1)[3:5] == ["exit", 0]
    assert client.result(2)[3] == "timeout"
    assert alive(pid)


@pytest.mark.parametrize("why", ["aborted", "superseded"])
def test_kill_ends_what_runs_and_returns_what_waits(connect: Connect, why: str) -> None:
    client = connect()
    client.start(slots=1)
    client.run({1: b"exec sleep 1000", 2: b"echo never"})
    client.wait("started")
    client.send({"t": "kill", "jobs": [[1, 1], [2, 1], [99, 1]], "why": why})
    assert client.result(1)[3] == why
    returned = client.wait("returned")
    assert (returned["jobs"], returned["why"]) == ([[2, 1]], why)


def test_a_returned_attempt_may_come_again(connect: Connect) -> None:
    client = connect()
    client.start(slots=1)
    client.run({1: b"exec sleep 1000", 2: b"echo now"})
    client.send({"t": "kill", "jobs": [[2, 1]], "why": "aborted"})
    client.wait("returned")
    client.run({2: b"echo now"})
    client.send({"t": "kill", "jobs": [[1, 1]], "why": "aborted"})
    assert client.result(2)[3:5] == ["exit", 0]


def test_recall_gives_back_the_newest(connect: Connect) -> None:
    client = connect()
    client.start(slots=1)
    client.run({1: b"read -r x < fifo", 2: b"true", 3: b"true", 4: b"true"})
    os.mkfifo(client.home / "fifo")
    client.send({"t": "recall", "count": 2})
    assert sorted(client.wait("returned")["jobs"]) == [[3, 1], [4, 1]]


@pytest.fixture
def small_memory() -> Iterator[Path]:
    """A memory cgroup of 40 MB, of either version."""
    for root, limit in (("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")):
        folder = Path(root) / f"cloudtask-test-{os.getpid()}"
        try:
            folder.mkdir()
            (folder / limit).write_text(str(40 << 20))
        except OSError:
            if folder.exists():
                folder.rmdir()
            continue
        yield folder
        until(functools.partial(remove, folder), "an empty cgroup")
        return
    pytest.skip("want of memory can only be made in a memory cgroup, which needs root")


def remove(folder: Path) -> bool:
    try:
        folder.rmdir()
    except OSError:
        return False
    return True


def test_want_of_memory(client: Client, small_memory: Path) -> None:
    eater = b"echo $$ > %s/cgroup.procs; %s /usr/bin/python3 -c 'x = bytearray(400 << 20)'"
    client.run({1: eater % (os.fsencode(small_memory), b"exec"), 2: eater % (os.fsencode(small_memory), b"")})
    assert client.result(1)[3] == "oom"
    assert client.result(2)[3] == "oom", "the shell passed on that it was the KILL that ended its command"


def test_a_kill_by_hand_is_no_want_of_memory(client: Client) -> None:
    client.run({1: b"kill -KILL $$", 2: b"exit 137"})
    assert client.result(1)[3:5] == ["signal", 9]
    assert client.result(2)[3:5] == ["exit", 137]


def test_many_at_once(connect: Connect) -> None:
    client = connect()
    client.start(slots=20, grace=0.5)
    client.run(dict.fromkeys(range(1, 21), b"sh -c 'trap \"\" TERM; while :; do sleep 0.1; done' & sleep 1000"))
    client.pump(lambda: len(client.started()) == 20, "twenty starts")
    began = time.monotonic()
    client.send({"t": "kill", "jobs": [[job, 1] for job in range(1, 21)], "why": "aborted"})
    for job in range(1, 21):
        assert client.result(job)[3] == "aborted"
    assert time.monotonic() - began < 10


def test_a_full_slot_is_free_only_when_the_group_is_gone(connect: Connect, home: Path) -> None:
    client = connect()
    client.start(slots=1, grace=0.5)
    after = b"grep '^State:.[RSD]' /proc/$(cat pid)/status /dev/null 2>/dev/null && exit 0; exit 1"
    deaf = b"sh -c 'trap \"\" TERM; echo $$ > pid; while :; do sleep 0.05; done' &"
    client.run({1: deaf + b" until test -s pid; do sleep 0.01; done", 2: after})
    assert client.result(1)[3:5] == ["exit", 0]
    assert client.result(2)[3:5] == ["exit", 1], client.stdout(2)
