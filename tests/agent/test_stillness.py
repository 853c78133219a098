"""Jobs that write nothing cost nothing, and are heard at once when they do write."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cloudtask.agent.stillness import Stillness


def quiet(directory: Path) -> Stillness:
    """One that has seen nothing new for long enough."""
    stillness = Stillness(str(directory))
    assert not stillness.observe("same", 100.0)
    assert not stillness.observe("same", 102.0)
    assert stillness.observe("same", 104.0)
    return stillness


def test_the_kernel_watches_what_is_still(tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    stillness = quiet(tmp_path)
    with (tmp_path / "out").open("ab") as file:
        file.write(b"word")
    assert os.read(stillness.fd, 4096)
    stillness.end()
    assert not stillness.kept
    assert not stillness.observe("same", 104.1)


def test_without_a_watch_looking_goes_on(tmp_path: Path) -> None:
    stillness = Stillness(str(tmp_path / "missing"))
    for now in (1.0, 20.0, 40.0):
        assert not stillness.observe("same", now)
    assert not stillness.possible


def test_ending_a_watch_takes_what_is_queued(tmp_path: Path) -> None:
    stillness = quiet(tmp_path)
    (tmp_path / "out").write_bytes(b"word")
    stillness.end()
    stillness.end()
    with pytest.raises(BlockingIOError):
        os.read(stillness.fd, 4096)
