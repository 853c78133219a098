"""Which of the user's keys is authorised on machines that are launched for him: the first that a login would offer."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from cloudtask.errors import UsageError
from cloudtask.transports import ConnectOptions
from cloudtask.transports.own_key import own_public_key
from tests.sshd import ClientKeys, keygen
from tests.transports.test_login import add, agent, public

__all__ = ["agent"]


def bare(key: Path) -> str:
    """Type and key, without the comment."""
    return " ".join(public(key).split()[:2])


def with_config(folder: Path, *lines: str) -> str:
    """An ssh configuration with these lines alone."""
    (folder / "ssh_config").write_text("\n".join([*lines, ""]))
    return str(folder / "ssh_config")


NOTHING = ("IdentityFile /nonexistent", "IdentityAgent none")


def test_the_key_of_the_configuration(client_keys: ClientKeys) -> None:
    assert own_public_key(ConnectOptions(ssh_config=str(client_keys.config))) == bare(client_keys.identity)


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa", "rsa"])
def test_the_identity_that_was_named_and_no_other(client_keys: ClientKeys, tmp_path: Path, kind: str) -> None:
    key = keygen(tmp_path / "mine", kind=kind)
    options, line = ConnectOptions(identity=str(key), ssh_config=str(client_keys.config)), bare(key)
    assert own_public_key(options) == line
    Path(f"{key}.pub").unlink()
    assert own_public_key(options) == line


def test_a_passphrase_is_in_the_way_and_the_agent_opens_it(tmp_path: Path, agent: Path) -> None:
    key, open_key = keygen(tmp_path / "locked", passphrase="secret"), keygen(tmp_path / "open")
    options = ConnectOptions(identity=str(key), ssh_config=with_config(tmp_path, f"IdentityFile {open_key}"))
    with pytest.raises(UsageError, match=r"--ssh-identity=.*locked: no key to authorise .*passphrase: ssh-add"):
        own_public_key(options)
    subprocess.run(["ssh-keygen", "-q", "-p", "-P", "secret", "-N", "", "-f", key], check=True, capture_output=True)
    add(agent, key)
    subprocess.run(["ssh-keygen", "-q", "-p", "-P", "", "-N", "secret", "-f", key], check=True, capture_output=True)
    assert own_public_key(options) == bare(key)


def test_the_systems_ssh_may_use_what_we_cannot_read(tmp_path: Path) -> None:
    key = keygen(tmp_path / "locked", passphrase="secret")
    options = ConnectOptions(ssh_config=with_config(tmp_path, f"IdentityFile {key}", "IdentityAgent none"))
    assert own_public_key(options, by_ssh=True) == bare(key)
    with pytest.raises(UsageError, match=r"no ssh key of yours .*passphrase: ssh-add"):
        own_public_key(options)


def test_a_key_that_only_the_agent_has(tmp_path: Path, agent: Path) -> None:
    key = keygen(tmp_path / "away")
    line = bare(key)
    add(agent, key)
    key.unlink()
    assert own_public_key(ConnectOptions(ssh_config=with_config(tmp_path, "IdentityFile /nonexistent"))) == line


def test_a_certificate_is_not_authorised_but_the_key_that_it_is_for(tmp_path: Path) -> None:
    authority, key = keygen(tmp_path / "authority"), keygen(tmp_path / "mine")
    subprocess.run(["ssh-keygen", "-q", "-s", authority, "-I", "me", "-n", "root", f"{key}.pub"], check=True, capture_output=True)
    options = ConnectOptions(ssh_config=with_config(tmp_path, f"IdentityFile {key}", "IdentityAgent none"))
    assert own_public_key(options) == bare(key)


def test_no_key_at_all(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="make one with ssh-keygen, load one into ssh-agent, or name one with --ssh-identity"):
        own_public_key(ConnectOptions(ssh_config=with_config(tmp_path, *NOTHING)))


def test_a_file_that_is_no_key(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("hello\n")
    with pytest.raises(UsageError, match="not a private key"):
        own_public_key(ConnectOptions(identity=str(file), ssh_config=with_config(tmp_path, *NOTHING)))
