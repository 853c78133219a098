"""Machines whose address may have been another's: one key counts, whatever files and configuration say.  Real servers, both transports."""

from __future__ import annotations

import base64
import glob
import os
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cloudtask.errors import HostKeyError, RefusedError
from cloudtask.model import Address
from cloudtask.transports import find
from cloudtask.transports.pinning import PinnedKey, PublicKey, parse_key
from cloudtask.transports.sshconfig import HostConfig
from tests.conftest import MakeSshd
from tests.sshd import ClientKeys, Sshd, keygen
from tests.transports.test_channels import read

both = pytest.mark.parametrize("name", ["ssh", "openssh"])
ALIAS = "cloudtask-i-0123"

Login = Callable[..., tuple[str, ...]]


@pytest.fixture
def login(client_keys: ClientKeys, monkeypatch: pytest.MonkeyPatch) -> Iterator[Login]:
    """Connects as to a launched machine; returns the connection's notes."""
    folder = Path(tempfile.mkdtemp(prefix="ct x", dir="/tmp"))  # short, and a name that wants quotes
    monkeypatch.setattr(tempfile, "tempdir", str(folder))

    def connect(name: str, server: Sshd, *, host: str | None = None, **pinned: str) -> tuple[str, ...]:
        address = Address(host=host or server.host, user=server.user, port=None if host else server.port, **pinned)  # type: ignore[arg-type]  # names only
        connection = find(name).connect(address, client_keys.options())
        try:
            assert read(connection.open("echo hello")) == b"hello\n"
            return tuple(connection.notes)
        finally:
            connection.close()
            assert not list(folder.iterdir())

    yield connect
    folder.rmdir()


def other_key(keys: ClientKeys, kind: str = "ed25519") -> str:
    """``type base64`` of nobody's host key."""
    path = keys.home / f"other-{kind}"
    return " ".join(Path(f"{path if path.exists() else keygen(path, kind=kind)}.pub").read_text().split()[:2])


LOOSE = """\
StrictHostKeyChecking no
HostKeyAlias users-own
NoHostAuthenticationForLocalhost yes
VerifyHostKeyDNS yes
UpdateHostKeys yes
CheckHostIP yes
"""


@both
@pytest.mark.parametrize("alias", [None, ALIAS])
@pytest.mark.parametrize("strict", ["yes", "no", "ask"])
def test_the_key_of_the_machine_is_accepted_and_nothing_is_written(
    name: str, alias: str | None, strict: str, login: Login, sshd: MakeSshd, client_keys: ClientKeys
) -> None:
    server = sshd()
    stale = other_key(client_keys)
    lines = f"127.0.0.1 {stale}\n[127.0.0.1]:{server.port} {stale}\nusers-own {stale}\n* {stale}\n"
    client_keys.known_hosts.write_text(lines)
    client_keys.accepted.parent.mkdir(parents=True)
    client_keys.accepted.write_text(f"{ALIAS} {stale}\ncloudtask-pinned {stale}\n")
    before = client_keys.accepted.read_text()
    client_keys.configure(LOOSE.replace("StrictHostKeyChecking no", f"StrictHostKeyChecking {strict}"))
    more = {"alias": alias} if alias else {}
    assert login(name, server, host_key=server.public_host_key(), **more) == ()
    assert (client_keys.known_hosts.read_text(), client_keys.accepted.read_text()) == (lines, before)


@both
@pytest.mark.parametrize("alias", [None, ALIAS])
def test_any_other_key_is_refused_wherever_it_is_known(
    name: str, alias: str | None, login: Login, sshd: MakeSshd, client_keys: ClientKeys, tmp_path: Path
) -> None:
    server = sshd()
    real = server.public_host_key()
    everywhere = f"* {real}\n{ALIAS} {real}\ncloudtask-pinned {real}\nusers-own {real}\n{server.known_hosts_line()}"
    client_keys.known_hosts.write_text(everywhere)
    client_keys.accepted.parent.mkdir(parents=True)
    client_keys.accepted.write_text(everywhere)
    (tmp_path / "global").write_text(everywhere)
    command = f"KnownHostsCommand /bin/cat {tmp_path}/global\n" if name == "openssh" else ""
    client_keys.config.write_text(f"IdentityFile {client_keys.identity}\nGlobalKnownHostsFile {tmp_path}/global\n")
    client_keys.configure(f"{LOOSE}UserKnownHostsFile {client_keys.known_hosts}\n{command}")
    wanted = other_key(client_keys)
    with pytest.raises(HostKeyError) as caught:
        login(name, server, host_key=wanted, **({"alias": alias} if alias else {}))
    text = str(caught.value)
    assert parse_key(wanted).fingerprint in text and parse_key(real).fingerprint in text and "\n" not in text
    assert client_keys.accepted.read_text() == client_keys.known_hosts.read_text() == everywhere


@both
@pytest.mark.parametrize("kind", ["ed25519", "ecdsa", "rsa"])
def test_a_machine_with_several_keys_is_asked_for_the_right_one(name: str, kind: str, login: Login, sshd: MakeSshd) -> None:
    server = sshd(host_keys=["ed25519", "ecdsa", "rsa"])
    assert login(name, server, host_key=server.public_host_key(kind)) == ()


@both
def test_a_machine_without_a_key_of_that_type_is_another(name: str, login: Login, sshd: MakeSshd, client_keys: ClientKeys) -> None:
    server = sshd(host_keys=["ecdsa"])
    with pytest.raises(HostKeyError, match="another host key than the one of this machine"):
        login(name, server, host_key=other_key(client_keys))
    client_keys.configure("HostKeyAlgorithms ecdsa-sha2-nistp256")  # which is about other hosts
    with pytest.raises(HostKeyError):
        login(name, server, host_key=other_key(client_keys))
    assert login(name, server, host_key=server.public_host_key("ecdsa")) == ()


@both
def test_the_users_algorithms_do_not_stand_in_the_way(name: str, login: Login, sshd: MakeSshd, client_keys: ClientKeys) -> None:
    server = sshd()
    client_keys.configure("HostKeyAlgorithms rsa-sha2-512")
    assert login(name, server, host_key=server.public_host_key()) == ()


@both
@pytest.mark.parametrize("words", [{"host_key": "ssh-ed25519"}, {"host_key": "ssh-ed25519 AAAA"}, {"alias": "a,*"}, {"alias": "-x"}])
def test_what_can_be_no_key_and_no_name_is_refused(name: str, words: dict[str, str], login: Login, sshd: MakeSshd) -> None:
    with pytest.raises(RefusedError, match=r"no host key|name of a host key"):
        login(name, sshd(), **words)


# --- without a key: the first one counts -----------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("strict", ["yes", "no", "ask"])
def test_the_first_key_is_taken_on_trust_told_and_kept(
    name: str, strict: str, login: Login, sshd: MakeSshd, client_keys: ClientKeys
) -> None:
    server = sshd()
    stale = f"127.0.0.1 {other_key(client_keys)}\n[127.0.0.1]:{server.port} {other_key(client_keys)}\n"
    client_keys.known_hosts.write_text(stale)
    client_keys.configure(LOOSE.replace("StrictHostKeyChecking no", f"StrictHostKeyChecking {strict}"))
    notes = login(name, server, alias=ALIAS)
    kind, _, _ = client_keys.accepted.read_text().partition("\n")[0].partition(" ")[2].partition(" ")
    shown = server.public_host_key("ed25519" if kind == "ssh-ed25519" else "ecdsa")
    assert notes == (f"host key {parse_key(shown).fingerprint} taken on trust (not verified): pinned to this machine",)
    assert client_keys.accepted.read_text() == f"{ALIAS} {shown}\n"
    assert client_keys.accepted.stat().st_mode & 0o777 == 0o600
    assert login("openssh" if name == "ssh" else "ssh", server, alias=ALIAS) == notes
    assert client_keys.accepted.read_text() == f"{ALIAS} {shown}\n"
    assert client_keys.known_hosts.read_text() == stale


@both
def test_another_machine_at_the_address_has_a_name_of_its_own(name: str, login: Login, sshd: MakeSshd, client_keys: ClientKeys) -> None:
    server = sshd(host_keys=["ed25519"])
    login(name, server, alias=ALIAS)
    server.stop()
    keygen_again(server)
    server.start()
    login(name, server, alias="cloudtask-i-4567")
    assert [line.split()[0] for line in client_keys.accepted.read_text().splitlines()] == [ALIAS, "cloudtask-i-4567"]


def keygen_again(server: Sshd, kind: str = "ed25519") -> None:
    """A new host key."""
    for path in glob.glob(f"{server.folder}/host_*"):
        os.unlink(path)
    server.host_keys = [keygen(server.folder / f"host_{kind}", kind=kind)]


@both
@pytest.mark.parametrize("kind", ["ed25519", "ecdsa"])
def test_a_key_that_changed_is_refused(name: str, kind: str, login: Login, sshd: MakeSshd, client_keys: ClientKeys) -> None:
    server = sshd(host_keys=["ed25519"])
    login(name, server, alias=ALIAS)
    before = client_keys.accepted.read_text()
    server.stop()
    keygen_again(server, kind)
    server.start()
    client_keys.configure(LOOSE)
    with pytest.raises(HostKeyError):
        login(name, server, alias=ALIAS)
    assert client_keys.accepted.read_text() == before


@both
def test_a_key_is_kept_only_once_the_login_works(name: str, login: Login, sshd: MakeSshd, client_keys: ClientKeys) -> None:
    """An image may show the key it came with until cloud-init has made it a machine of ours."""
    server = sshd(host_keys=["ed25519"], public_keys=[])
    for _ in range(2):
        with pytest.raises(RefusedError) as caught:
            login(name, server, alias=ALIAS)
        assert not isinstance(caught.value, HostKeyError)
    assert not client_keys.accepted.exists()
    server.stop()
    keygen_again(server)
    server.authorize(client_keys.public)
    server.start()
    assert login(name, server, alias=ALIAS)
    assert client_keys.accepted.read_text() == f"{ALIAS} {server.public_host_key()}\n"


@both
def test_an_alias_in_capitals_is_one_name(name: str, login: Login, sshd: MakeSshd, client_keys: ClientKeys) -> None:
    server = sshd()
    login(name, server, alias="Cloudtask-ABC")
    login(name, server, alias="cloudtask-abc")
    assert client_keys.accepted.read_text().count("\n") == 1


def test_two_who_meet_a_machine_at_once_keep_one_key(tmp_path: Path) -> None:
    config = HostConfig(name="h", host="h", port=22, user="u", alias=ALIAS, pinned=True)
    ours = tmp_path / "known_hosts"
    pins = [PinnedKey(config, str(ours)) for _ in range(6)]
    kind = "ssh-ed25519"
    blobs = [len(kind).to_bytes(4, "big") + kind.encode() + bytes([number % 2] * 36) for number in range(6)]
    refused: list[HostKeyError] = []

    def settle(pin: PinnedKey, blob: bytes) -> None:
        pin.check(kind, blob)
        try:
            assert pin.settle()
        except HostKeyError as error:
            refused.append(error)

    threads = [threading.Thread(target=settle, args=pair) for pair in zip(pins, blobs, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ours.read_text().count("\n") == 1 and len(refused) == 3


# --- the rest of the configuration counts ------------------------------------------------------------------------------------


@both
@pytest.mark.skipif(os.getuid() != 0, reason="logs in as root and as somebody else")
def test_the_way_through_a_jump_host_is_the_users(name: str, login: Login, sshd: MakeSshd, client_keys: ClientKeys) -> None:
    jump, server = sshd(user="root"), sshd(host_keys=["ed25519"])
    client_keys.known_hosts.write_text(jump.known_hosts_line())
    client_keys.configure(f"Host web\n  HostName 127.0.0.1\n  Port {server.port}\n  ProxyJump {jump.address}\n  HostKeyAlias %k")
    assert login(name, server, host="web", host_key=server.public_host_key(), alias=ALIAS) == ()
    assert "Accepted publickey" in jump.log.read_text()
    with pytest.raises(HostKeyError, match="than the one of this machine"):
        login(name, server, host="web", host_key=other_key(client_keys))
    client_keys.known_hosts.write_text(f"[127.0.0.1]:{jump.port} {other_key(client_keys)}\n")
    with pytest.raises(RefusedError, match="HOST KEY has changed"):
        login(name, server, host="web", host_key=server.public_host_key())


def test_a_fingerprint_is_ssh_keygens(tmp_path: Path) -> None:
    path = keygen(tmp_path / "key")
    key = parse_key(Path(f"{path}.pub").read_text())
    told = subprocess.run(["ssh-keygen", "-l", "-f", f"{path}.pub"], check=True, capture_output=True, text=True).stdout
    assert key.fingerprint in told.split()
    assert parse_key(str(key)) == key == PublicKey("ssh-ed25519", base64.b64decode(str(key).split()[1]))
