"""Numbering, finding, and files that are opened safely."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cloudtask.errors import SessionError, UnknownSessionError
from cloudtask.session import layout


@pytest.fixture(params=[0o000, 0o022, 0o777], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path: Path | str) -> int:
    return stat.S_IMODE(os.stat(path).st_mode)


def make(sessions: Path, number: int, *files: str) -> None:
    (sessions / str(number)).mkdir()
    for name in files:
        (sessions / str(number) / name).touch()


def test_modes_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    sessions = str(tmp_path / "sessions")
    layout.make_sessions_directory(sessions)
    number = layout.claim(sessions)
    root = os.path.join(sessions, str(number))
    layout.make_directory(os.path.join(root, "workers"))
    layout.write_inside(root, "jobs", b"x\n")
    os.close(layout.open_inside(root, "workers/1.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND))
    assert [mode(sessions), mode(root), mode(root + "/workers")] == [0o700] * 3
    assert [mode(root + "/jobs"), mode(root + "/workers/1.log")] == [0o600] * 2


def test_a_sessions_directory_that_exists_keeps_its_mode(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    layout.make_sessions_directory(str(tmp_path))
    assert mode(tmp_path) == 0o755


def test_numbers_go_on_after_the_highest_whatever_it_is(tmp_path: Path) -> None:
    assert layout.claim(str(tmp_path)) == 1
    make(tmp_path, 7, "conf")
    (tmp_path / "9").touch()
    (tmp_path / "12x").mkdir()
    assert layout.claim(str(tmp_path)) == 10


def test_many_at_once_get_a_number_each(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        claimed = list(pool.map(lambda _: layout.claim(str(tmp_path)), range(40)))
    assert sorted(claimed) == list(range(1, 41))


def test_last_passes_over_the_originals_and_what_was_half_made(tmp_path: Path) -> None:
    make(tmp_path, 1, layout.JOURNAL)
    make(tmp_path, 3, layout.JOURNAL)
    make(tmp_path, 4, "conf", "jobs", "log")
    make(tmp_path, 5, "jobs")
    assert layout.find(str(tmp_path), "last") == 3
    assert layout.find(str(tmp_path), 1) == layout.find(str(tmp_path), "1") == 1
    assert layout.originals(str(tmp_path)) == [4]


@pytest.mark.parametrize(
    ("which", "says"),
    [
        ("9", "has 1-2"),
        ("0", "no session 0"),
        ("-1", "number or 'last'"),
        ("x/../1", "number or 'last'"),
        ("٣", "number or 'last'"),
        ("9" * 5000, "number or 'last'"),
        ("4", "original cloudtask"),
        ("5", "never completely made"),
    ],
)
def test_an_unknown_one_is_named_on_one_line(tmp_path: Path, which: str, says: str) -> None:
    for number in (1, 2):
        make(tmp_path, number, layout.JOURNAL)
    make(tmp_path, 4, "conf")
    make(tmp_path, 5)
    with pytest.raises(UnknownSessionError, match=says) as caught:
        layout.find(str(tmp_path), which)
    assert "\n" not in str(caught.value) and caught.value.exit_status == 2


def test_where_there_is_nothing(tmp_path: Path) -> None:
    with pytest.raises(UnknownSessionError, match="has no sessions"):
        layout.find(str(tmp_path / "missing"), "last")
    make(tmp_path, 4, "conf")
    with pytest.raises(UnknownSessionError, match="passed over, made by the original cloudtask: 4"):
        layout.find(str(tmp_path), "last")
    (tmp_path / "file").touch()
    with pytest.raises(SessionError, match="cannot be read"):
        layout.find(str(tmp_path / "file"), "last")


def test_no_symbolic_link_is_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    (outside / "workers").mkdir(parents=True)
    (outside / "workers" / "1.log").write_bytes(b"precious")
    root = tmp_path / "1"
    root.mkdir()
    (root / "workers").symlink_to(outside / "workers")
    (root / "log").symlink_to(outside / "workers" / "1.log")
    for name in ("log", "workers/1.log"):
        for flags in (os.O_RDONLY, os.O_WRONLY | os.O_CREAT | os.O_TRUNC):
            with pytest.raises(SessionError, match="symbolic link"):
                layout.open_inside(str(root), name, flags)
    assert (outside / "workers" / "1.log").read_bytes() == b"precious"


def test_write_inside_replaces_a_link_and_what_a_crash_left(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(b"precious")
    (tmp_path / "conf.yaml").symlink_to(outside)
    (tmp_path / "conf.yaml.new").symlink_to(outside)
    layout.write_inside(str(tmp_path), "conf.yaml", b"new")
    assert outside.read_bytes() == b"precious"
    assert (tmp_path / "conf.yaml").read_bytes() == b"new"
    assert not (tmp_path / "conf.yaml.new").exists()


def test_descriptors_are_not_inherited_and_none_is_left_open(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    descriptor = layout.open_inside(str(tmp_path), "log", os.O_WRONLY | os.O_CREAT)
    assert not os.get_inheritable(descriptor)
    os.close(descriptor)
    for name in ("missing", "missing/file"):
        with pytest.raises(FileNotFoundError) as caught:
            layout.open_inside(str(tmp_path), name, os.O_RDONLY)
        assert caught.value.filename == str(tmp_path / name)
    assert len(os.listdir("/proc/self/fd")) == before


def test_names() -> None:
    assert layout.worker_log_name(2) == "workers/2.log"
    assert layout.worker_log_name(2, 4) == "workers/2.4.log"
    assert layout.index_name("workers/2.4.log") == "workers/2.4.index"
