"""What machines cost."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudtask.closing import machines, money
from cloudtask.instances.costs import Bill, bill, charge, hourly
from cloudtask.session.bookings import Bookings, InstanceRecord, OrderRecord


@pytest.mark.parametrize(
    ("price", "minimum", "quantum", "seconds", "dollars"),
    [
        (3.6, 60, 1, 10, 0.06),
        (3.6, 60, 1, 100, 0.1),
        (3.6, 0, 3600, 1, 3.6),
        (3.6, 0, 3600, 3600, 3.6),
        (3.6, 0, 3600, 3601, 7.2),
        (0.0, 60, 1, 1e6, 0.0),
    ],
)
def test_charge(price: float, minimum: float, quantum: float, seconds: float, dollars: float) -> None:
    assert charge(price, minimum, quantum, seconds) == pytest.approx(dollars)


@given(st.floats(0, 100), st.floats(0, 4000), st.just(0.0) | st.floats(1, 4000), st.floats(0, 1e7))
def test_a_charge_is_never_less_than_the_time_costs(price: float, minimum: float, quantum: float, seconds: float) -> None:
    # A millionth of a quantum is the tolerance for times that are whole quanta.
    assert charge(price, minimum, quantum, seconds) >= price * max(seconds - 1e-5 * max(quantum, 1), 0) / 3600 * 0.999999


def book() -> Bookings:
    def an_order(token: str, price: float | None) -> OrderRecord:
        return OrderRecord(token=token, provider="p", count=2, label="", time=0, expires=0, price=price, minimum=0, quantum=1)

    def instance(id: str, token: str, destroyed: float) -> InstanceRecord:
        return InstanceRecord(id=id, token=token, launched=1000.0, destroyed=destroyed)

    found = Bookings(orders={"a": an_order("a", 1.0), "b": an_order("b", None)})
    found.instances = {each.id: each for each in (instance("i1", "a", 4600.0), instance("i2", "a", 0.0), instance("i3", "b", 0.0))}
    return found


def test_the_bill() -> None:
    assert bill(book(), 8200.0) == Bill(created=3, gone=1, hours=5.0, dollars=3.0, unpriced=1)
    assert hourly(book(), book().instances.values()) == 2.0


def test_the_last_line_says_what_is_not_known() -> None:
    found = bill(book(), 8200.0)
    assert machines(found, ["i2", "i3"], 0) == [
        ("# machines: created 3, confirmed gone 1, unconfirmed 2, 5.00 hours, $3.00 without 1 of unknown price", True)
    ]
    assert money(Bill(created=1, gone=1, hours=1, dollars=0.0, unpriced=1)) == "price unknown"
    assert money(Bill(created=1, gone=1, hours=1, dollars=0.01234, unpriced=0)) == "$0.0123"
