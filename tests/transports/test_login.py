"""Logging in to real servers: users, keys, agents, certificates, ways through other hosts, and the errors when it does not work."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloudtask.errors import ConnectError, RefusedError
from cloudtask.model import Address
from cloudtask.transports import Connection, find
from cloudtask.transports.handshakes import HOLD, SLOTS, Slot
from cloudtask.transports.ssh import SshConnection
from tests.conftest import MakeSshd
from tests.sshd import ClientKeys, Sshd, free_port, keygen
from tests.transports.test_channels import read

root_only = pytest.mark.skipif(os.getuid() != 0, reason="logs in as root and as somebody else")
both = pytest.mark.parametrize("name", ["ssh", "openssh"])


def connect(server: Sshd, keys: ClientKeys, name: str = "ssh", *, host: str | None = None, **changes: object) -> Connection:
    address = Address(host=host or server.host, user=server.user, port=None if host else server.port)
    return find(name).connect(address, keys.options(**changes))


def login(server: Sshd, keys: ClientKeys, name: str = "ssh", *, host: str | None = None, **changes: object) -> str:
    """Who we are there."""
    connection = connect(server, keys, name, host=host, **changes)
    try:
        return read(connection.open("id -un")).decode().strip()
    finally:
        connection.close()


@pytest.fixture
def agent(tmp_path: Path, private_home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A real ssh-agent, empty."""
    if shutil.which("ssh-agent") is None:
        pytest.skip("there is no ssh-agent")
    path = tmp_path / "agent"
    process = subprocess.Popen(["ssh-agent", "-D", "-a", path], stdout=subprocess.DEVNULL)
    until = time.monotonic() + 10
    while not path.exists():
        assert time.monotonic() < until
        time.sleep(0.01)
    monkeypatch.setenv("SSH_AUTH_SOCK", str(path))
    yield path
    process.terminate()
    process.wait()


def add(agent: Path, key: Path) -> None:
    subprocess.run(["ssh-add", "-q", key], check=True, capture_output=True, stdin=subprocess.DEVNULL, env={"SSH_AUTH_SOCK": str(agent)})


def public(key: Path) -> str:
    return Path(f"{key}.pub").read_text().strip()


# --- users and addresses -------------------------------------------------------------------------------------------------------


@both
@root_only
def test_the_user_is_looked_for_in_four_places(name: str, sshd: MakeSshd, client_keys: ClientKeys) -> None:
    server = sshd()
    address = Address(host=server.host, port=server.port)

    def who(address: Address, **changes: object) -> str:
        connection = find(name).connect(address, client_keys.options(**changes))
        try:
            return f"{read(connection.open('id -un')).decode().strip()} {connection.login.split('@')[0]}"
        finally:
            connection.close()

    assert who(address) == "root root"
    assert who(address, user=server.account.name) == f"{server.account.name} {server.account.name}"
    client_keys.configure(f"Host {server.host}\n  User {server.account.name}")
    assert who(address) == f"{server.account.name} {server.account.name}"
    assert who(address, user="root") == "root root"
    assert who(Address(host=server.host, port=server.port, user="root"), user="nobody") == "root root"


@both
def test_ipv6(name: str, sshd: MakeSshd, client_keys: ClientKeys) -> None:
    if not Path("/proc/net/if_inet6").exists():
        pytest.skip("no IPv6 here")
    server = sshd(host="::1")
    assert login(server, client_keys, name) == server.user
    assert server.known_hosts_line().split()[1] in client_keys.accepted.read_text()


@both
def test_names_ports_and_aliases_of_the_configuration(name: str, sshd: MakeSshd, client_keys: ClientKeys) -> None:
    server = sshd()
    client_keys.configure(f"Host web\n  HostName 127.0.0.1\n  Port {server.port}\n  HostKeyAlias thealias\n  StrictHostKeyChecking yes")
    client_keys.known_hosts.write_text(f"thealias {server.public_host_key()}\n")
    assert login(server, client_keys, name, host="web") == server.user


# --- keys ----------------------------------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("kind", ["ed25519", "ecdsa", "rsa"])
def test_every_kind_of_key(name: str, kind: str, sshd: MakeSshd, client_keys: ClientKeys) -> None:
    key = keygen(client_keys.home / "mine", kind=kind)
    server = sshd(public_keys=[public(key)])
    assert login(server, client_keys, name, identity=str(key)) == server.user


@both
def test_the_session_key_comes_first_and_may_be_missing(name: str, sshd: MakeSshd, client_keys: ClientKeys) -> None:
    key = keygen(client_keys.home / "session")
    server = sshd(config=["MaxAuthTries 1"], public_keys=[public(key)])
    assert login(server, client_keys, name, session_key=str(key)) == server.user
    server.authorize(client_keys.public)
    assert login(server, client_keys, name, session_key=str(client_keys.home / "gone")) == server.user


@both
def test_a_session_key_that_is_refused_does_not_hide_the_others(name: str, sshd: MakeSshd, client_keys: ClientKeys) -> None:
    server = sshd()
    key = keygen(client_keys.home / "session")
    assert login(server, client_keys, name, session_key=str(key)) == server.user


@both
def test_the_agents_keys(name: str, agent: Path, sshd: MakeSshd, client_keys: ClientKeys) -> None:
    key = keygen(client_keys.home / "agents", passphrase="")
    add(agent, key)
    key.unlink()
    server = sshd(public_keys=[public(key)])
    client_keys.identity.unlink()
    assert login(server, client_keys, name) == server.user


@both
def test_a_locked_key_is_used_through_the_agent(name: str, agent: Path, sshd: MakeSshd, client_keys: ClientKeys) -> None:
    key = keygen(client_keys.home / "locked")
    add(agent, key)
    subprocess.run(["ssh-keygen", "-q", "-p", "-P", "", "-N", "secret", "-f", key], check=True, capture_output=True)
    server = sshd(config=["MaxAuthTries 1"], public_keys=[public(key)])
    assert login(server, client_keys, name, identity=str(key)) == server.user


def test_identities_only_keeps_the_agents_other_keys_out(agent: Path, sshd: MakeSshd, client_keys: ClientKeys) -> None:
    for number in range(4):
        add(agent, keygen(client_keys.home / f"other{number}"))
    server = sshd(config=["MaxAuthTries 2"])
    with pytest.raises(RefusedError, match="IdentitiesOnly"):
        login(server, client_keys)
    client_keys.configure("IdentitiesOnly yes")
    assert login(server, client_keys) == server.user
    add(agent, client_keys.identity)  # named by IdentityFile: the agent's copy is used, and first
    client_keys.configure("IdentitiesOnly no")
    assert login(server, client_keys) == server.user


def test_an_agent_that_will_not_sign_is_no_obstacle(agent: Path, sshd: MakeSshd, client_keys: ClientKeys) -> None:
    key = keygen(client_keys.home / "unwilling")
    environment = {"SSH_AUTH_SOCK": str(agent), "PATH": os.environ["PATH"], "SSH_ASKPASS": "/bin/false", "DISPLAY": ":9"}
    subprocess.run(["ssh-add", "-q", "-c", key], check=True, capture_output=True, env=environment)
    key.unlink()
    server = sshd(public_keys=[public(key), client_keys.public])
    assert login(server, client_keys) == server.user


def test_an_agent_that_is_gone_is_told_about(sshd: MakeSshd, client_keys: ClientKeys) -> None:
    server = sshd(public_keys=[])
    client_keys.configure("IdentityAgent /nonexistent/agent")
    with pytest.raises(RefusedError, match="the ssh-agent at /nonexistent/agent does not answer"):
        login(server, client_keys)


@both
@pytest.mark.parametrize("kind", ["ed25519", "rsa"])
@pytest.mark.parametrize("where", ["beside the key", "CertificateFile"])
def test_user_certificates(name: str, kind: str, where: str, sshd: MakeSshd, client_keys: ClientKeys, tmp_path: Path) -> None:
    authority, key = keygen(tmp_path / "ca"), keygen(client_keys.home / "certified", kind=kind)
    server = sshd(public_keys=[])
    server.stop()
    server.config += [f"TrustedUserCAKeys {authority}.pub"]
    server.start()
    sign: list[str | Path] = ["ssh-keygen", "-q", "-s", authority, "-I", "me", "-n", server.user, f"{key}.pub"]
    subprocess.run(sign, check=True, capture_output=True)
    if where == "CertificateFile":
        Path(f"{key}-cert.pub").rename(tmp_path / "elsewhere-cert.pub")
        client_keys.configure(f"CertificateFile {tmp_path}/elsewhere-cert.pub")
    client_keys.configure(f"IdentityFile {key}")
    assert login(server, client_keys, name) == server.user


def test_a_certificate_that_the_agent_holds(agent: Path, sshd: MakeSshd, client_keys: ClientKeys, tmp_path: Path) -> None:
    authority, key = keygen(tmp_path / "ca"), keygen(client_keys.home / "certified")
    server = sshd(public_keys=[])
    server.stop()
    server.config += [f"TrustedUserCAKeys {authority}.pub"]
    server.start()
    subprocess.run(["ssh-keygen", "-q", "-s", authority, "-I", "me", "-n", server.user, f"{key}.pub"], check=True, capture_output=True)
    add(agent, key)
    for path in client_keys.home.glob("certified*"):
        path.unlink()
    assert login(server, client_keys) == server.user


def test_a_passphrase_is_never_asked_for_but_explained(sshd: MakeSshd, client_keys: ClientKeys) -> None:
    server = sshd()
    client_keys.identity.unlink()
    keygen(client_keys.home / "locked", passphrase="secret")
    client_keys.configure(f"IdentityFile {client_keys.home}/locked")
    with pytest.raises(RefusedError, match=r"no key to log in with.*key .*/locked has a passphrase: load it into an ssh-agent"):
        login(server, client_keys)


def test_a_refused_login_names_the_users_keys_and_the_way_out(sshd: MakeSshd, client_keys: ClientKeys, tmp_path: Path) -> None:
    server = sshd(public_keys=[])
    with pytest.raises(RefusedError) as caught:
        login(server, client_keys, session_key=str(keygen(tmp_path / "session")))
    message = str(caught.value)
    assert message.startswith(f"{server.address}: login refused with {client_keys.identity}; ")
    assert "authorized_keys" in message
    assert "--ssh-identity" in message
    assert "\n" not in message


def test_an_identity_that_is_none_is_told_about(sshd: MakeSshd, client_keys: ClientKeys, tmp_path: Path) -> None:
    server = sshd(public_keys=[])
    (tmp_path / "junk").write_text("this is no key\n")
    with pytest.raises(RefusedError, match=r"junk cannot be used \(it is not a private key\)"):
        login(server, client_keys, identity=str(tmp_path / "junk"))
    with pytest.raises(RefusedError, match="missing does not exist"):
        login(server, client_keys, identity=str(tmp_path / "missing"))


@both
def test_servers_without_public_keys_are_refused(name: str, sshd: MakeSshd, client_keys: ClientKeys) -> None:
    server = sshd(config=["PubkeyAuthentication no", "KbdInteractiveAuthentication yes", "PasswordAuthentication yes"])
    server.stop()
    text = (server.folder / "sshd_config").read_text()
    assert "PubkeyAuthentication no" in text
    server.start()
    with pytest.raises(RefusedError):
        login(server, client_keys, name)


@root_only
def test_a_second_factor_is_refused_with_its_name(sshd: MakeSshd, client_keys: ClientKeys) -> None:
    server = sshd(config=["AuthenticationMethods publickey,publickey"])
    with pytest.raises(RefusedError, match="more than a key"):
        login(server, client_keys)


# --- ways through other hosts --------------------------------------------------------------------------------------------------


@both
def test_a_proxy_command(name: str, sshd: MakeSshd, client_keys: ClientKeys, tmp_path: Path) -> None:
    server = sshd()
    script = tmp_path / "relay"
    script.write_text(RELAY)
    pid = tmp_path / "pid"
    client_keys.configure(f"Host web\n  HostName 127.0.0.1\n  Port {server.port}\n  ProxyCommand python3 {script} %h %p {pid}")
    connection = connect(server, client_keys, name, host="web")
    assert read(connection.open("id -un")).decode().strip() == server.user
    proxy = int(pid.read_text())
    assert Path(f"/proc/{proxy}").exists()
    connection.close()
    until = time.monotonic() + 10
    while Path(f"/proc/{proxy}").exists():
        assert time.monotonic() < until, "the proxy outlives its connection"
        time.sleep(0.01)


RELAY = """
import os, select, socket, sys
open(sys.argv[3], "w").write(str(os.getpid()))
s = socket.create_connection((sys.argv[1], int(sys.argv[2])))
while True:
    for f in select.select([0, s], [], [])[0]:
        data = os.read(f if f == 0 else s.fileno(), 65536)
        if not data:
            sys.exit()
        s.sendall(data) if f == 0 else os.write(1, data)
"""


def test_a_proxy_command_that_fails_says_why(sshd: MakeSshd, client_keys: ClientKeys) -> None:
    server = sshd()
    client_keys.configure("ProxyCommand echo the tunnel is shut >&2; exit 1")
    with pytest.raises(ConnectError, match="the tunnel is shut"):
        login(server, client_keys, timeout=2)


@both
@root_only
def test_jump_hosts(name: str, sshd: MakeSshd, client_keys: ClientKeys) -> None:
    first, second, server = sshd(user="root"), sshd(user="root"), sshd()
    client_keys.configure(
        f"Host first\n  HostName 127.0.0.1\n  Port {first.port}\n  User root\n"
        f"Host web\n  HostName 127.0.0.1\n  Port {server.port}\n  ProxyJump first,root@127.0.0.1:{second.port}"
    )
    if name == "openssh":  # ssh itself asks about unknown hosts on the way
        client_keys.known_hosts.write_text(first.known_hosts_line() + second.known_hosts_line())
    assert login(server, client_keys, name, host="web") == server.user
    for hop in (first, second):
        assert "Accepted publickey" in hop.log.read_text()


@root_only
def test_a_changed_jump_host_is_refused(sshd: MakeSshd, client_keys: ClientKeys) -> None:
    jump, server = sshd(user="root", host_keys=["ed25519"]), sshd()
    other = public(keygen(client_keys.home / "other")).split()[1]
    client_keys.known_hosts.write_text(f"[127.0.0.1]:{jump.port} ssh-ed25519 {other}\n")
    client_keys.configure(f"Host web\n  HostName 127.0.0.1\n  Port {server.port}\n  ProxyJump {jump.address}")
    with pytest.raises(RefusedError, match="ProxyJump"):
        login(server, client_keys, host="web")


# --- when it does not work -----------------------------------------------------------------------------------------------------


@both
def test_nobody_listens(name: str, client_keys: ClientKeys) -> None:
    with pytest.raises(ConnectError, match=r"(?i)connection refused"):
        find(name).connect(Address(host="127.0.0.1", port=free_port()), client_keys.options())


@both
def test_a_name_that_does_not_resolve(name: str, client_keys: ClientKeys) -> None:
    with pytest.raises(ConnectError, match=r"no-such-host\.invalid"):
        find(name).connect(Address(host="no-such-host.invalid"), client_keys.options())


@both
def test_a_server_that_accepts_and_says_nothing_costs_the_time_limit(name: str, client_keys: ClientKeys) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        began = time.monotonic()
        with pytest.raises(ConnectError):
            find(name).connect(Address(host="127.0.0.1", port=mute.getsockname()[1]), client_keys.options(timeout=1.5))
        assert 1 < time.monotonic() - began < 12


def test_a_server_that_is_none(client_keys: ClientKeys) -> None:
    with socket.create_server(("127.0.0.1", 0)) as web:
        stop = threading.Event()

        def serve() -> None:
            web.settimeout(0.05)
            while not stop.is_set():
                try:
                    visitor = web.accept()[0]
                except TimeoutError:
                    continue
                with visitor:
                    visitor.sendall(b"HTTP/1.0 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            with pytest.raises(ConnectError):
                find("ssh").connect(Address(host="127.0.0.1", port=web.getsockname()[1]), client_keys.options(timeout=2))
        finally:
            stop.set()
            thread.join()


@both
def test_a_cut_connection_is_the_end_of_its_channels(name: str, sshd: MakeSshd, client_keys: ClientKeys) -> None:
    server = sshd()
    connection = connect(server, client_keys, name)
    channel = connection.open("echo begun; cat")
    assert read(channel, 6) == b"begun\n"
    server.kill_connections()
    assert read(channel) == b""
    until = time.monotonic() + 10
    while connection.alive():
        assert time.monotonic() < until
        time.sleep(0.01)
    with pytest.raises((OSError, EOFError)):
        while time.monotonic() < until:
            channel.send(b"x" * 65536)
    with pytest.raises(ConnectError):
        connection.open("true")
    connection.close()


def test_a_frozen_server_blocks_nobody(sshd: MakeSshd, client_keys: ClientKeys) -> None:
    server = sshd()
    connection = connect(server, client_keys)
    channel = connection.open("cat")
    server.pause()
    began, taken = time.monotonic(), 0
    while count := channel.send(bytes(1024 * 1024)):
        taken += count
    with pytest.raises(BlockingIOError):
        channel.recv(1)
    assert time.monotonic() - began < 8
    server.resume()
    assert len(read(channel, taken)) == taken
    server.pause()
    began = time.monotonic()
    connection.close()
    assert time.monotonic() - began < 8
    server.resume()


def test_opening_on_a_frozen_server_ends_with_the_time_limit(sshd: MakeSshd, client_keys: ClientKeys) -> None:
    server = sshd()
    connection = connect(server, client_keys, timeout=1.0)
    server.pause()
    with pytest.raises(ConnectError):
        connection.open("true")
    server.resume()
    connection.close()


@both
def test_refused_channels_are_asked_for_again_then_refused(name: str, sshd: MakeSshd, client_keys: ClientKeys) -> None:
    connection = connect(sshd(config=["MaxSessions 1"]), client_keys, name)
    first = connection.open("cat")
    with pytest.raises(RefusedError, match="MaxSessions"):
        connection.open("true")
    timer = threading.Timer(0.15, first.shutdown_write)
    timer.start()
    assert read(connection.open("echo second")) == b"second\n"
    timer.join()
    connection.close()


@both
def test_twenty_at_once_get_past_max_startups(name: str, sshd: MakeSshd, client_keys: ClientKeys) -> None:
    server = sshd(max_startups="3:60:6")
    made: list[Connection] = []
    errors: list[Exception] = []

    def one() -> None:
        try:
            made.append(connect(server, client_keys, name, timeout=60))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=one) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for connection in made:
        connection.close()
    assert not errors
    assert len(made) == 20


def test_eight_handshakes_at_a_time(private_home: Path) -> None:
    began = time.monotonic()
    slots = [Slot(began + 60) for _ in range(SLOTS)]
    for slot in slots:
        slot.acquire()
    ninth = Slot(began + 0.1)
    ninth.acquire()
    if time.monotonic() - began < HOLD:
        assert all(slot.held for slot in slots)
        assert not ninth.held  # goes on without, when its time is up
    late = Slot(began + 60)
    thread = threading.Thread(target=late.acquire)
    thread.start()
    slots[3].release()
    thread.join(60)
    assert late.held
    for slot in [*slots, late]:
        slot.release()
    assert sorted(path.name for path in (private_home / ".local/state/cloudtask/handshakes").iterdir()) == [str(n) for n in range(8)]


def test_hosts_that_do_not_answer_give_their_slots_back(private_home: Path) -> None:
    began = time.monotonic()
    stuck = [Slot(began + 60) for _ in range(SLOTS)]
    for slot in stuck:
        slot.acquire()
    with Slot(began + 60) as another:
        assert another.held
        assert HOLD / 2 < time.monotonic() - began < HOLD * 4
    for slot in stuck:
        slot.release()


def test_keys_are_exchanged_anew_under_way(sshd: MakeSshd, client_keys: ClientKeys) -> None:
    """The server asks for new keys every megabyte, while data flows both ways and channels end: paramiko's own way hangs there."""
    connection = connect(sshd(config=["RekeyLimit 1M"]), client_keys)
    for _ in range(5):
        channel = connection.open("head -c 8000000 /dev/zero; cat >/dev/null; echo end")
        assert len(read(channel, 8_000_000)) == 8_000_000
        until = time.monotonic() + 20
        left = 3_000_000
        while left:
            left -= channel.send(bytes(min(left, 100_000)))
            assert time.monotonic() < until
        channel.shutdown_write()
        assert read(channel) == b"end\n"
        channel.close()
    assert connection.alive()
    connection.close()


def test_a_channel_that_ends_while_we_ask_for_new_keys(sshd: MakeSshd, client_keys: ClientKeys) -> None:
    """paramiko 5.1 waits for itself there, for 30 s, and then gives the connection up."""
    connection = connect(sshd(), client_keys)
    assert isinstance(connection, SshConnection)
    connection.session.packetizer.REKEY_BYTES = 1_000_000
    for _ in range(20):
        channel = connection.open("head -c 1000000 /dev/zero")
        assert len(read(channel, limit=10)) == 1_000_000
        channel.close()
    connection.close()


@both
def test_nothing_is_left_of_connections_that_ended_or_failed(name: str, sshd: MakeSshd, client_keys: ClientKeys) -> None:
    server = sshd()
    other = keygen(client_keys.home / "other")
    of_other_tests = set(threading.enumerate())

    def rounds() -> set[str]:
        for _ in range(3):
            assert login(server, client_keys, name) == server.user
        with pytest.raises(ConnectError):
            find(name).connect(Address(host="127.0.0.1", port=free_port()), client_keys.options())
        server.authorize(public(other))
        with pytest.raises(RefusedError):
            login(server, client_keys, name)
        server.authorize(client_keys.public)
        until = time.monotonic() + 10
        while left := set(threading.enumerate()) - of_other_tests:
            assert time.monotonic() < until, left
            time.sleep(0.01)
        return set(os.listdir("/proc/self/fd"))

    rounds()
    before = rounds()
    assert len(rounds()) == len(before)
