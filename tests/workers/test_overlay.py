"""The overlay, by rsync and by tar, over the local transport into a scratch root."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cloudtask.addresses import parse_address
from cloudtask.errors import SetupError
from cloudtask.transports import Connection, find
from cloudtask.workers.setup import apply_overlay
from tests.conftest import MakeSshd
from tests.sshd import ClientKeys

from .conftest import MakePath

Apply = Callable[..., bytes]

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.skipif(shutil.which("rsync") is None, reason="rsync is not installed"),
]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The worker's root."""
    folder = tmp_path / "worker"
    folder.mkdir()
    return folder


@pytest.fixture
def overlay(tmp_path: Path) -> Path:
    folder = tmp_path / "over lay"
    folder.mkdir()
    return folder


@pytest.fixture(params=["rsync", "tar"])
def apply(
    request: pytest.FixtureRequest, connection: Connection, overlay: Path, root: Path, make_path: MakePath, monkeypatch: pytest.MonkeyPatch
) -> Apply:
    """Applies the overlay one of the two ways; returns what was logged."""
    if request.param == "tar":
        monkeypatch.setenv("PATH", str(make_path("rsync")))

    def run(seconds: float = 60) -> bytes:
        said: list[bytes] = []
        try:
            apply_overlay(connection, str(overlay), said.append, time.monotonic() + seconds, root=str(root))
        finally:
            run.said = b"".join(said)  # type: ignore[attr-defined]  # hung on the function for the test
        return b"".join(said)

    return run


def put(path: Path, text: str = "new", mode: int = 0o644) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)
    return path


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def test_puts_files_and_folders_into_place(overlay: Path, root: Path, apply: Apply) -> None:
    put(overlay / "etc/deep/er/file", "text")
    (overlay / "empty").mkdir()
    apply()
    assert (root / "etc/deep/er/file").read_text() == "text"
    assert (root / "empty").is_dir()


def test_existing_folders_keep_mode_and_owner(overlay: Path, root: Path, apply: Apply) -> None:
    put(overlay / "etc/file").parent.chmod(0o755)
    (root / "etc").mkdir(mode=0o711)
    overlay.chmod(0o700)
    root.chmod(0o751)
    if os.getuid() == 0:
        os.chown(root / "etc", 1234, 1235)
        os.chown(root, 1234, 1235)
    before = [(p.stat().st_mode, p.stat().st_uid, p.stat().st_gid) for p in (root, root / "etc")]
    apply()
    assert (root / "etc/file").exists()
    assert [(p.stat().st_mode, p.stat().st_uid, p.stat().st_gid) for p in (root, root / "etc")] == before


def test_follows_symlinks_to_folders_on_the_worker(overlay: Path, root: Path, apply: Apply) -> None:
    (root / "usr/bin").mkdir(parents=True)
    (root / "bin").symlink_to("usr/bin")
    put(overlay / "bin/tool", mode=0o755)
    os.link(overlay / "bin/tool", overlay / "bin/twin")
    apply()
    assert (root / "bin").is_symlink()
    assert (root / "usr/bin/tool").read_text() == "new"
    assert (root / "usr/bin/twin").samefile(root / "usr/bin/tool")


def test_symlinks_stay_symlinks_and_hard_links_hard_links(overlay: Path, root: Path, apply: Apply) -> None:
    put(overlay / "a/one")
    (overlay / "b").mkdir()
    os.link(overlay / "a/one", overlay / "b/two")
    (overlay / "absolute").symlink_to("/no/where")
    (overlay / "relative").symlink_to("../a/one")
    (overlay / "folder").symlink_to("a")
    put(root / "relative", "a file that the link replaces")
    apply()
    assert os.readlink(root / "absolute") == "/no/where"
    assert os.readlink(root / "relative") == "../a/one"
    assert os.readlink(root / "folder") == "a"
    assert (root / "a/one").stat().st_ino == (root / "b/two").stat().st_ino


def test_files_belong_to_the_login_user(overlay: Path, root: Path, apply: Apply) -> None:
    put(overlay / "d/file")
    if os.getuid() == 0:
        for path in (overlay / "d", overlay / "d/file"):
            os.chown(path, 1234, 1235)
        os.chown(put(root / "d2/file"), 1234, 1235)
    put(overlay / "d2/file", "newer")
    apply()
    for path in (root / "d", root / "d/file", root / "d2/file"):
        assert (path.stat().st_uid, path.stat().st_gid) == (os.getuid(), os.getgid()), path
    assert (root / "d2/file").read_text() == "newer"


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_new_files_have_the_overlays_mode_less_umask_and_no_setuid(umask: int, overlay: Path, root: Path, apply: Apply) -> None:
    for mode in (0o666, 0o777, 0o640, 0o4755, 0o2711):
        put(overlay / f"{mode:o}", mode=mode)
    put(overlay / "d/x").parent.chmod(0o777)
    before = os.umask(umask)
    try:
        apply()
    finally:
        os.umask(before)
    assert {mode_of(root / f"{mode:o}") for mode in (0o666,)} == {0o666 & ~umask}
    for mode in (0o777, 0o640, 0o4755, 0o2711):
        assert mode_of(root / f"{mode:o}") == mode & 0o777 & ~umask
    assert mode_of(root / "d") == 0o777 & ~umask


def test_existing_files_keep_their_mode_but_for_the_executable_bits(overlay: Path, root: Path, apply: Apply) -> None:
    cases = {"secret": (0o644, 0o640, 0o640), "run": (0o755, 0o644, 0o755), "stop": (0o644, 0o750, 0o640), "own": (0o755, 0o600, 0o700)}
    for name, (theirs, existing, _) in cases.items():
        put(overlay / name, "from the overlay", theirs)
        put(root / name, "old", existing)
    apply()
    assert {name: mode_of(root / name) for name in cases} == {name: expected for name, (_, _, expected) in cases.items()}
    assert {(root / name).read_text() for name in cases} == {"from the overlay"}


def test_names_may_hold_any_bytes(overlay: Path, root: Path, apply: Apply) -> None:
    names = [b"\xff\xfe", b"new\nline", b"quote'\"`$(x)", b"-rf", b" space ", b"*", b"back\\slash", "ümlaut".encode(), b"l" * 200]
    for name in names:
        Path(os.fsdecode(os.path.join(os.fsencode(overlay), name))).write_bytes(name)
    apply()
    assert {name: Path(os.fsdecode(os.path.join(os.fsencode(root), name))).read_bytes() for name in names} == {name: name for name in names}
    assert sorted(os.listdir(os.fsencode(root))) == sorted(names)


def test_passes_over_other_kinds_of_files(overlay: Path, root: Path, apply: Apply) -> None:
    os.mkfifo(overlay / "pipe")
    put(overlay / "file")
    said = apply()
    assert os.listdir(root) == ["file"]
    assert b"skipping non-regular file" in said and b"pipe" in said


def test_twenty_thousand_small_files(overlay: Path, root: Path, apply: Apply) -> None:
    for folder in range(20):
        (overlay / str(folder)).mkdir()
        for number in range(1000):
            (overlay / str(folder) / f"{number}.txt").write_text(str(number))
    apply()
    assert sum(len(files) for _, _, files in os.walk(root)) == 20_000
    assert (root / "19/999.txt").read_text() == "999"


def test_large_files_arrive_whole(overlay: Path, root: Path, apply: Apply) -> None:
    content = os.urandom(1 << 20) * 24
    (overlay / "large").write_bytes(content)
    apply()
    assert (root / "large").read_bytes() == content


def test_a_second_time_changes_what_changed(overlay: Path, root: Path, apply: Apply) -> None:
    put(overlay / "same")
    put(overlay / "other", "first")
    apply()
    put(overlay / "other", "second, longer")
    apply()
    assert (root / "same").read_text() == "new"
    assert (root / "other").read_text() == "second, longer"


def test_says_in_one_line_what_went_wrong(overlay: Path, root: Path, apply: Apply) -> None:
    put(overlay / "thing", "a file")
    put(root / "thing/inside", "a folder that is not empty")
    with pytest.raises(SetupError) as caught:
        apply()
    message = str(caught.value)
    assert message.startswith(f"overlay {overlay} to local: ")
    assert "thing" in message and "\n" not in message and "Exiting with failure" not in message
    assert b"thing" in apply.said  # type: ignore[attr-defined]  # hung on the function for the test


def no_process_has(word: str) -> bool:
    return not subprocess.run(["pgrep", "-f", word], capture_output=True, check=False).stdout.split()


def wait_until(condition: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, "it did not come true"
        pause.wait(0.02)


HANGING = {
    "rsync": {"rsync": "exec sleep 98765.4321\n"},
    "tar": {"tar": 'case $1 in --version) echo "tar (GNU tar) 1.34";; *) exec sleep 8;; esac\n'},
}


@pytest.mark.parametrize("way", HANGING)
@pytest.mark.parametrize("how", ["deadline", "cancelled"])
def test_is_over_at_the_deadline_or_when_called_off(
    way: str, how: str, connection: Connection, overlay: Path, root: Path, make_path: MakePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(make_path("rsync", **HANGING[way])))
    (overlay / "large").write_bytes(bytes(4 << 20))
    cancelled = threading.Event()
    seconds = 1.0 if how == "deadline" else 60.0
    if how == "cancelled":
        threading.Timer(0.5, cancelled.set).start()
    began = time.monotonic()
    with pytest.raises(SetupError, match="not done in 1 s; a larger --setup-timeout" if how == "deadline" else "called off"):
        apply_overlay(connection, str(overlay), lambda data: None, began + seconds, root=str(root), cancelled=cancelled)
    assert time.monotonic() - began < 6
    if way == "rsync":
        wait_until(lambda: no_process_has("sleep 98765.4321"))


def test_needs_rsync_or_gnu_tar(
    connection: Connection, overlay: Path, root: Path, make_path: MakePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(make_path("rsync", tar="echo 'tar (busybox) 1.35'\n")))
    with pytest.raises(SetupError, match="needs rsync on both machines, or GNU tar on the worker"):
        apply_overlay(connection, str(overlay), lambda data: None, time.monotonic() + 30, root=str(root))


def test_names_a_folder_that_is_not_there(connection: Connection, tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="nothing-here to local: there is no such folder"):
        apply_overlay(connection, str(tmp_path / "nothing-here"), lambda data: None, time.monotonic() + 30, root=str(tmp_path))


def test_a_lost_connection_is_a_setup_error(connection: Connection, overlay: Path, root: Path) -> None:
    connection.close()
    with pytest.raises(SetupError, match="connection is closed"):
        apply_overlay(connection, str(overlay), lambda data: None, time.monotonic() + 30, root=str(root))


def test_over_one_ssh_connection(sshd: MakeSshd, client_keys: ClientKeys, overlay: Path) -> None:
    server = sshd()
    put(overlay / "bin/tool", "x" * 100_000, mode=0o755)
    (overlay / "large").write_bytes(os.urandom(1 << 20) * 20)
    target = server.account.home / "ro ot"
    target.mkdir()
    os.chown(target, server.account.uid, server.account.gid)
    connection = find("ssh").connect(parse_address(server.address), client_keys.options())
    apply_overlay(connection, str(overlay), lambda data: None, time.monotonic() + 60, root=str(target))
    connection.close()
    assert (target / "bin/tool").read_text() == "x" * 100_000 and mode_of(target / "bin/tool") == 0o755
    assert (target / "large").read_bytes() == (overlay / "large").read_bytes()
    assert (target / "large").stat().st_uid == server.account.uid
    assert server.log.read_text(errors="replace").count("Accepted publickey") == 1


def test_a_cut_ssh_connection_is_a_setup_error(sshd: MakeSshd, client_keys: ClientKeys, overlay: Path) -> None:
    server = sshd()
    (overlay / "large").write_bytes(bytes(1 << 20))
    connection = find("ssh").connect(parse_address(server.address), client_keys.options())
    said: list[bytes] = []
    threading.Timer(0.5, server.kill_connections).start()
    target = server.account.home / "pipe"
    target.mkdir()
    with pytest.raises(SetupError, match=f"overlay {overlay} to {server.account.name}@"):
        for _ in range(500):
            apply_overlay(connection, str(overlay), said.append, time.monotonic() + 30, root=str(target))
    connection.close()
