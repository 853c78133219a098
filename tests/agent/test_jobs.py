"""Jobs: how they run, what they say, how they end."""

from __future__ import annotations

import os
import zlib
from pathlib import Path

import pytest

from tests.agent.client import Client, alive, until
from tests.agent.conftest import Connect


@pytest.fixture
def client(connect: Connect) -> Client:
    client = connect()
    client.start()
    return client


def ending(row: list[object]) -> tuple[object, object]:
    return row[3], row[4]


def test_exit_status_and_both_outputs(client: Client) -> None:
    client.run({1: b"echo out; echo err >&2; exit 3"})
    row = client.result(1)
    assert ending(row) == ("exit", 3)
    assert (client.stdout(1), client.stderr(1)) == (b"out\n", b"err\n")
    assert row[8:13] == [4, 4, zlib.crc32(b"out\n"), zlib.crc32(b"err\n"), False]
    assert client.wait("started")["jobs"] == [[1, 1, 1]]


def test_signal_is_told_from_exit(client: Client) -> None:
    client.run({1: b"kill -USR1 $$", 2: b"exit 138"})
    assert ending(client.result(1)) == ("signal", 10)
    assert ending(client.result(2)) == ("exit", 138)


def test_five_megabytes_of_every_byte(client: Client, tmp_path: Path) -> None:
    data = bytes(range(256)) * (5 * 4096) + b"end"
    (tmp_path / "data").write_bytes(data)
    client.run({1: b"cat %s; head -c 100000 %s >&2" % ((os.fsencode(tmp_path / "data"),) * 2)})
    row = client.result(1)
    assert client.stdout(1) == data
    assert client.stderr(1) == data[:100000]
    assert row[8:12] == [len(data), 100000, zlib.crc32(data), zlib.crc32(data[:100000])]


def test_output_comes_while_the_job_runs(client: Client) -> None:
    os.mkfifo(client.home / "fifo")
    client.run({1: b"echo early; cat fifo"})
    client.pump(lambda: client.stdout(1) == b"early\n", "early output", 2)
    assert not client.results
    (client.home / "fifo").write_bytes(b"more\n")
    client.result(1)
    assert client.stdout(1) == b"early\nmore\n"


def test_environment_of_a_job(connect: Connect) -> None:
    client = connect(4, env={"CLOUDTASK_SECRET": "x", "KEPT": "yes"})
    client.start(env={"EXTRA": "a b\udcff", "KEPT": "changed"}, slots=1)
    client.run({7: b"env | grep -a -e ^CLOUDTASK -e ^KEPT -e ^EXTRA | sort"})
    client.result(7)
    assert client.stdout(7).splitlines() == [
        b"CLOUDTASK_ATTEMPT=1", b"CLOUDTASK_JOB=7", b"CLOUDTASK_SESSION=" + client.session.encode(), b"CLOUDTASK_SLOT=1",
        b"CLOUDTASK_WORKER=4", b"EXTRA=a b\xff", b"KEPT=changed",
    ]  # fmt: skip


def test_set_up_command_has_no_job_number_and_no_slot(client: Client) -> None:
    client.run([(-1, 1, 0, b'echo "[$CLOUDTASK_JOB]"')])
    assert client.result(-1)[2] == 0
    assert client.stdout(-1) == b"[]\n"


def test_signals_are_as_after_a_login(client: Client) -> None:
    client.run({1: b"grep -E 'Sig(Ign|Blk)' /proc/self/status", 2: b"yes | head -n 1"})
    client.result(1)
    nptl = 3 << 31  # signals 32 and 33 are the C library's own, nobody can change them
    assert [int(line.split()[1], 16) & ~nptl for line in client.stdout(1).splitlines()] == [0, 0]
    client.result(2)
    assert client.stdout(2) == b"y\n"


def test_stdin_is_empty_and_nothing_else_is_inherited(client: Client) -> None:
    client.run({1: b"cat; ls /proc/$$/fd"})
    client.result(1)
    assert client.stdout(1).split() == [b"0", b"1", b"2"]


def test_slots_are_numbered_from_one_and_used_again(connect: Connect) -> None:
    client = connect()
    client.start(slots=2)
    client.run(dict.fromkeys(range(1, 9), b"echo $CLOUDTASK_SLOT; sleep 0.05"))
    slots = [client.result(job)[2] for job in range(1, 9)]
    assert set(slots) == {1, 2}
    assert all(client.stdout(job) == b"%d\n" % slot for job, slot in enumerate(slots, 1))


def test_no_more_jobs_at_once_than_slots(connect: Connect) -> None:
    client = connect()
    client.start(slots=2)
    # Each looks how many directories there are while it has its own.
    client.run({job: b"mkdir d%d; ls -d d* | wc -l; sleep 0.05; rmdir d%d" % (job, job) for job in range(1, 13)})
    for job in range(1, 13):
        client.result(job)
    assert max(int(client.stdout(job)) for job in range(1, 13)) == 2


def test_workdir(connect: Connect, home: Path) -> None:
    (home / "there").mkdir()
    client = connect()
    client.start(workdir="there")
    client.run({1: b"pwd"})
    client.result(1)
    assert client.stdout(1) == os.fsencode(home / "there") + b"\n"


def test_workdir_that_is_not_there_fails_the_job_until_set_up_makes_it(connect: Connect, home: Path) -> None:
    client = connect()
    client.start(workdir=str(home / "new"))
    client.run({1: b"true"})
    assert client.result(1)[3] == "unstarted"
    assert str(home / "new") in client.wait("note")["text"]
    client.run([(-1, 1, 0, b"mkdir new"), (2, 1, 0, b"pwd")])
    assert ending(client.result(-1)) == ("exit", 0)
    client.run({3: b"pwd"})
    client.result(3)
    assert client.stdout(3) == os.fsencode(home / "new") + b"\n"


def test_a_nul_byte_cannot_be_started(client: Client) -> None:
    client.run({1: b"echo a\0b", 2: b"echo fine"})
    assert client.result(1)[3] == "unstarted"
    assert ending(client.result(2)) == ("exit", 0)


def test_code_passes_through_as_bytes(client: Client) -> None:
    client.run({1: b"printf '%s\\n' '\xff\xfe\x80 \xe2\x82'"})
    client.result(1)
    assert client.stdout(1) == b"\xff\xfe\x80 \xe2\x82\n"


@pytest.mark.parametrize("size", [90_000, 110_000, 200_000])
def test_long_code_in_one_frame(client: Client, size: int) -> None:
    client.run({1: b": " + b"x" * size + b"; echo $0"})
    assert ending(client.result(1)) == ("exit", 0)
    assert (client.stdout(1) == b"/bin/sh\n") == (size < 100 * 1024)


def test_a_word_of_a_megabyte_in_pieces(client: Client) -> None:
    code = b": " + b"w" * 1_000_000 + b"; echo fine"
    for start in range(0, len(code), 256 << 10):
        client.send({"t": "code", "job": 1, "attempt": 1}, code[start : start + (256 << 10)])
    client.send({"t": "run", "jobs": [[1, 1, 0, -1]]})
    assert ending(client.result(1)) == ("exit", 0)
    assert client.stdout(1) == b"fine\n"
    assert list((client.agent_home / "code").iterdir()) == []


def test_a_run_without_its_code_is_returned(client: Client) -> None:
    client.send({"t": "run", "jobs": [[1, 1, 0, -1]]})
    assert client.wait("returned")["jobs"] == [[1, 1]]


def test_resources_are_measured(client: Client) -> None:
    client.run({1: b"i=0; while [ $i -lt 60000 ]; do i=$((i+1)); done", 2: b"sleep 0.3"})
    busy, idle = client.result(1), client.result(2)
    assert busy[6] > 0.01 > idle[6]
    assert busy[7] > 500
    assert 0.3 <= idle[5] < 5


def test_what_a_shell_leaves_behind_is_ended(client: Client, home: Path) -> None:
    client.run({1: b"sleep 1000 & echo $!"})
    row = client.result(1)
    assert ending(row) == ("exit", 0)
    assert not alive(int(client.stdout(1)))


def test_a_deaf_one_left_behind_is_killed(connect: Connect) -> None:
    client = connect()
    client.start(grace=0.3)
    client.run({1: b"sh -c 'trap \"\" TERM; echo $$; while :; do sleep 0.1; done' & sleep 0.2"})
    assert ending(client.result(1)) == ("exit", 0)
    assert not alive(int(client.stdout(1)))


def test_a_daemon_that_a_job_started_on_purpose_lives_on(client: Client) -> None:
    client.run({1: b"setsid sleep 1000 >/dev/null 2>&1 & echo $!; sleep 0.1"})
    assert ending(client.result(1)) == ("exit", 0)
    assert alive(int(client.stdout(1)))


def test_output_of_one_that_escaped_reaches_nobody_else(client: Client, home: Path) -> None:
    client.run({1: b"echo own; setsid sh -c 'while :; do echo STRAY; sleep 0.01; done' & sleep 0.1"})
    client.result(1)
    client.run(dict.fromkeys(range(2, 12), b"echo clean; sleep 0.03"))
    for job in range(2, 12):
        client.result(job)
        assert client.stdout(job) == b"clean\n"


def test_max_output_is_cut_and_marked(connect: Connect) -> None:
    client = connect()
    client.start(max_output=50_000)
    client.run({1: b"yes | head -c 300000; echo ok >&2", 2: b"yes | head -c 50000", 3: b"yes"}, timeout=1)
    row = client.result(1)
    assert row[8:10] == [50_000, 3]
    assert row[12] is True
    assert client.stdout(1) == b"y\n" * 25_000
    assert client.result(2)[8:13:4] == [50_000, False]
    assert client.result(3)[3] == "timeout"
    assert client.result(3)[8:13:4] == [50_000, True]


def test_endless_output_does_not_fill_the_disk(connect: Connect) -> None:
    client = connect()
    client.start(max_output=1 << 20)
    client.run({1: b"yes"}, timeout=2)
    spool = client.agent_home / "spool" / "1.1.1"
    sizes: list[int] = []
    while not client.results:
        client.take_in()
        if spool.exists():
            sizes.append(spool.stat().st_size)
    assert client.result(1)[8] == 1 << 20
    assert until(lambda: spool.stat().st_size) == 1 << 20


def test_many_short_jobs_each_once(connect: Connect, home: Path) -> None:
    client = connect()
    client.start(slots=4)
    client.run({job: b"echo %d >> ran; echo %d" % (job, job) for job in range(1, 301)})
    for job in range(1, 301):
        assert ending(client.result(job)) == ("exit", 0)
        assert client.stdout(job) == b"%d\n" % job
    assert sorted(map(int, (home / "ran").read_text().split())) == list(range(1, 301))
