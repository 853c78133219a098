"""The door: sessions made, opened, run by one at a time, and taken up after any kind of end."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from cloudtask.errors import JournalError, SessionBusyError, SessionError, StorageError, UnknownSessionError
from cloudtask.model import Attempt
from cloudtask.session import layout, records
from cloudtask.session.replay import replay
from cloudtask.session.session import NewSession, Session
from cloudtask.states import JobState
from tests.session.samples import NOW, end, good, run, worker

JOBS = [b"one", b" two  'x y' ", b"\xff\xfe \r", b""]


def create(sessions: Path, **more: object) -> Session:
    return Session.create(str(sessions), NewSession(**{"jobs": JOBS, "version": "2.0", **more}))  # type: ignore[arg-type]  # mixed keywords


def test_a_new_session_is_complete_and_private(tmp_path: Path) -> None:
    sessions = tmp_path / "some" / "where"
    with create(sessions, values={"timeout": 60}, sources={"timeout": "--timeout"}) as session:
        root = sessions / "1"
        assert sorted(os.listdir(root)) == ["conf.yaml", "jobs", "journal.jsonl", "lock", "workers"]
        assert {stat.S_IMODE(path.stat().st_mode) for path in [sessions, root, root / "workers"]} == {0o700}
        assert {stat.S_IMODE(path.stat().st_mode) for path in root.iterdir() if path.is_file()} == {0o600}
        assert (session.number, session.uid[:2], len(session.uid)) == (1, "1-", 14)
        assert session.conf() == ({"timeout": 60}, {"timeout": "--timeout"})
        state = session.state
        assert (state.header.jobs, state.header.mode, state.header.version, state.runs) == (4, "words", "2.0", 0)
    with create(sessions) as second:
        assert second.number == 2 and second.uid != session.uid


@pytest.mark.parametrize("mode", ["words", "line", "nul"])
def test_jobs_come_back_exactly_as_given(tmp_path: Path, mode: str) -> None:
    jobs = [*JOBS, b"two\nlines" if mode == "nul" else b"no \0"]
    for given in (jobs, []):
        create(tmp_path, jobs=given, mode=mode).close()
        with Session.open(str(tmp_path), "last") as session:
            assert session.jobs() == given


def test_equal_lines_are_jobs_of_their_own(tmp_path: Path) -> None:
    with create(tmp_path, jobs=[b"same"] * 3) as session:
        assert session.jobs() == [b"same"] * 3


@pytest.mark.parametrize("kept", [b"one\n", b"one\n two  'x y' \n\xff\xfe \r\n", b"", b"1\n2\n3\n4\n5\n", b"1\n2\n3\n4", b"1\n2\n3\n4\n5"])
def test_a_jobs_file_that_is_not_the_sessions(tmp_path: Path, kept: bytes) -> None:
    with create(tmp_path) as session:
        Path(session.paths.jobs).write_bytes(kept)
        with pytest.raises(SessionError, match="does not hold the 4 jobs"):
            session.jobs()


def test_nothing_half_made_is_left(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="byte that separates"):
        create(tmp_path / "a", jobs=[b"two\nlines"])
    assert not (tmp_path / "a").exists()
    (tmp_path / "file").touch()
    with pytest.raises(SessionError, match=r"no session can be made in .*file.*--sessions") as caught:
        create(tmp_path / "file")
    assert caught.value.exit_status == 2


FULL = """
import resource, sys
from cloudtask.errors import SessionError
from cloudtask.session.session import NewSession, Session
resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))
try:
    Session.create(sys.argv[1], NewSession(jobs=[b"x" * 100] * 100))
except SessionError as error:
    print(error)
"""


def test_a_full_disk_while_making_it_leaves_nothing(tmp_path: Path) -> None:
    said = subprocess.run([sys.executable, "-c", FULL, str(tmp_path)], check=True, capture_output=True, text=True).stdout
    assert "File too large" in said and said.count("\n") == 1
    assert os.listdir(tmp_path) == []


def test_one_at_a_time(tmp_path: Path) -> None:
    with create(tmp_path):
        with pytest.raises(SessionBusyError, match=f"pid {os.getpid()} "):
            Session.open(str(tmp_path), "last")
        assert replay(str(tmp_path / "1" / "journal.jsonl"), strict=False).header.number == 1, "a viewer takes no lock"
    Session.open(str(tmp_path), 1).close()


def test_a_run_is_taken_up(tmp_path: Path) -> None:
    with create(tmp_path) as session:
        end_offset = session.append(run(), worker(1), records.sent(1, [Attempt(1, 1), Attempt(2, 1)], NOW))
        session.append(end(good(1)))
        session.sync()
        assert session.synced_offset > end_offset
    with Session.open(str(tmp_path), "1") as session:
        assert session.uid.startswith("1-") and session.cut == 0
        assert [session.state.state(job) for job in (1, 2, 3)] == [JobState.SUCCEEDED, JobState.ACTIVE, JobState.PENDING]
        assert [result.job for result in session.unrelayed()] == [1]
        session.append(records.relayed([1]))
    with Session.open(str(tmp_path), "1") as session:
        assert list(session.unrelayed()) == []


@pytest.mark.parametrize("tail", [b'{"ended":[{"job":1', b"\0" * 1000, b"garbage\n"])
def test_a_torn_tail_is_cut_off_on_opening(tmp_path: Path, tail: bytes) -> None:
    with create(tmp_path) as session:
        session.append(run())
    path = tmp_path / "1" / "journal.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + tail)
    with Session.open(str(tmp_path), 1) as session:
        assert session.cut == len(tail)
        session.append(run(2))
    assert path.read_bytes() == whole + run(2)


def test_what_cannot_be_opened_leaves_it_as_it_was(tmp_path: Path) -> None:
    create(tmp_path).close()
    path = tmp_path / "1" / "journal.jsonl"
    for wrong, error in ((b"garbage\n" + run(), JournalError), (records.line({"weather": 1}) + run() + b"torn", JournalError)):
        before = path.read_bytes()
        path.write_bytes(before + wrong)
        with pytest.raises(error):
            Session.open(str(tmp_path), 1)
        assert path.read_bytes() == before + wrong
        path.write_bytes(before)
    Session.open(str(tmp_path), 1).close()


@pytest.mark.parametrize("name", ["journal.jsonl", "lock", "jobs", "log", "conf.yaml"])
def test_a_link_out_of_the_session_is_not_followed(tmp_path: Path, name: str) -> None:
    create(tmp_path).close()
    path = tmp_path / "1" / name
    outside = tmp_path / "outside"
    outside.write_bytes(path.read_bytes() if path.exists() else b"precious")
    before = outside.read_bytes()
    path.unlink(missing_ok=True)
    path.symlink_to(outside)
    with pytest.raises(SessionError, match="symbolic link"), Session.open(str(tmp_path), 1) as session:
        session.jobs()
        session.conf()
        session.log("x")
    assert outside.read_bytes() == before


def test_a_copy_has_the_number_of_its_directory(tmp_path: Path) -> None:
    with create(tmp_path) as session:
        uid = session.uid
    (tmp_path / "1").rename(tmp_path / "12")
    with Session.open(str(tmp_path), "last") as session:
        assert (session.number, session.uid) == (12, uid)


def test_sessions_of_the_original_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "3").mkdir()
    (tmp_path / "3" / "conf").write_text("{'split': 1}")
    with create(tmp_path) as session:
        assert session.number == 4
    (tmp_path / "9").mkdir()
    (tmp_path / "9" / "conf").touch()
    with Session.open(str(tmp_path), "last") as session:
        assert session.number == 4
    with pytest.raises(UnknownSessionError, match="original cloudtask"):
        Session.open(str(tmp_path), 3)
    assert os.listdir(tmp_path / "3") == ["conf"]


def test_a_session_in_git_has_lost_its_empty_folder(tmp_path: Path) -> None:
    create(tmp_path).close()
    (tmp_path / "1" / "workers").rmdir()
    with Session.open(str(tmp_path), 1) as session:
        os.close(layout.open_inside(session.paths.root, layout.worker_log_name(1, 2), os.O_WRONLY | os.O_CREAT))


def test_the_log_is_appended_to_at_once(tmp_path: Path) -> None:
    with create(tmp_path) as session:
        session.log("host (1): exit 0 # a \udcff")
        session.log("any \ud800 text")
        log = Path(session.paths.log)
        assert log.read_bytes() == b"host (1): exit 0 # a \xff\nany ? text\n"
        assert stat.S_IMODE(log.stat().st_mode) == 0o600
    with Session.open(str(tmp_path), 1) as session:
        session.log("more")
    assert log.read_bytes().endswith(b"text\nmore\n")


def test_settings_of_a_resume_take_the_place_of_the_old(tmp_path: Path) -> None:
    with create(tmp_path, values={"a": 1}) as session:
        session.save_conf({"a": 2}, {"a": "--a"})
        assert session.conf() == ({"a": 2}, {"a": "--a"})


def test_closed_is_closed(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    session = create(tmp_path)
    session.log("x")
    session.close()
    session.close()
    assert len(os.listdir("/proc/self/fd")) == before
    with pytest.raises(StorageError):
        session.append(run())
