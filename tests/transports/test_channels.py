"""What every transport owes to its users: one suite for all of them, over real sshd's and a real Docker engine where one is needed."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cloudtask.errors import ConnectError, UsageError, WorkerError
from cloudtask.model import Address
from cloudtask.transports import BUILT_IN, Channel, Connection, ConnectOptions, find, names
from tests.conftest import MakeSshd
from tests.providers.docker_engine import BUSYBOX, Engine
from tests.sshd import ClientKeys, Sshd

Connect = Callable[[], Connection]
LIMIT = 20.0


def wait(channel: Channel, until: float, *, write: bool = False) -> None:
    """Waits for the channel as `Channel.fileno` says, and fails when the time is over."""
    left = until - time.monotonic()
    assert left > 0, f"timed out; stderr: {channel.complaints()!r}"
    select.select([channel], [channel] if write else [], [], min(left, 0.5))


def read(channel: Channel, size: int | None = None, limit: float = LIMIT) -> bytes:
    """All of stdout, or its first ``size`` bytes."""
    until, taken = time.monotonic() + limit, bytearray()
    while size is None or len(taken) < size:
        try:
            data = channel.recv(65536 if size is None else size - len(taken))
        except BlockingIOError:
            wait(channel, until)
            continue
        if not data:
            break
        taken += data
    return bytes(taken)


def write(channel: Channel, data: bytes, limit: float = LIMIT) -> None:
    until, view = time.monotonic() + limit, memoryview(data)
    while view:
        view = view[channel.send(view) :]
        if view:
            wait(channel, until, write=True)
            _nudge(channel)


def _nudge(channel: Channel) -> None:
    """Takes a wake-up for writing back, as a peer's receive() does."""
    with pytest.raises(BlockingIOError):
        channel.recv(1)


def status(channel: Channel, limit: float = LIMIT) -> int:
    until = time.monotonic() + limit
    while (found := channel.exit_status()) is None:
        assert time.monotonic() < until, "no exit status"
        select.select([], [], [], 0.01)
    return found


# Machines of the fake provider, which `fake` reaches, are had by its own tests only.
@pytest.fixture(params=sorted(set(BUILT_IN) - {"fake"}))
def name(request: pytest.FixtureRequest) -> str:
    """The transport's name."""
    return str(request.param)


@pytest.fixture
def server(sshd: MakeSshd) -> Sshd:
    return sshd()


@pytest.fixture
def here() -> Address:
    return Address(host="local", local=True)


@pytest.fixture
def there(server: Sshd) -> Address:
    return Address(host=server.host, user=server.user, port=server.port)


@pytest.fixture
def container(docker: Engine) -> Address:
    """A container that shares /tmp and the process table with the tests, as the other workers here do."""
    return Address(host=docker.run(BUSYBOX, binds=["/tmp:/tmp"], pid_mode="host"))


@pytest.fixture
def connect(name: str, client_keys: ClientKeys, request: pytest.FixtureRequest) -> Iterator[Connect]:
    """Makes connections of the transport, and closes them."""
    made: list[Connection] = []
    address = request.getfixturevalue({"local": "here", "docker": "container"}.get(name, "there"))

    def make() -> Connection:
        made.append(find(name).connect(address, client_keys.options()))
        return made[-1]

    yield make
    for connection in made:
        connection.close()


def test_output_errors_and_exit_status_arrive(connect: Connect) -> None:
    channel = connect().open("echo out; echo err >&2; exit 3")
    assert read(channel) == b"out\n"
    assert status(channel) == 3
    assert channel.complaints() == b"err\n"


def test_the_command_is_shell_code_and_raw_bytes_pass(connect: Connect) -> None:
    channel = connect().open("x='a  \udcff*'; printf %s \"$x\" | od -An -c | tr -d ' \\n'")
    assert read(channel) == rb"a377*"


def test_a_killed_program_tells_its_signal(name: str, connect: Connect) -> None:
    channel = connect().open("kill -TERM $$; sleep 20")
    assert read(channel) == b""
    assert status(channel) == (255 if name == "openssh" else 143)  # ssh(1) itself exits with 255 then


def test_recv_says_that_there_is_nothing_yet(connect: Connect) -> None:
    channel = connect().open("read line; echo got $line")
    with pytest.raises(BlockingIOError):
        channel.recv(10)
    assert channel.exit_status() is None
    write(channel, b"it\n")
    assert read(channel) == b"got it\n"


def test_the_end_of_stdin_arrives_and_output_still_follows(connect: Connect) -> None:
    channel = connect().open("wc -c; echo after")
    write(channel, b"x" * 100_000)
    channel.shutdown_write()
    assert [word.strip() for word in read(channel).split(b"\n")] == [b"100000", b"after", b""]


def test_fifty_megabytes_go_both_ways_unchanged(connect: Connect) -> None:
    channel = connect().open("cat")
    block = os.urandom(1024 * 1024)
    sent, got, until, unsent = 0, 0, time.monotonic() + 40, memoryview(b"")
    while got < 50 * len(block):
        if not unsent and sent < 50:
            unsent, sent = memoryview(block), sent + 1
        unsent = unsent[channel.send(unsent) :] if unsent else unsent
        try:
            data = channel.recv(256 * 1024)
        except BlockingIOError:
            wait(channel, until, write=bool(unsent))
            continue
        assert data, "ended early"
        place = got % len(block)
        assert data == (block + block)[place : place + len(data)]
        got += len(data)
    channel.shutdown_write()
    assert read(channel) == b""


def test_send_takes_nothing_once_the_program_stops_reading_and_goes_on_when_it_reads(connect: Connect, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    tmp_path.chmod(0o755)
    os.mkfifo(gate)
    gate.chmod(0o666)
    for parent in tmp_path.parents[:2]:
        parent.chmod(0o755)
    channel = connect().open(f"read go <{gate}; wc -c")
    total, until, chunk = 0, time.monotonic() + LIMIT, b"x" * 65536
    while taken := channel.send(chunk):
        total += taken
        assert total < 64 * 1024 * 1024, "nothing holds it back"
        assert time.monotonic() < until
    # What is refused now may fit a moment later, while buffers fill up on the way; in the end nothing does.
    settled = time.monotonic() + 0.3
    while time.monotonic() < settled:
        if taken := channel.send(chunk):
            total, settled = total + taken, time.monotonic() + 0.3
        select.select([channel], [], [], 0.02)
        _nudge(channel)
    assert channel.send(chunk) == 0
    with gate.open("w") as file:
        file.write("go\n")
    write(channel, chunk)
    channel.shutdown_write()
    assert int(read(channel)) == total + len(chunk)


def test_a_flood_of_stderr_does_not_block_and_its_end_is_kept(connect: Connect) -> None:
    channel = connect().open("head -c 40000000 /dev/zero | tr '\\0' e >&2; echo last >&2; echo done")
    assert read(channel) == b"done\n"
    assert status(channel) == 0
    assert len(channel.complaints()) <= 64 * 1024
    assert channel.complaints().endswith(b"ee" + b"last\n")


def test_stderr_is_drained_while_nobody_looks(connect: Connect) -> None:
    connection = connect()
    flood = connection.open("head -c 40000000 /dev/zero >&2; echo flooded > \"$HOME/flag-$$\"; echo \"$HOME/flag-$$\"; cat")
    other = connection.open("sleep 0.1; echo other")
    assert read(other) == b"other\n"
    path = read(flood, 1)
    assert path == b"/"


def test_five_channels_at_once_talk_for_themselves(connect: Connect) -> None:
    connection = connect()
    channels = [connection.open(f"read x; echo {number} $x") for number in range(5)]
    for number, channel in enumerate(channels):
        write(channel, f"word{number}\n".encode())
    assert [read(channel) for channel in reversed(channels)] == [f"{number} word{number}\n".encode() for number in reversed(range(5))]


def test_channels_follow_each_other_quickly(connect: Connect) -> None:
    connection = connect()
    for number in range(30):
        channel = connection.open(f"echo {number}")
        assert read(channel) == f"{number}\n".encode()
        channel.close()


def test_closing_a_channel_leaves_the_program_and_the_others_alone(connect: Connect) -> None:
    connection = connect()
    pid = "/tmp/cloudtask-test-" + os.urandom(6).hex()
    first = connection.open(f"trap '' PIPE; cat >/dev/null; echo over > {pid}")
    second = connection.open("cat")
    first.close()
    first.close()
    write(second, b"still here")
    assert read(second, 10) == b"still here"
    until = time.monotonic() + LIMIT
    while not (os.path.exists(pid) and Path(pid).read_text()):
        assert time.monotonic() < until, "the program did not see the end of its stdin"
        select.select([], [], [], 0.01)
    os.unlink(pid)


def test_closing_the_connection_is_quick_and_final(connect: Connect) -> None:
    connection = connect()
    assert connection.alive()
    channel = connection.open("sleep 60 & printf %08d $!; cat")
    pid = int(read(channel, 8))
    began = time.monotonic()
    connection.close()
    connection.close()
    assert time.monotonic() - began < 8
    assert not connection.alive()
    with pytest.raises(ConnectError):
        connection.open("true")
    os.kill(pid, 9)  # the tests run on the worker's machine


def test_the_login_is_told(name: str, connect: Connect, request: pytest.FixtureRequest) -> None:
    login = connect().login
    if name == "docker":
        assert login == request.getfixturevalue("container").host[:12]
    else:
        assert login == ("local" if name == "local" else request.getfixturevalue("server").address)


def test_the_local_transport_starts_in_the_directory_without_our_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLOUDTASK_SPLIT", "3")
    monkeypatch.setenv("HUB_APIKEY", "secret")
    connection = find("local").connect(Address(host="local"), ConnectOptions(directory=str(tmp_path)))
    channel = connection.open('pwd; env | grep -e CLOUDTASK -e HUB; ps -o sid= -p $$')
    where, session = read(channel).decode().split()
    assert where == str(tmp_path)
    assert int(session) != os.getsid(0)
    connection.close()


def test_the_local_transport_refuses_a_directory_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match="missing"):
        find("local").connect(Address(host="local"), ConnectOptions(directory=str(tmp_path / "missing")))


def test_an_unknown_transport_is_named_with_those_there_are() -> None:
    with pytest.raises(UsageError, match=r"'telnet'.*local.*openssh.*ssh"):
        find("telnet")
    assert set(BUILT_IN) <= set(names())


def test_the_place_without_python_has_a_shell_and_tools_only(nopython: Sshd, client_keys: ClientKeys) -> None:
    connection = find("ssh").connect(Address(host=nopython.host, user=nopython.user, port=nopython.port), client_keys.options())
    channel = connection.open("ls /bin | grep -c -e python -e perl; echo a b | while read x y; do setsid echo $y; done; ps | grep -c sshd")
    found, word, servers = read(channel).split()
    assert (found, word) == (b"0", b"b")
    assert int(servers) > 0  # /proc is there
    connection.close()
