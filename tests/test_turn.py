"""The order in which a turn of the main loop is carried out."""

from __future__ import annotations

import pytest

from cloudtask.errors import StorageError
from cloudtask.turn import Turn


class Notes(list[str]):
    """Writes down what a turn does."""

    def turn(self, full: bool = False) -> Turn:
        def append(data: bytes) -> None:
            if full:
                raise StorageError("disk full")
            self.append(f"write {data.decode()}")

        return Turn(
            append, lambda: self.append("sync"), lambda n, ms: self.append(f"post {n} {list(ms)}"), lambda ls: self.append(f"say {ls}")
        )


def fill(turn: Turn, notes: Notes) -> None:
    turn.afterwards(lambda: notes.append("after"))
    turn.say("hello", important=True)
    turn.post(2, "b")
    turn.post(1, "a")
    turn.post(2, "c")
    turn.record(b"x", sync=True)
    turn.record(b"y")


def test_journal_then_disk_then_messages_then_words() -> None:
    notes = Notes()
    turn = notes.turn()
    fill(turn, notes)
    turn.commit()
    assert notes == ["write xy", "sync", "post 2 ['b', 'c']", "post 1 ['a']", "say [('hello', True)]", "after"]


def test_a_turn_is_done_once() -> None:
    notes = Notes()
    turn = notes.turn()
    fill(turn, notes)
    turn.commit()
    before = list(notes)
    turn.commit()
    assert notes == before


def test_nothing_is_sent_or_said_that_could_not_be_written() -> None:
    notes = Notes()
    turn = notes.turn(full=True)
    fill(turn, notes)
    with pytest.raises(StorageError):
        turn.commit()
    assert notes == []
