"""The session's key pair: what ssh itself says of it, and where it is."""

from __future__ import annotations

import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from cloudtask.errors import SessionError
from cloudtask.session import keys
from tests.session.samples import UID


@pytest.fixture(autouse=True)
def state_home(private_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An $XDG_STATE_HOME of the test's own."""
    monkeypatch.setenv("XDG_STATE_HOME", str(private_home / "state"))
    return private_home / "state"


def test_openssh_and_paramiko_read_it(state_home: Path) -> None:
    import paramiko

    path = state_home / "cloudtask" / "keys" / UID
    path.parent.mkdir(mode=0o755, parents=True)
    line = keys.make_key(UID)
    assert keys.key_path(UID) == str(path)
    assert line.startswith("ssh-ed25519 AAAA") and line.endswith(f" cloudtask-{UID}") and "\n" not in line
    assert paramiko.Ed25519Key.from_private_key_file(str(path)).get_base64() == line.split()[1]
    if shutil.which("ssh-keygen"):
        said = subprocess.run(["ssh-keygen", "-y", "-f", str(path)], check=True, capture_output=True, text=True).stdout
        assert said.split()[:2] == line.split()[:2]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_a_resume_finds_the_old_one_and_makes_a_broken_one_anew(state_home: Path) -> None:
    first = keys.make_key(UID)
    assert keys.make_key(UID) == keys.public_key(UID) == first
    Path(keys.key_path(UID)).write_text("no key\n")
    second = keys.make_key(UID)
    assert second != first and keys.public_key(UID) == second
    assert keys.make_key("2-0123456789ab") != second


def test_removed_once_and_twice() -> None:
    keys.make_key(UID)
    keys.remove_key(UID)
    keys.remove_key(UID)
    with pytest.raises(FileNotFoundError):
        keys.public_key(UID)


def test_without_xdg_state_home(private_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("", "relative/folder"):
        monkeypatch.setenv("XDG_STATE_HOME", value)
        assert keys.key_path(UID) == str(private_home / ".local/state/cloudtask/keys" / UID)


def test_where_it_cannot_be_written(state_home: Path) -> None:
    state_home.write_text("a file where a folder should be")
    with pytest.raises(SessionError, match=r"key cannot be written: .*; set XDG_STATE_HOME"):
        keys.make_key(UID)
