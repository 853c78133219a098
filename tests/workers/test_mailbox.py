"""The pipe between the main process and a supervisor."""

from __future__ import annotations

import socket

from hypothesis import given
from hypothesis import strategies as st

from cloudtask.model import Attempt
from cloudtask.workers import messages as m
from cloudtask.workers.mailbox import Mailbox


def pair() -> tuple[Mailbox, Mailbox]:
    left, right = socket.socketpair()
    return Mailbox(left), Mailbox(right)


def receive(mailbox: Mailbox, other: Mailbox, count: int) -> list[object]:
    """Both ends in turn, until so many messages are there or the other end closed."""
    got: list[object] = []
    while len(got) < count and not mailbox.closed:
        other.flush()
        got += mailbox.receive()
    return got


@given(st.lists(st.tuples(st.integers(), st.binary(max_size=3000)), max_size=20))
def test_messages_arrive_whole_and_in_order(items: list[tuple[int, bytes]]) -> None:
    left, right = pair()
    left.post(items)
    assert receive(right, left, len(items)) == items
    left.close()
    right.close()


def test_a_message_larger_than_the_pipe_does_not_block() -> None:
    left, right = pair()
    left.post([m.Work([(1, 1, b"x" * 5_000_000)])])
    assert left.backlog > 0
    assert receive(right, left, 1) == [m.Work([(1, 1, b"x" * 5_000_000)])]
    assert left.backlog == 0
    left.close()
    right.close()


def test_the_end_of_the_other_side_is_seen_after_its_last_words() -> None:
    left, right = pair()
    left.post([m.Returned([Attempt(3, 1)])])
    left.close()
    assert right.receive() == [m.Returned([Attempt(3, 1)])]
    assert right.closed
    right.post([m.Finish()])
    assert right.backlog == 0
    right.close()
