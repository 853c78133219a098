"""What is to be done for a host, by its record and its power's word alone."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudtask.providers.base import InstanceState, Tags
from cloudtask.providers.hosts_claims import (
    AGAIN,
    AVOIDED,
    BLIND,
    OVERDUE,
    SOON,
    Act,
    Claim,
    Record,
    announced,
    claimed,
    from_plain,
    next_act,
    overdue,
    released,
    to_plain,
)
from cloudtask.providers.hosts_power import Standing

NOW = 1_800_000_000.0
ON, OFF, COMING, GOING, MISSING = (
    Standing(state)
    for state in (InstanceState.RUNNING, InstanceState.STOPPED, InstanceState.PENDING, InstanceState.LEAVING, InstanceState.ABSENT)
)
OURS = Claim(Tags(session="s", controller="c", token="t", expires=int(NOW) + 100), NOW)
FREE = Record(key="0" * 24, host={"name": "h"}, idle_since=NOW - 400, idle_timeout=300)
USED = replace(FREE, claim=OURS)
LENT = replace(FREE, started=True, left=(OURS,))
"""Started by us, idle for longer than it may."""


@pytest.mark.parametrize(
    ("record", "standing", "act"),
    [
        (USED, OFF, Act.START),
        (USED, ON, Act.PREPARE),
        (USED, COMING, Act.WAIT),
        (USED, GOING, Act.WAIT),
        (USED, MISSING, Act.GIVE_UP),
        (replace(USED, ready=True), ON, Act.WAIT),
        (replace(USED, ready=True), OFF, Act.WAIT),
        (replace(USED, ready=True), MISSING, Act.GIVE_UP),
        (replace(USED, started=True, asked=NOW - 1), OFF, Act.WAIT),
        (replace(USED, started=True, asked=NOW - AGAIN), OFF, Act.START),
        (FREE, ON, Act.FORGET),
        (FREE, OFF, Act.FORGET),
        (LENT, ON, Act.STOP),
        (LENT, COMING, Act.STOP),
        (LENT, GOING, Act.WAIT),
        (LENT, OFF, Act.FORGET),
        (LENT, MISSING, Act.FORGET),
        (replace(LENT, idle_since=NOW - 299), ON, Act.WAIT),
        (replace(LENT, idle_since=NOW + 301), ON, Act.STOP),
        (replace(LENT, owing=True), ON, Act.WIND_DOWN),
        (replace(FREE, owing=True), ON, Act.WIND_DOWN),
        (replace(LENT, stopping=True, stop_tried=NOW - 1, stop_asked=NOW - 1), ON, Act.WAIT),
        (replace(LENT, stopping=True, stop_tried=NOW - AGAIN, stop_asked=NOW - AGAIN), ON, Act.STOP),
        (replace(LENT, stopping=True, stop_tried=NOW - SOON + 1), ON, Act.WAIT),
        (replace(LENT, stopping=True, stop_tried=NOW - SOON), ON, Act.STOP),
        (replace(LENT, stopping=True, claim=OURS), ON, Act.STOP),
        (replace(LENT, stopping=True, claim=OURS), OFF, Act.TURN),
        (replace(FREE, stopping=True, claim=OURS), ON, Act.TURN),
    ],
)
def test_what_is_next(record: Record, standing: Standing, act: Act) -> None:
    assert next_act(record, standing, True, NOW) is act


@pytest.mark.parametrize(
    ("record", "standing", "act"),
    [
        (replace(USED, started=True, asked=NOW - AGAIN), OFF, Act.WAIT),
        (replace(USED, started=True, asked=NOW - BLIND), OFF, Act.START),
        (LENT, OFF, Act.STOP),
        (replace(LENT, stopping=True, stop_tried=NOW, stop_asked=NOW), OFF, Act.FORGET),
    ],
)
def test_silence_is_not_off(record: Record, standing: Standing, act: Act) -> None:
    """A host that only answers or does not may be on its way up."""
    assert next_act(record, standing, False, NOW) is act


def test_a_paused_host_is_never_ours() -> None:
    for standing, ours in ((OFF, True), (OFF._replace(paused=True), False)):
        moved = announced(USED, Act.START, standing, NOW, ours_to_stop=True, owes=False)
        assert moved and moved.started is ours


def test_what_cannot_be_stopped_is_never_ours() -> None:
    moved = announced(USED, Act.START, OFF, NOW, ours_to_stop=False, owes=False)
    assert moved and not moved.started


def test_letting_go() -> None:
    """Nothing is left of an owner for whom nothing is to be done."""
    assert released(USED, NOW, 5.0).claims == ()
    lent = released(replace(USED, started=True, ready=True), NOW, 5.0)
    assert (lent.claim, lent.left, lent.ready, lent.idle_since, lent.idle_timeout) == (None, (OURS,), False, NOW, 5.0)
    other = Claim(replace(OURS.tags, token="u"), NOW)
    again = claimed(lent, lent.key, lent.host, other, 7.0)
    assert again.claims == (other,) and again.started


def test_a_claim_is_overdue_an_hour_after_its_expiry() -> None:
    assert not overdue(USED, OURS.tags.expires + OVERDUE)
    assert overdue(USED, OURS.tags.expires + OVERDUE + 1)
    assert not overdue(FREE, NOW * 2)


def test_trouble_is_remembered_for_a_while() -> None:
    sad = released(USED, NOW, 0.0, "no current")
    assert sad.troubled(NOW) and sad.troubled(NOW + AVOIDED - 1) and not sad.troubled(NOW + AVOIDED)
    assert announced(sad, Act.FORGET, OFF, NOW + 1, ours_to_stop=True, owes=True) == Record(
        key=sad.key, host=sad.host, trouble="no current", trouble_at=NOW
    )
    assert announced(sad, Act.FORGET, OFF, NOW + AVOIDED, ours_to_stop=True, owes=True) is None


# --- whatever happens ------------------------------------------------------------------------------------------------

RECORDS = st.builds(
    Record,
    key=st.just("0" * 24),
    host=st.just({"name": "h"}),
    claim=st.sampled_from([None, OURS]),
    left=st.sampled_from([(), (OURS,)]),
    started=st.booleans(),
    asked=st.sampled_from([0.0, NOW - 1, NOW - 1000]),
    prepared=st.booleans(),
    owing=st.booleans(),
    ready=st.booleans(),
    stopping=st.booleans(),
    stop_began=st.sampled_from([0.0, NOW - 5]),
    stop_tried=st.sampled_from([0.0, NOW - 5, NOW - 1000]),
    stop_asked=st.sampled_from([0.0, NOW - 5]),
    idle_since=st.sampled_from([NOW - 400, NOW - 1]),
    idle_timeout=st.sampled_from([0.0, 300.0]),
)
STANDINGS = st.sampled_from([ON, OFF, COMING, GOING, MISSING, OFF._replace(paused=True)])


@given(record=RECORDS)
def test_records_are_read_back(record: Record) -> None:
    assert from_plain(json.loads(json.dumps(to_plain(record)))) == record


@given(record=RECORDS, standing=STANDINGS, certain=st.booleans())
def test_a_host_in_use_is_never_stopped(record: Record, standing: Standing, certain: bool) -> None:
    """But for one whose stop was announced before it was claimed; and what is not ours never at all."""
    act = next_act(record, standing, certain, NOW)
    if act in (Act.STOP, Act.WIND_DOWN, Act.FORGET):
        assert record.stopping or record.claim is None
    if act is Act.STOP:
        assert record.started
    if act is Act.START:
        assert record.claim and not record.ready and standing.state is InstanceState.STOPPED


@given(record=RECORDS, certain=st.booleans(), idle=st.integers(0, 3))
def test_what_nobody_uses_comes_to_rest(record: Record, certain: bool, idle: int) -> None:
    """With a power that does what it is asked, a released host is forgotten, off where we had started it, in few steps."""
    state: Record | None = released(record, NOW, 0.0)
    standing, now, ours = (ON, OFF, COMING, GOING)[idle], NOW, record.started
    for _ in range(8):
        if state is None:
            break
        now += AGAIN + 1
        act = next_act(state, standing, certain, now)
        state = announced(state, act, standing, now, ours_to_stop=True, owes=True)
        if state and act is Act.WIND_DOWN:
            state = replace(state, owing=False, prepared=False)
        elif state and act is Act.STOP:
            standing, state = OFF, replace(state, stop_tried=now, stop_asked=now)
        elif act is Act.WAIT:
            standing = {GOING: OFF, COMING: ON}.get(standing, standing)
    assert state is None
    assert not ours or standing is OFF


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"claim": {"cloudtask": "s"}},
        {"host": {}},
        {"host": {"name": "a b"}},
        {"left": 5},
        {"asked": "soon"},
        {"key": None, "host": None},
    ],
)
def test_what_is_no_record(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"record|format|name|float"):
        from_plain({**to_plain(USED), **change})
