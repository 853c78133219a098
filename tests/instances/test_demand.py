"""How many machines to order: limits, replacements, and when it is enough."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudtask.instances.demand import IN_A_ROW, Demand, Have, Limits, Need

NOTHING = {"serving": 0, "coming": 0, "leaving": 0, "ordered": 0, "dollars": 0.0}


def order(demand: Demand, need: dict[str, Any], have: dict[str, Any] | None = None, now: float = 0.0) -> int:
    return demand.order(Need(**{"workers": 0, "attempts": 100, **need}), Have(**{**NOTHING, **(have or {})}), now)


@pytest.mark.parametrize(
    ("limits", "need", "have", "count"),
    [
        ({"split": 15}, {"workers": 5}, {}, 10),
        ({"split": 10}, {}, {}, 10),
        ({"split": 10}, {"attempts": 3}, {}, 3),
        ({"split": 10}, {"attempts": 8, "slots": 4}, {}, 2),
        ({"split": 10}, {"attempts": 2, "workers": 1, "joining": 1}, {}, 1),
        ({"split": 10}, {}, {"serving": 4, "coming": 6, "ordered": 10}, 0),
        ({"split": 10}, {}, {"serving": 9, "leaving": 1, "ordered": 10}, 1),
        ({"split": 10}, {"attempts": 2}, {"coming": 2, "ordered": 2}, 0),
        ({"split": 10}, {"attempts": 0}, {}, 0),
        ({"split": 2}, {"workers": 3}, {}, 0),
        ({"split": 10, "max_workers": 4}, {}, {"leaving": 1}, 3),
        ({"split": 10, "max_hourly": 1.0, "price": 0.3}, {}, {}, 3),
        ({"split": 10, "max_hourly": 0.9, "price": 0.3}, {}, {}, 3),
        ({"split": 10, "max_hourly": 0.9, "price": 0.0}, {}, {}, 10),
        ({"split": 10, "max_cost": 1.0, "price": 0.3, "minimum_charge": 0.3}, {}, {"dollars": 0.5}, 1),
        ({"split": 10, "max_cost": 1.0, "price": 0.3, "minimum_charge": 0.3}, {}, {"dollars": 1.5}, 0),
    ],
)
def test_how_many(limits: dict[str, Any], need: dict[str, Any], have: dict[str, Any], count: int) -> None:
    assert order(Demand(Limits(**limits)), need, have) == count


def test_replacements_are_counted_from_the_first_order() -> None:
    demand = Demand(Limits(split=3, replace=1))
    assert order(demand, {}) == 3
    assert order(demand, {}, {"serving": 1, "ordered": 3}) == 1
    assert order(demand, {}, {"serving": 1, "ordered": 4}) == 0
    assert [demand.is_replacement(number) for number in (1, 3, 4)] == [False, False, True]


def test_machines_that_are_never_ready_stop_it_in_a_row_only() -> None:
    demand = Demand(Limits(split=5))
    for _ in range(IN_A_ROW - 1):
        demand.never_ready("slow", replacement=False)
    demand.answered()
    for _ in range(IN_A_ROW - 1):
        demand.never_ready("slow", replacement=False)
    assert not demand.stopped and order(demand, {}) == 5
    demand.never_ready("slow", replacement=False)
    assert "never ready: slow" in demand.stopped and order(demand, {}) == 0


def test_replacements_that_are_lost_without_a_good_job_stop_it() -> None:
    demand = Demand(Limits(split=5))
    for _ in range(10):
        demand.lost("gone", replacement=False)
    assert not demand.stopped, "the machines of the first order are not replacements"
    for _ in range(IN_A_ROW - 1):
        demand.lost("gone", replacement=True)
    demand.good_job()
    for _ in range(IN_A_ROW - 1):
        demand.lost("gone", replacement=True)
    assert not demand.stopped
    demand.lost("gone", replacement=True)
    assert "without one good job" in demand.stopped


def test_a_provider_that_gives_fewer_is_asked_for_replacements_only() -> None:
    demand = Demand(Limits(split=10))
    assert order(demand, {}) == 10
    demand.fell_short(6)
    assert order(demand, {}, {"serving": 6, "ordered": 10}) == 0
    assert order(demand, {}, {"serving": 5, "ordered": 10}) == 1


def test_a_refusal_is_final_where_there_is_no_machine_and_else_waits() -> None:
    demand = Demand(Limits(split=2))
    demand.refused("quota", 0, 0.0)
    assert demand.stopped == "quota"
    demand = Demand(Limits(split=2))
    for times in range(1, IN_A_ROW):
        demand.refused("quota", 1, 100.0 * times)
        assert order(demand, {}, {"serving": 1, "ordered": 2}, 100.0 * times + 1) == 0
        assert order(demand, {}, {"serving": 1, "ordered": 2}, 100.0 * times + 90) == 1
    demand.refused("quota", 1, 1000.0)
    assert demand.stopped == "quota"


LIMITS = st.builds(
    Limits,
    split=st.integers(1, 50),
    replace=st.none() | st.integers(0, 10),
    max_workers=st.none() | st.integers(1, 50),
    max_hourly=st.none() | st.floats(0.01, 100),
    price=st.none() | st.floats(0.001, 10),
)
NEEDS = st.builds(Need, workers=st.integers(0, 60), attempts=st.integers(0, 200), slots=st.integers(1, 8), joining=st.integers(0, 5))
HAVES = st.builds(
    Have, serving=st.integers(0, 60), coming=st.integers(0, 60), leaving=st.integers(0, 9), ordered=st.integers(0, 80), dollars=st.just(0.0)
)


@given(LIMITS, NEEDS, HAVES)
def test_no_limit_is_ever_passed(limits: Limits, need: Need, have: Have) -> None:
    count = Demand(limits).order(need, have, 0.0)
    present = have.serving + have.coming + count
    assert count >= 0
    if count:
        assert present + need.workers <= limits.split
        assert have.coming + count <= -(-need.attempts // need.slots)
        assert limits.max_workers is None or present + have.leaving <= limits.max_workers
        assert not limits.max_hourly or not limits.price or (present + have.leaving) * limits.price <= limits.max_hourly + 1e-6
