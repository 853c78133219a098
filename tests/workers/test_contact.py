"""When a worker is tried again, and when contact counts as lost."""

from __future__ import annotations

import select

from cloudtask.errors import ConnectError, RefusedError
from cloudtask.workers.contact import Background, Contact


def test_first_contact_gets_three_tries() -> None:
    contact = Contact(known=False, lost_timeout=300)
    assert [contact.failed(ConnectError("no route")) for _ in range(3)] == [False, False, True]
    assert contact.reason == "no route"


def test_a_refusal_ends_first_contact_at_once() -> None:
    assert Contact(known=False, lost_timeout=300).failed(RefusedError("key refused"))


def test_a_known_worker_is_tried_for_ever_and_told_away_once() -> None:
    contact = Contact(known=True, lost_timeout=300)
    assert not any(contact.failed(RefusedError("not now")) for _ in range(20))
    assert contact.away() and not contact.away()
    assert not contact.lost()


def test_contact_is_lost_once_after_its_time_and_three_tries() -> None:
    contact = Contact(known=True, lost_timeout=0)
    contact.failed(ConnectError("a"))
    contact.failed(ConnectError("b"))
    assert not contact.lost()
    contact.failed(ConnectError("c"))
    assert contact.lost() and not contact.lost()
    contact.made()
    assert not contact.silent and contact.failures == 0


def test_waits_grow() -> None:
    contact = Contact(known=True, lost_timeout=300)
    waits: list[float] = []
    for _ in range(8):
        contact.cut() if not waits else None
        contact.failed(ConnectError("x"))
        waits.append(contact.next_try - contact.since)
    assert 0 < waits[0] < 2 and 10 < waits[-1] < 32


def test_background_calls_report_outcomes_and_expected_errors() -> None:
    background = Background()
    background.start(lambda: "done")
    assert select.select([background], [], [], 10)[0]
    assert background.outcome() == "done" and not background.busy

    def fails() -> object:
        raise ConnectError("gone")

    background.start(fails)
    assert select.select([background], [], [], 10)[0]
    assert isinstance(background.outcome(), ConnectError)
    background.close()
