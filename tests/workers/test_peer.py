"""Frames over real programs of this machine, and what becomes of a worker that answers strangely."""

from __future__ import annotations

import itertools
import os
import select
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cloudtask.addresses import parse_address
from cloudtask.agent import codec
from cloudtask.errors import ConnectError
from cloudtask.transports import Connection, find
from cloudtask.transports.program import ProgramChannel
from cloudtask.workers.peer import AgentPeer, Peer, open_peer
from cloudtask.workers.shell_peer import ShellPeer
from tests.sshd import ClientKeys, Sshd

from .conftest import MakePath

pytestmark = pytest.mark.timeout(60)

Frame = tuple[dict[str, Any], bytes]


@pytest.fixture
def open_program(connection: Connection) -> Iterator[Callable[[str], AgentPeer]]:
    peers: list[AgentPeer] = []

    def make(command: str) -> AgentPeer:
        peers.append(AgentPeer(connection.open(command)))
        return peers[-1]

    yield make
    for peer in peers:
        peer.close()


def collect(peer: Peer, enough: Callable[[list[Frame]], object], seconds: float = 15) -> list[Frame]:
    """Flush and receive until it is enough."""
    frames: list[Frame] = []
    deadline = time.monotonic() + seconds
    while not enough(frames):
        assert time.monotonic() < deadline, frames[-3:]
        done = peer.flush()
        select.select([peer], [] if done else [peer], [], 0.05)
        frames += peer.receive()
    return frames


def until_gone(peer: Peer, seconds: float = 15) -> str:
    with pytest.raises(EOFError) as caught:
        collect(peer, lambda frames: False, seconds)
    return str(caught.value)


# --- AgentPeer -------------------------------------------------------------------------------------------------------


def test_frames_come_back_whole_and_in_order(open_program: Callable[[str], AgentPeer]) -> None:
    peer = open_program("cat")
    sent: list[Frame] = [({"t": "small", "n": number}, b"x" * (number % 7)) for number in range(5000)]
    sent += [({"t": "large", "n": number, "text": "\udcff"}, os.urandom(500_000)) for number in range(20)]
    for header, payload in sent:
        peer.send(header, payload)
    assert collect(peer, lambda frames: len(frames) >= len(sent)) == sent


def test_send_never_blocks_and_flush_says_what_is_left(open_program: Callable[[str], AgentPeer]) -> None:
    peer = open_program("read -r go; cat >/dev/null")
    began = time.monotonic()
    for number in range(100):
        peer.send({"t": "big", "n": number}, bytes(1 << 19))
        assert not peer.flush() or number == 0
    assert time.monotonic() - began < 5
    assert peer.receive() == []


def test_a_frame_that_is_too_long_is_refused_at_once(open_program: Callable[[str], AgentPeer]) -> None:
    with pytest.raises(ValueError, match="too long"):
        open_program("cat").send({"t": "x"}, bytes(2 << 20))


def test_one_call_takes_some_megabytes_at_most(open_program: Callable[[str], AgentPeer]) -> None:
    frame = codec.pack({"t": "out"}, bytes(65000))
    frame_by_printf = "printf '\\000\\000\\375\\367\\000\\000\\000\\013{\"t\":\"out\"}'; head -c 65000 /dev/zero"
    peer = open_program(f"i=0; while test $i -lt 200; do {frame_by_printf}; i=$((i + 1)); done")
    assert frame[:8] == b"\0\0\xfd\xf7\0\0\0\x0b"
    sizes = []

    def enough(frames: list[Frame]) -> bool:
        sizes.append(len(frames))
        return len(frames) >= 200

    collect(peer, enough)
    assert max(after - before for before, after in itertools.pairwise(sizes)) <= 75


def test_the_end_comes_after_the_last_frames_and_says_why(open_program: Callable[[str], AgentPeer]) -> None:
    peer = open_program("printf '\\000\\000\\000\\015\\000\\000\\000\\011{\"t\":\"x\"}'; echo 'no room\x1b[0m' >&2")
    assert collect(peer, len) == [({"t": "x"}, b"")]
    assert until_gone(peer) == "closed by the worker: no room\\x1b[0m"


def test_garbage_ends_the_conversation(open_program: Callable[[str], AgentPeer]) -> None:
    peer = open_program("echo Segmentation fault; sleep 60")
    assert until_gone(peer).startswith("the worker sent garbage: ")


def test_a_program_that_is_gone_swallows_what_is_sent(open_program: Callable[[str], AgentPeer]) -> None:
    peer = open_program("exit 0")
    assert until_gone(peer) == "closed by the worker"
    for _ in range(3):
        peer.send({"t": "x"}, bytes(1 << 19))
    assert peer.flush()


# --- open_peer -------------------------------------------------------------------------------------------------------


class LoginScript:
    """A connection to this machine whose login shell runs ``script`` first."""

    login = "root@worker:22"
    notes: tuple[str, ...] = ()

    def __init__(self, script: str) -> None:
        self._script = script
        self._channels: list[ProgramChannel] = []

    def open(self, command: str) -> ProgramChannel:
        self._channels.append(ProgramChannel(["/bin/sh", "-c", f"{self._script}\n{command}"]))
        return self._channels[-1]

    def alive(self) -> bool:
        return True

    def close(self) -> None:
        for channel in self._channels:
            channel.close()


def test_a_login_that_ends_is_told_with_its_last_words() -> None:
    connection = LoginScript("echo 'This account is\x07 not available.' >&2; exit 1")
    with pytest.raises(ConnectError, match=r"root@worker:22: the agent does not start: This account is\\x07 not available\."):
        open_peer(connection, "s1.1", print)
    connection.close()


def test_a_login_that_says_why_on_its_output_is_told_too() -> None:
    connection = LoginScript("echo 'Please change your password'; exit 1")
    with pytest.raises(ConnectError, match="the agent does not start: Please change your password"):
        open_peer(connection, "s1.1", print)
    connection.close()


def hello_config() -> dict[str, Any]:
    return {
        "session": "s1", "worker": 1, "slots": 2, "grace": 1, "lease": 60, "max_output": 1 << 30, "env": {}, "workdir": None, "post": None,
        "post_timeout": 10, "public_key": None, "heartbeat": 15,
    }  # fmt: skip


def has(kind: str) -> Callable[[list[Frame]], object]:
    return lambda frames: any(header["t"] == kind for header, _ in frames)


def run_one_job(peer: Peer) -> tuple[dict[str, Any], bytes]:
    """Greet, run one job, finish; returns the welcome and the job's output."""
    peer.send({"t": "hello", "version": 1, "epoch": 1, "connection": 1, "config": hello_config()})
    welcome = next(header for header, _ in collect(peer, has("inventory")) if header["t"] == "welcome")
    code = b"echo hello $CLOUDTASK_JOB"
    peer.send({"t": "run", "jobs": [[1, 1, 0, len(code)]]}, code)
    frames = collect(peer, has("ended"))
    output = b"".join(payload for header, payload in frames if header["t"] in ("out", "ended"))
    peer.send({"t": "ack", "jobs": [[1, 1]]})
    peer.send({"t": "finish"})
    collect(peer, has("done"))
    peer.close()
    return welcome, output


def test_starts_the_agent_behind_a_chatty_login(private_home: Path) -> None:
    connection = LoginScript("echo Welcome; echo You have mail >&2")
    peer = open_peer(connection, "s1.1", print)
    assert isinstance(peer, AgentPeer)
    welcome, output = run_one_job(peer)
    connection.close()
    assert welcome["python"].startswith("3.") and output == b"hello 1\n"


def test_without_python3_a_shell_stands_in(
    private_home: Path, make_path: MakePath, monkeypatch: pytest.MonkeyPatch, connection: Connection
) -> None:
    monkeypatch.setenv("PATH", str(make_path("python3")))
    said: list[str] = []
    peer = open_peer(connection, "s1.1", said.append)
    assert isinstance(peer, ShellPeer)
    welcome, output = run_one_job(peer)
    assert welcome["python"] == "" and output == b"hello 1\n"
    assert said == ["local: no python3, jobs run by its sh"]


def test_a_worker_with_busybox_only_over_ssh(nopython: Sshd, client_keys: ClientKeys) -> None:
    connection = find("ssh").connect(parse_address(nopython.address), client_keys.options())
    peer = open_peer(connection, "s1.1", print)
    assert isinstance(peer, ShellPeer)
    welcome, output = run_one_job(peer)
    connection.close()
    assert welcome["home"].endswith("/.cloudtask-agent/s1.1-sh") and welcome["root"] is False and output == b"hello 1\n"
