"""The docker transport: what is not like ssh about it, over a real engine; and its stream, taken apart."""

from __future__ import annotations

import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudtask.errors import ConnectError, RefusedError, WorkerError
from cloudtask.model import Address
from cloudtask.transports import Channel, Connection, ConnectOptions, find
from cloudtask.transports.docker_engine import EngineError, open_engine
from cloudtask.transports.docker_stream import Frames, Garbled, Pump
from cloudtask.transports.docker_wire import start_exec
from cloudtask.workers.peer import AgentPeer, Peer, open_peer
from cloudtask.workers.setup import apply_overlay
from cloudtask.workers.shell_peer import ShellPeer
from tests.providers.docker_engine import BUSYBOX, DEBIAN, Engine
from tests.providers.docker_proxy import LossyProxy
from tests.providers.docker_tls import tls_engine

pytestmark = pytest.mark.timeout(180)

LIMIT = 20.0
Connect = Callable[..., Connection]
Frame = tuple[dict[str, Any], bytes]


@pytest.fixture
def connect() -> Iterator[Connect]:
    made: list[Connection] = []

    def make(container: str, user: str | None = None) -> Connection:
        made.append(find("docker").connect(Address(host=container, user=user), ConnectOptions(timeout=10.0)))
        return made[-1]

    yield make
    for connection in made:
        connection.close()


def read(channel: Channel, size: int | None = None) -> bytes:
    """All of stdout, or its first ``size`` bytes."""
    until, taken = time.monotonic() + LIMIT, bytearray()
    while size is None or len(taken) < size:
        try:
            data = channel.recv(65536 if size is None else size - len(taken))
        except BlockingIOError:
            assert time.monotonic() < until, f"timed out; stderr: {channel.complaints()!r}"
            select.select([channel], [], [], 0.2)
            continue
        if not data:
            break
        taken += data
    return bytes(taken)


def wait_for(condition: Callable[[], object], what: str) -> None:
    until = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < until, f"not true in time: {what}"
        time.sleep(0.01)


def refusal(call: Callable[[], object], kind: type[WorkerError]) -> str:
    """The one line of an error of exactly that kind."""
    with pytest.raises(kind) as caught:
        call()
    assert type(caught.value) is kind
    assert str(caught.value).isprintable()
    return str(caught.value)


# --- contact -----------------------------------------------------------------------------------------------------------


def test_a_container_that_is_not_there_is_refused(docker: Engine, connect: Connect) -> None:
    assert "no such container" in refusal(partial(connect, "0" * 64), RefusedError)


def test_a_container_that_has_ended_says_how(docker: Engine, connect: Connect) -> None:
    container = docker.run(BUSYBOX, ["/bin/sh", "-c", "exit 7"])
    docker.client.wait(container)
    assert "(exited, exit 7)" in refusal(partial(connect, container), RefusedError)


def test_a_container_that_does_not_run_yet_may_later(docker: Engine, connect: Connect) -> None:
    made = docker.client.create_container(BUSYBOX, ["sleep", "60"], labels={"cloudtask-test": "1"})
    assert "does not run (created)" in refusal(partial(connect, made["Id"]), ConnectError)
    docker.client.start(made["Id"])
    docker.client.pause(made["Id"])
    assert "is paused" in refusal(partial(connect, made["Id"]), ConnectError)
    docker.client.unpause(made["Id"])
    assert connect(made["Id"]).alive()


def test_an_engine_that_is_not_there_may_come(tmp_path: Path, connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/nobody")
    assert "is dockerd running?" in refusal(partial(connect, "web"), ConnectError)
    monkeypatch.setenv("DOCKER_HOST", "tcp://127.0.0.1:9")
    assert "Connection refused" in refusal(partial(connect, "web"), ConnectError)


@pytest.mark.parametrize(("name", "value"), [("DOCKER_HOST", "ssh://root@host"), ("DOCKER_CERT_PATH", "/nowhere")])
def test_a_configuration_that_cannot_be_is_refused(connect: Connect, monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv("DOCKER_HOST", "tcp://127.0.0.1:9")
    monkeypatch.setenv(name, value)
    assert name in refusal(partial(connect, "web"), RefusedError)


def test_the_user_is_the_images_or_the_one_that_is_named(docker: Engine, connect: Connect) -> None:
    container = docker.run(BUSYBOX)
    assert read(connect(container).open("id -u")) == b"0\n"
    worker = connect(container, "worker")
    assert worker.login == f"worker@{container[:12]}"
    assert read(worker.open("id -u; echo $HOME")) == b"1000\n/tmp\n"
    assert "no such user" in refusal(partial(connect, container, "nobody-here"), RefusedError)


def test_root_needs_no_passwd_and_a_shell_is_needed(docker: Engine, connect: Connect) -> None:
    container = docker.run(BUSYBOX)
    assert read(connect(container, "root").open("rm /etc/passwd; echo gone")) == b"gone\n"
    last = connect(container, "root")
    assert read(last.open("rm /bin/sh; echo gone")) == b"gone\n"
    assert "no /bin/sh" in refusal(partial(connect, container, "root"), RefusedError)


# --- the end of things ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["kill", "remove"])
def test_a_container_that_goes_ends_its_channels(docker: Engine, connect: Connect, end: str) -> None:
    container = docker.run(BUSYBOX)
    connection = connect(container)
    channel = connection.open("echo here; exec sleep 100")
    assert read(channel, 5) == b"here\n"
    if end == "kill":
        docker.client.kill(container)
    else:
        docker.client.remove_container(container, force=True)
    assert read(channel) == b""
    assert channel.exit_status() in (None, 137)
    refusal(partial(connection.open, "true"), ConnectError)
    assert not connection.alive()


def test_a_channel_nobody_reads_costs_no_time(docker: Engine, connect: Connect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither while the program is held back, nor once the engine is gone."""
    container = docker.run(BUSYBOX)
    proxy = LossyProxy(tmp_path / "proxy", docker.host)
    monkeypatch.setenv("DOCKER_HOST", proxy.host)
    channel = connect(container).open("head -c 50000000 /dev/zero")
    read(channel, 100_000)
    assert seconds_of_work() < 0.2
    proxy.cut()
    assert seconds_of_work() < 0.2
    assert 0 < len(read(channel)) < 10_000_000


def seconds_of_work() -> float:
    """What this process does in half a second, when the dust has settled."""
    select.select([], [], [], 0.2)
    before = time.process_time()
    select.select([], [], [], 0.5)
    return time.process_time() - before


def test_an_engine_that_hangs_up_is_the_end(docker: Engine, connect: Connect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    container = docker.run(BUSYBOX)
    proxy = LossyProxy(tmp_path / "proxy", docker.host)
    monkeypatch.setenv("DOCKER_HOST", proxy.host)
    connection = connect(container)
    channel = connection.open("echo here; cat")
    assert read(channel, 5) == b"here\n"
    proxy.cut()
    assert read(channel) == b""
    assert channel.exit_status() is None
    wait_for(lambda: not connection.alive(), "the connection is known to be gone")


def test_the_program_stays_quiet_after_its_channel_and_ends_with_its_stdin(docker: Engine, connect: Connect) -> None:
    container = docker.run(BUSYBOX)
    connection = connect(container)
    connection.open("echo $$ >/tmp/pid; exec cat").close()
    other = connection.open("until test -s /tmp/pid; do sleep 0.01; done; while kill -0 $(cat /tmp/pid); do sleep 0.01; done; echo over")
    assert read(other) == b"over\n"


# --- the agent and its stand-in --------------------------------------------------------------------------------------------


def hello(peer: Peer, connection: int) -> list[Frame]:
    config = {
        "session": "s1", "worker": 1, "slots": 2, "grace": 1, "lease": 60, "max_output": 1 << 30, "env": {}, "workdir": None,
        "post": None, "post_timeout": 10, "public_key": None, "heartbeat": 15,
    }  # fmt: skip
    peer.send({"t": "hello", "version": 1, "epoch": 1, "connection": connection, "acked": True, "config": config})
    return collect(peer, lambda frames: any(header["t"] == "inventory" and header["last"] for header, _ in frames))


def collect(peer: Peer, enough: Callable[[list[Frame]], object]) -> list[Frame]:
    frames: list[Frame] = []
    until = time.monotonic() + LIMIT
    while not enough(frames):
        assert time.monotonic() < until, frames[-3:]
        select.select([peer], [] if peer.flush() else [peer], [], 0.05)
        frames += peer.receive()
    return frames


def run(peer: Peer, *codes: bytes) -> None:
    peer.send({"t": "run", "jobs": [[number, 1, 0, len(code)] for number, code in enumerate(codes, 1)]}, b"".join(codes))


def ended(frames: list[Frame]) -> dict[int, list[Any]]:
    return {row[0]: row for header, _ in frames if header["t"] == "ended" for row in header["jobs"]}


@pytest.mark.slow
def test_the_agent_outlives_a_cut(docker_debian: Engine, connect: Connect) -> None:
    container = docker_debian.run(DEBIAN)
    peer = open_peer(connect(container), "s1.1", pytest.fail)
    assert isinstance(peer, AgentPeer)
    hello(peer, 1)
    run(peer, b"sleep 1; echo over; exit 3")
    collect(peer, lambda frames: any(header["t"] == "started" for header, _ in frames))
    peer.close()
    peer = open_peer(connect(container), "s1.1", pytest.fail)
    rows = [row for header, _ in hello(peer, 2) if header["t"] == "inventory" for row in header["rows"]]
    assert [row[:2] for row in rows] == [[1, 1]]
    peer.send({"t": "want", "jobs": [[1, 1, 0, 0]]})
    assert ended(collect(peer, lambda frames: ended(frames)))[1][3:5] == ["exit", 3]
    peer.close()


def test_without_python_a_shell_runs_the_jobs(docker: Engine, connect: Connect) -> None:
    peer = open_peer(connect(docker.run(BUSYBOX)), "s1.1", lambda text: None)
    assert isinstance(peer, ShellPeer)
    hello(peer, 1)
    run(peer, b"echo out; exit 3", b"kill -9 $$")
    rows = ended(collect(peer, lambda frames: len(ended(frames)) == 2))
    assert [rows[1][3:5], rows[2][3:5]] == [["exit", 3], ["signal", 9]]
    peer.close()


@pytest.mark.slow
def test_an_overlay_goes_in_by_tar(docker_debian: Engine, connect: Connect, tmp_path: Path) -> None:
    (tmp_path / "overlay" / "opt" / "tool").mkdir(parents=True)
    (tmp_path / "overlay" / "opt" / "tool" / "big").write_bytes(os.urandom(3_000_000))
    connection = connect(docker_debian.run(DEBIAN))
    apply_overlay(connection, str(tmp_path / "overlay"), lambda data: None, time.monotonic() + LIMIT)
    assert read(connection.open("wc -c </opt/tool/big")) == b"3000000\n"


# --- over TCP and TLS ------------------------------------------------------------------------------------------------------


def test_over_tls_both_ways_and_the_end_of_stdin(tmp_path: Path, connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    with tls_engine(tmp_path) as (engine, environment):
        container = engine.run(BUSYBOX)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        connection = connect(container)
        talk(connection)
        monkeypatch.setenv("DOCKER_TLS_VERIFY", "")
        monkeypatch.delenv("DOCKER_CERT_PATH")
        refusal(partial(connect, container), ConnectError)


def test_over_tcp_both_ways_and_the_end_of_stdin(docker: Engine, connect: Connect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proxy = LossyProxy(("127.0.0.1", 0), docker.host)
    monkeypatch.setenv("DOCKER_HOST", proxy.host)
    assert proxy.host.startswith("tcp://")
    talk(connect(docker.run(BUSYBOX)))
    proxy.close()


def talk(connection: Connection) -> None:
    """Some megabytes there and back, the last of them after the end of stdin."""
    channel = connection.open("echo first; cat; echo after; exit 5")
    assert read(channel, 6) == b"first\n"
    block, sent, got = os.urandom(100_000), 0, b""
    until = time.monotonic() + LIMIT
    while sent < 40 * len(block):
        assert time.monotonic() < until
        place = sent % len(block)
        taken = channel.send(block[place:])
        sent += taken
        select.select([channel], [] if taken else [channel], [], 0 if taken else 0.1)
        try:
            got += channel.recv(1 << 20)
        except BlockingIOError:
            pass
    channel.shutdown_write()
    got += read(channel)
    assert len(got) == len(block) * 40 + 6
    assert got == block * 40 + b"after\n"
    wait_for(lambda: channel.exit_status() is not None, "there is an exit status")
    assert channel.exit_status() == 5


# --- the stream ------------------------------------------------------------------------------------------------------------


def frame(stream: int, data: bytes) -> bytes:
    return struct.pack(">BxxxI", stream, len(data)) + data


@given(st.lists(st.tuples(st.sampled_from([1, 2]), st.binary(max_size=40)), max_size=8), st.integers(1, 20))
def test_frames_are_found_however_they_come(sent: list[tuple[int, bytes]], step: int) -> None:
    text, frames, found = b"".join(frame(stream, data) for stream, data in sent), Frames(), {1: b"", 2: b""}
    for start in range(0, len(text), step):
        for stream, piece in frames.feed(text[start : start + step]):
            found[stream] += piece
    assert found == {number: b"".join(data for stream, data in sent if stream == number) for number in (1, 2)}


def test_what_is_no_frame_is_told() -> None:
    with pytest.raises(Garbled):
        list(Frames().feed(b"HTTP/1.1 200 OK\r\n"))


class OneBreath:
    """An engine that says the answer's head and the stream's beginning in one breath."""

    def __init__(self, path: Path, stream: bytes) -> None:
        self.host = f"unix://{path}"
        self._stream = stream
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(8)
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        version = b'{"ApiVersion": "1.41"}'
        with connection:
            while request := connection.recv(65536):
                if b"/version" in request:
                    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(version), version))
                else:
                    connection.sendall(b"HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n" + self._stream)
                    return


@pytest.mark.parametrize("garbage", [b"", b"\x09oops, this is none"])
def test_nothing_is_lost_that_came_with_the_head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, garbage: bytes) -> None:
    engine = OneBreath(tmp_path / "engine", frame(1, b"early ") + frame(2, b"oh") + frame(1, b"word") + garbage)
    monkeypatch.setenv("DOCKER_HOST", engine.host)
    found, over = open_engine(10.0), threading.Event()
    pump = Pump(*start_exec(found, "e1"), over.set)
    pump.start()
    assert over.wait(LIMIT)
    pump.theirs.setblocking(True)
    assert pump.theirs.recv(100) == b"early word"
    assert pump.theirs.recv(100) == b""
    assert pump.complaints().startswith(b"oh") and (b"garbled" in pump.complaints()) == bool(garbage)
    pump.theirs.close()
    found.api.close()


def test_an_engine_that_is_none_is_told_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "http://127.0.0.1:9")
    with pytest.raises(EngineError, match="no engine answers"):
        open_engine(1.0)
