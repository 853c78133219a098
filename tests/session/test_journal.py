"""The journal's lines: read, written, torn, synced; with real full files and real bad descriptors."""

from __future__ import annotations

import io
import os
import resource
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from cloudtask.errors import JournalError, SessionError, StorageError
from cloudtask.session import journal
from cloudtask.session.journal import Flusher, JournalWriter
from tests.session.deadline import wait_until
from tests.session.samples import write

LINES = [b'{"format":1}\n', b'{"run":1}\n', b'{"epoch":2}\n']


def events(path: str) -> list[str]:
    return [record.event for record in journal.read(path)]


def test_records_know_where_they_stand(tmp_path: Path) -> None:
    path = write(tmp_path / "j", *LINES)
    found = list(journal.read(path))
    assert [(r.event, r.line) for r in found] == [("format", 1), ("run", 2), ("epoch", 3)]
    assert found[2].fields == {"epoch": 2}
    assert [b"".join(LINES)[r.offset : r.end] for r in found] == LINES


HALF_LINES = [b"", b'{"sent":[[1', b'{"sent":[]}', b"\0" * 5000, b"\0" * 50 + b"\n"]
NO_RECORDS = [b"garbage\n", b"\xff\xfe\n", b"[1]\n", b"{}\n", b"7\n", b"\n", b'{"a":1}{"b":2}\n', b"[" * 100000 + b"\n"]


@pytest.mark.parametrize("tail", [*HALF_LINES, *NO_RECORDS])
def test_a_torn_tail_is_passed_over_and_cut_off(tmp_path: Path, tail: bytes) -> None:
    path = write(tmp_path / "j", *LINES, tail)
    assert events(path) == ["format", "run", "epoch"]
    writer = JournalWriter.open(path, len(b"".join(LINES)))
    writer.append(b'{"finished":1}\n')
    writer.close()
    assert (tmp_path / "j").read_bytes() == b"".join(LINES) + b'{"finished":1}\n'


@pytest.mark.parametrize("garbage", [b"\0\0\0\n", *NO_RECORDS])
def test_garbage_in_the_middle_names_file_and_line(tmp_path: Path, garbage: bytes) -> None:
    path = write(tmp_path / "j", *LINES[:2], garbage, LINES[2])
    with pytest.raises(JournalError, match=r"/j, line 3: not a journal record") as caught:
        events(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


class Growing(io.RawIOBase):
    """A file that another process appends to: each read gives the next piece, and an empty piece is its end at that moment."""

    def __init__(self, *pieces: bytes) -> None:
        self._pieces = list(pieces)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        piece = self._pieces.pop(0) if self._pieces else b""
        buffer[: len(piece)] = piece
        return len(piece)


def test_a_line_that_is_being_written_is_not_garbage() -> None:
    """A viewer reads up to half a line, and the rest of it arrives while it looks."""
    file = io.BufferedReader(Growing(LINES[0] + LINES[1][:4], b"", LINES[1][4:] + LINES[2]))
    assert [record.event for record in journal.read_open(file, "j")] == ["format"]


def test_a_journal_that_is_a_link_is_not_opened(tmp_path: Path) -> None:
    write(tmp_path / "elsewhere", *LINES)
    (tmp_path / "j").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SessionError, match="symbolic link"):
        events(str(tmp_path / "j"))
    with pytest.raises(SessionError, match="symbolic link"):
        JournalWriter.open(str(tmp_path / "j"), 0)


def test_appended_lines_are_readable_at_once_and_synced_soon(tmp_path: Path) -> None:
    path = write(tmp_path / "j", LINES[0])
    writer = JournalWriter.open(path, len(LINES[0]))
    assert writer.synced_offset == writer.end == len(LINES[0])
    end = writer.append(LINES[1], LINES[2])
    assert end == writer.end == len(b"".join(LINES))
    assert events(path) == ["format", "run", "epoch"]
    wait_until(lambda: writer.synced_offset == end)
    assert writer.append() == end
    writer.close()
    writer.close()


def test_sync_waits_for_all_of_it(tmp_path: Path) -> None:
    path = write(tmp_path / "j")
    writer = JournalWriter.open(path, 0)
    for _ in range(200):
        end = writer.append(LINES[1])
        writer.sync()
        assert writer.synced_offset == end
    writer.close()


FULL = """
import os, resource, sys
from cloudtask.errors import StorageError
from cloudtask.session.journal import JournalWriter
path, room = sys.argv[1], int(sys.argv[2])
writer = JournalWriter.open(path, 0)
writer.append(b'{"run":1}\\n')
resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
try:
    writer.append(b'{"epoch":2}\\n', b'{"lost":"' + b"x" * room + b'"}\\n')
except StorageError as error:
    print(error)
print(os.path.getsize(path), writer.end)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
writer.append(b'{"finished":1}\\n')
writer.close()
"""


def test_a_write_that_does_not_fit_is_taken_back_whole(tmp_path: Path) -> None:
    path = write(tmp_path / "j")
    said = subprocess.run([sys.executable, "-c", FULL, path, "100"], check=True, capture_output=True, text=True).stdout.splitlines()
    assert path in said[0] and "cannot be written: File too large" in said[0]
    assert said[1] == "10 10"
    assert events(path) == ["run", "finished"]


def test_a_write_that_was_interrupted_is_taken_back_by_the_next(tmp_path: Path) -> None:
    """An exception in the middle of append (a signal handler's) leaves half a line; the next append must not follow it."""
    path = write(tmp_path / "j")
    writer = JournalWriter.open(path, 0)
    writer.append(LINES[0])
    before = signal.signal(signal.SIGXFSZ, _interrupt)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
        with pytest.raises(KeyboardInterrupt):
            writer.append(b'{"lost":"' + b"x" * 100 + b'"}\n')
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert os.path.getsize(path) == 100
    writer.append(LINES[1])
    writer.close()
    assert (tmp_path / "j").read_bytes() == LINES[0] + LINES[1]


def _interrupt(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt


def test_a_failed_sync_is_never_forgotten() -> None:
    """A pipe cannot be synced: the kernel's own EINVAL stands for a disk's EIO."""
    reader, writer = os.pipe()
    flusher = Flusher(writer, "/s/1/journal.jsonl")
    flusher.wrote(10)
    wait_until(lambda: flusher._failure is not None)
    for act in (flusher.check, flusher.sync, lambda: flusher.wrote(20)):
        with pytest.raises(StorageError, match=r"/s/1/journal\.jsonl cannot be written"):
            act()
    assert flusher.synced_offset == 0
    flusher.close()
    os.close(reader)
    os.close(writer)


def test_the_flusher_ends(tmp_path: Path) -> None:
    before = threading.active_count()
    with open(tmp_path / "j", "wb") as file:
        flusher = Flusher(file.fileno(), "j", delay=60)
        flusher.wrote(1)
        flusher.close()
        assert flusher.synced_offset == 0
    assert threading.active_count() == before
