"""What the journal knows of machines."""

from __future__ import annotations

from cloudtask.model import Address, Attempt
from cloudtask.session import records
from cloudtask.session.bookings import OrderRecord
from cloudtask.session.state import SessionState
from tests.session.samples import IDENTITY, NOW, fold, header, run

ORDER = OrderRecord(
    token="t1", provider="ec2", count=2, label="Cloudtask: x", time=NOW, expires=int(NOW) + 7200, price=0.02, region="r", size="s"
)


def state(*lines: bytes) -> SessionState:
    return fold([header(3), run(), *lines])


def worker(number: int, instance: str) -> bytes:
    address = Address(host="10.0.0.1", user="root", transport="docker", alias="cloudtask-i", host_key="ssh-ed25519 AAAA")
    return records.worker(number, address, transport="docker", key=True, instance=instance) + records.ready(
        number, identity=IDENTITY, home="/root/h", slots=1, login="root@h", time=NOW
    )


def split(data: bytes) -> list[bytes]:
    return data.splitlines(keepends=True)


def test_an_order_is_read_as_it_was_written() -> None:
    assert state(records.order(ORDER)).bookings.orders == {"t1": ORDER}


def test_an_order_is_open_until_it_has_all_its_machines_or_is_closed() -> None:
    open_orders = [order.token for order in state(records.order(ORDER)).bookings.open_orders()]
    assert open_orders == ["t1"]
    partly = state(records.order(ORDER), records.launched("t1", ["i1"], NOW))
    assert partly.bookings.open_orders() and partly.bookings.unsettled
    assert not state(records.order(ORDER), records.launched("t1", ["i1"], NOW), records.closed("t1", "quota", NOW)).bookings.open_orders()
    whole = state(records.order(ORDER), records.launched("t1", ["i1"], NOW), records.launched("t1", ["i1", "i2"], NOW + 1))
    assert not whole.bookings.open_orders() and len(whole.bookings.instances) == 2
    assert whole.bookings.instances["i1"].launched == NOW


def test_a_machine_is_ours_until_it_is_gone_or_kept() -> None:
    begun = [records.order(ORDER), records.launched("t1", ["i1", "i2"], NOW)]
    assert [each.id for each in state(*begun, records.destroying(["i1"], "done", NOW)).bookings.ours()] == ["i1", "i2"]
    over = state(*begun, records.destroyed(["i1", "unknown"], NOW + 9), records.kept(["i2"], NOW + 99, NOW))
    assert not over.bookings.unsettled
    assert over.bookings.instances["i1"].destroyed == NOW + 9 and over.bookings.instances["i2"].kept_until == NOW + 99


def test_a_worker_goes_with_its_machine() -> None:
    begun = [records.order(ORDER), records.launched("t1", ["i1", "i2"], NOW), *split(worker(4, "i1")), *split(worker(5, "i2"))]
    found = state(*begun)
    assert found.workers[4].instance == "i1" and found.bookings.instances["i1"].worker == 4
    assert found.workers[4].address == Address(
        host="10.0.0.1", user="root", transport="docker", alias="cloudtask-i", host_key="ssh-ed25519 AAAA"
    )
    assert set(state(*begun, records.destroyed(["i1"], NOW)).workers) == {5}
    assert set(state(*begun, records.kept(["i2"], NOW, NOW)).workers) == {4}


def test_an_uncounted_loss_is_no_loss_of_the_job() -> None:
    sent = records.sent(1, [Attempt(1, 1)], NOW)
    started = records.started(1, [(1, 1, 1)], NOW)
    counted = state(*split(worker(1, "i1")), sent, started, records.lost(1, [Attempt(1, 1)], "gone", NOW))
    uncounted = state(*split(worker(1, "i1")), sent, started, records.lost(1, [Attempt(1, 1)], "gone", NOW, counts=False))
    assert (counted.losses[1], uncounted.losses[1]) == (1, 0)
