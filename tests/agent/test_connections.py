"""Connections: greetings, cuts, who is obeyed, and peers that talk nonsense."""

from __future__ import annotations

import os
import random
import socket
import struct
from pathlib import Path

import pytest

from cloudtask import wire
from tests.agent.client import Client, alive, processes_of, until
from tests.agent.conftest import Connect


def test_welcome(connect: Connect, home: Path) -> None:
    client = connect()
    welcome = client.start()
    assert welcome["version"] == wire.VERSION
    assert (welcome["epoch"], welcome["fresh"], welcome["rebooted"], welcome["ready"], welcome["survives"]) == (0, True, False, False, True)
    assert welcome["home"] == str(home / ".cloudtask-agent" / client.key)
    assert len(welcome["identity"]) == 3
    assert welcome["cpus"] == len(os.sched_getaffinity(0))
    assert welcome["root"] == (os.getuid() == 0)
    assert client.inventory() == {}


def test_nothing_of_the_agent_hangs_on_the_login(connect: Connect) -> None:
    client = connect()
    pid = client.start()["pid"]
    assert os.getsid(pid) != os.getsid(client.process.pid)
    assert [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in range(3)] == ["/dev/null"] * 3
    assert not os.path.samestat(os.stat(f"/proc/{pid}/fd/0"), os.stat(f"/proc/{client.process.pid}/fd/0"))


@pytest.mark.parametrize("pipes", [False, True], ids=["socket", "pipes"])
def test_both_kinds_of_standard_streams(connect: Connect, pipes: bool) -> None:
    client = connect(pipes=pipes)
    client.start()
    client.run({1: b"head -c 400000 /dev/zero"})
    client.result(1)
    assert client.stdout(1) == bytes(400000)


def test_the_program_stays_until_the_agent_lets_go_of_it(connect: Connect) -> None:
    client = connect()
    client.start()
    assert client.process.poll() is None
    client.close()
    assert client.process.wait(10) == 0
    assert alive(client.agent_pid())


def test_a_job_runs_on_through_a_cut_and_is_delivered_once(connect: Connect, home: Path) -> None:
    first = connect()
    pid = first.start()["pid"]
    os.mkfifo(home / "fifo")
    first.run({1: b"echo before; read -r x < fifo; echo after $x; echo 1 >> ran"})
    first.pump(lambda: first.stdout(1), "output")
    first.close()
    second = connect()
    welcome = second.start(connection=2)
    assert (welcome["pid"], welcome["fresh"]) == (pid, False)
    assert second.inventory()[1, 1][0] == "running"
    second.output[1, 1] = (bytearray(b"before\n"), bytearray())
    second.send({"t": "want", "jobs": [[1, 1, 7, 0]]})
    (home / "fifo").write_text("x\n")
    assert second.result(1)[3:5] == ["exit", 0]
    assert second.stdout(1) == b"before\nafter x\n"
    second.ack((1, 1))
    second.close()
    third = connect()
    third.start(connection=3)
    assert third.inventory()[1, 1][0] == "acked"
    assert third.inventory()[1, 1][1][:5] == [1, 1, 1, "exit", 0]
    assert (home / "ran").read_text() == "1\n"


def test_a_result_of_the_time_without_connection_waits_for_the_next(connect: Connect, home: Path) -> None:
    first = connect()
    first.start()
    first.run({1: b"echo out; sleep 0.3; head -c 200000 /dev/zero; echo done > done"})
    first.wait("started")
    first.close()
    until(lambda: (home / "done").exists())
    second = connect()
    second.start(connection=2)
    second.pump(lambda: second.inventory()[1, 1][0] in ("ended", "running"))
    assert second.results == {}, "what was not wanted was sent"
    second.send({"t": "want", "jobs": [[1, 1, 0, 0]]})
    assert second.result(1)[8] == 200_004
    assert second.stdout(1) == b"out\n" + bytes(200_000)


def test_unwanted_results_are_not_sent(connect: Connect, home: Path) -> None:
    first = connect()
    first.start()
    first.run({1: b"sleep 0.2"})
    first.wait("started")
    first.close()
    second = connect()
    second.start(connection=2)
    second.run({2: b"sleep 0.5"})
    second.result(2)
    assert list(second.results) == [(2, 1)]


def test_an_attempt_is_never_started_twice(connect: Connect, home: Path) -> None:
    client = connect()
    client.start()
    client.run({1: b"echo 1 >> ran"})
    client.result(1)
    client.run({1: b"echo 1 >> ran"})
    assert client.wait("refused")["jobs"] == [[1, 1]]
    assert client.pump(lambda: client.inventory().get((1, 1)), "its row")[0] == "ended"
    client.ack((1, 1))
    client.run({1: b"echo 1 >> ran"})
    client.pump(lambda: client.inventory().get((1, 1), ("", None))[0] == "acked", "its row")
    assert (home / "ran").read_text() == "1\n"
    client.run([(1, 2, 0, b"echo 2 >> ran")])
    client.result(1, 2)
    assert (home / "ran").read_text() == "1\n2\n"


def test_the_higher_connection_is_obeyed_and_the_lower_closed(connect: Connect) -> None:
    first = connect()
    first.start(epoch=3, connection=1)
    second = connect()
    assert second.start(epoch=3, connection=2)["epoch"] == 3
    assert first.wait("overtaken")["epoch"] == 3
    first.wait_eof()
    second.run({1: b"true"})
    second.result(1)


@pytest.mark.parametrize(("epoch", "connection"), [(4, 9), (5, 1), (5, 2)])
def test_a_lower_or_equal_rank_is_overtaken(connect: Connect, epoch: int, connection: int) -> None:
    first = connect()
    first.start(epoch=5, connection=2)
    second = connect()
    second.greet()
    with pytest.raises(AssertionError, match="closed"):
        second.hello(epoch=epoch, connection=connection)
    assert second.wait("overtaken")["epoch"] == 5
    first.run({1: b"true"})
    assert first.result(1)[3] == "exit"


def test_a_second_hello_on_a_connection_changes_settings_only(connect: Connect) -> None:
    client = connect()
    client.start(slots=1)
    client.run({1: b"sleep 0.3; echo $NEW", 2: b"echo $NEW"})
    client.wait("started")
    client.hello(epoch=2, connection=1, slots=1, env={"NEW": "seen"})
    client.result(1)
    client.result(2)
    assert (client.stdout(1), client.stdout(2)) == (b"\n", b"seen\n")


def test_beats_are_answered(connect: Connect) -> None:
    client = connect()
    client.start()
    client.send({"t": "beat", "n": 41})
    beat = client.wait("beat")
    assert beat["n"] == 41
    assert beat["free"] > 1 << 20


def test_ready_is_remembered(connect: Connect) -> None:
    client = connect()
    client.start()
    client.send({"t": "ready"})
    client.send({"t": "beat", "n": 1})
    client.wait("beat")
    client.close()
    assert connect().start(connection=2)["ready"] is True


def hello(config: dict[str, object]) -> bytes:
    return wire.pack({"t": "hello", "version": 1, "epoch": 2, "connection": 1, "config": config})


def garbage() -> list[bytes]:
    random.seed(7)
    frame = wire.pack({"t": "beat", "n": 1})
    return [
        b"GET / HTTP/1.1\r\n\r\n",
        struct.pack(">II", 1 << 21, 10) + b"x" * 100,
        struct.pack(">II", 10, 100) + b"x" * 100,
        struct.pack(">II", 6, 2) + b"[]",
        struct.pack(">II", 6, 2) + b"{}",
        struct.pack(">II", 8, 4) + b"\xff\xfe\x00\x01",
        struct.pack(">II", 100_004, 100_000) + b"[" * 100_000,
        random.randbytes(4096),
        wire.pack({"t": "nonsense"}),
        wire.pack({"t": "run"}),
        wire.pack({"t": "run", "jobs": [[1, 1, 0, 5]]}, b"four"),
        wire.pack({"t": "run", "jobs": [["1", 1, 0, 0]]}),
        wire.pack({"t": "run", "jobs": [[1, 1, -1, 0]]}),
        wire.pack({"t": "run", "jobs": [[1, True, 0, 0]]}),
        wire.pack({"t": "run", "jobs": [[1 << 40, 1, 0, 0]]}),
        wire.pack({"t": "ack", "jobs": [[1]]}),
        wire.pack({"t": "want", "jobs": [[1, 1, -5, 0]]}),
        wire.pack({"t": "recall", "count": None}),
        wire.pack({"t": "beat"}),
        wire.pack({"t": "code", "job": [], "attempt": {}}),
        wire.pack({"t": "hello", "version": 1}),
        hello({"session": "s", "worker": "../.."}),
        hello({"session": "s", "worker": 1, "env": {"A=B": "x"}}),
        hello({"session": "s", "worker": 1, "env": {"A": "\ud800"}}),
        frame[:4] + b"\0\0\0\0" + frame[8:],
    ]


@pytest.mark.parametrize("number", range(len(garbage())))
def test_garbage_ends_the_connection_and_nothing_else(connect: Connect, number: int) -> None:
    client = connect()
    pid = client.start()["pid"]
    client.run({1: b"sleep 0.3; echo survived"})
    client.wait("started")
    client.write(garbage()[number])
    client.wait_eof()
    other = connect()
    assert other.start(connection=2)["pid"] == pid
    other.send({"t": "want", "jobs": [[1, 1, 0, 0]]})
    other.result(1)
    assert other.stdout(1) == b"survived\n", (other.results, client.results)
    assert not (client.agent_home / "trouble").exists()


def test_a_frame_before_hello_is_refused(connect: Connect) -> None:
    client = connect()
    client.greet()
    client.send({"t": "run", "jobs": [[1, 1, 0, 4]]}, b"true")
    client.wait_eof()
    assert "before hello" in client.wait("note")["text"]


def test_a_slow_reader_costs_no_memory_and_control_frames_overtake(connect: Connect) -> None:
    client = connect()
    pid = client.start()["pid"]
    client.run({1: b"head -c 60000000 /dev/zero; echo all > all"})
    until(lambda: (client.home / "all").exists())
    client.send({"t": "beat", "n": 5})
    client.wait("beat")
    received = sum(len(payload) for header, payload in client.frames if header["t"] == "out")
    assert received < 3 << 20, "the beat waited behind the output"
    peak = next(int(line.split()[1]) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM"))
    assert peak < 40 << 10
    assert client.result(1)[8] == 60_000_000


def test_the_socket_is_made_again(connect: Connect) -> None:
    client = connect()
    pid = client.start()["pid"]
    client.close()
    folder = Path(f"/tmp/cloudtask-{os.getuid()}")
    (found,) = [path for path in folder.iterdir() if inode_of(pid, path)]
    found.unlink()
    assert connect().start(connection=2)["pid"] == pid


def inode_of(pid: int, path: Path) -> bool:
    """True when the process listens on the socket."""
    table = Path("/proc/net/unix").read_text().splitlines()
    nodes = {line.split()[6] for line in table if line.endswith(" " + str(path))}
    held = {os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir() if entry.is_symlink()}
    return any(f"socket:[{node}]" in held for node in nodes)


def test_the_socket_cannot_be_reached_by_others(connect: Connect) -> None:
    connect().start()
    folder = os.lstat(f"/tmp/cloudtask-{os.getuid()}")
    assert folder.st_mode & 0o777 == 0o700
    assert folder.st_uid == os.getuid()


def test_a_caller_that_hands_over_nothing_is_let_go(connect: Connect) -> None:
    client = connect()
    pid = client.start()["pid"]
    (path,) = [path for path in Path(f"/tmp/cloudtask-{os.getuid()}").iterdir() if inode_of(pid, path)]
    for data in (b"", b"hello"):
        with socket.socket(socket.AF_UNIX) as caller:
            caller.settimeout(10)
            caller.connect(str(path))
            if data:
                caller.send(data)
            else:
                caller.shutdown(socket.SHUT_WR)
            assert caller.recv(1) == b""
    client.send({"t": "beat", "n": 1})
    client.wait("beat")


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give directories away")
def test_another_user_who_took_the_sockets_name_is_no_obstacle(connect: Connect, home: Path) -> None:
    folder = f"/tmp/cloudtask-{os.getuid()}"
    taken = f'mkdir -p {folder}; mount -t tmpfs -o uid=65534,mode=0777 tmpfs {folder} && eval "$1"'
    shell = ["unshare", "-m", "/bin/sh", "-c", taken, "sh"]
    first = connect(shell=shell)
    pid = first.start()["pid"]
    assert (first.agent_home / "socket").is_socket()
    second = connect(shell=shell)
    assert second.start(connection=2)["pid"] == pid


def test_the_agent_of_another_worker_is_not_spoken_to(connect: Connect) -> None:
    client = connect()
    client.greet()
    with pytest.raises(AssertionError, match="closed"):
        client.hello(worker=2)
    assert f"the agent of {client.key}" in client.wait("note")["text"]


def test_acknowledged_rows_are_left_out_where_nobody_wants_them(connect: Connect) -> None:
    client = connect()
    client.start()
    client.run({1: b"true", 2: b"true"})
    client.result(1)
    client.result(2)
    client.ack((1, 1))
    client.close()
    second = connect()
    second.greet()
    second.hello(connection=2, acked=False)
    assert list(second.inventory()) == [(2, 1)]


def test_two_first_connections_at_once_make_one_agent(connect: Connect, home: Path) -> None:
    clients = [connect() for _ in range(4)]
    for client in clients:
        client.greet()
    pids = {client.hello(connection=number)["pid"] for number, client in enumerate(clients, 1)}
    assert len(pids) == 1


def test_an_idle_agent_uses_no_processor(connect: Connect) -> None:
    client = connect()
    pid = client.start()["pid"]
    client.run({1: b"sleep 0.5"})
    client.result(1)
    client.run({2: b"sleep 3"})
    client.pump(lambda: (2, 1) in client.started())
    # What it costs to start a job is another matter.
    before = on_processor(pid)
    client.result(2)
    assert on_processor(pid) - before <= 0.05


def on_processor(pid: int) -> float:
    """Seconds that a process was really on a processor (its schedstat): the ticks of its stat are a sample, and coarse."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


def test_all_processes_are_found_by_the_tests_themselves(connect: Connect, home: Path) -> None:
    client: Client = connect()
    pid = client.start()["pid"]
    assert pid in processes_of(home)
    assert len(processes_of(home)) == 3, "attach, agent, guardian"
