"""Which machines are leaked: the rule, case by case and as properties."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudtask.instances.leaked import FOREIGN_GRACE, Knowledge, SessionHere, judge
from cloudtask.providers import Instance, InstanceState, Tags
from cloudtask.worker_file import instance_alias

NOW = 1_800_000_000.0
OURS, THEIRS = "aaaaaaaaaaaaaaaa", "bbbbbbbbbbbbbbbb"
UID = "7-0123456789ab"


def machine(controller: str = OURS, expires: float = NOW + 60, state: InstanceState = InstanceState.RUNNING) -> Instance:
    tags = Tags(session=UID, controller=controller, token="o1", expires=int(expires))
    return Instance(id="i-1", state=state, tags=tags)


def known(session: SessionHere | None = None, **more: object) -> Knowledge:
    return Knowledge(controller=OURS, sessions={UID: session} if session else {}, **more)  # type: ignore[arg-type]  # the caller's words


@pytest.mark.parametrize(
    ("session", "leaked"),
    [
        (SessionHere(name="session 7"), True),
        (SessionHere(name="session 7", living="pid 1 on host runs it"), False),
        (SessionHere(name="session 7", living="its watchdog is at work"), False),
        (SessionHere(name="session 7", living="it can be resumed for 3 seconds"), False),
        (SessionHere(name="session 7", kept={"i-1": NOW + 1}), False),
        (SessionHere(name="session 7", kept={"i-1": NOW - 1}), True),
        (SessionHere(name="session 7", kept={"i-2": NOW + 1}), True),
        (SessionHere(name="session 7", living="pid 1 on host runs it", kept={"i-1": NOW - 1}), True),
    ],
)
def test_a_session_that_is_here(session: SessionHere, leaked: bool) -> None:
    """The expiry in the tags is not asked: the session is."""
    for expires in (NOW - 1e6, NOW + 1e6):
        assert judge(machine(expires=expires), known(session), NOW, retags=True).leaked is leaked
        assert judge(machine(expires=expires), known(session), NOW, retags=False).leaked is leaked


@pytest.mark.parametrize(
    ("controller", "expires", "retags", "leaked"),
    [
        (OURS, NOW + 1, True, False),
        (OURS, NOW - 1, True, True),
        (OURS, NOW - 1, False, True),
        (THEIRS, NOW - 1, True, False),
        (THEIRS, NOW - FOREIGN_GRACE + 1, True, False),
        (THEIRS, NOW - FOREIGN_GRACE - 1, True, True),
        (THEIRS, NOW - 1e7, False, False),
    ],
)
def test_a_session_that_is_not_here(controller: str, expires: float, retags: bool, leaked: bool) -> None:
    assert judge(machine(controller, expires), known(), NOW, retags=retags).leaked is leaked


def test_a_key_that_is_here_spares_what_cannot_renew_its_expiry() -> None:
    verdict = judge(machine(expires=NOW - 1), known(keyed={UID}), NOW, retags=False)
    assert not verdict.leaked and "--sessions" in verdict.why
    assert judge(machine(expires=NOW - 1), known(keyed={UID}), NOW, retags=True).leaked


def test_a_worker_of_a_living_session_is_spared() -> None:
    used = {instance_alias("i-1"): "session 9"}
    verdict = judge(machine(), known(SessionHere(name="launch 7", kept={"i-1": NOW - 1}), in_use=used), NOW, retags=True)
    assert verdict == (False, "it is a worker of session 9")


def test_what_is_not_ours_or_is_going_is_spared() -> None:
    assert not judge(Instance(id="i-1", state=InstanceState.RUNNING), known(), NOW, retags=True).leaked
    for state in (InstanceState.LEAVING, InstanceState.GONE, InstanceState.ABSENT):
        assert not judge(machine(expires=NOW - 1e6, state=state), known(), NOW, retags=True).leaked


def test_reasons_name_what_they_are_about() -> None:
    assert "session 7 is over" in judge(machine(), known(SessionHere(name="session 7")), NOW, retags=True).why
    assert UID in judge(machine(), known(), NOW, retags=True).why
    assert THEIRS in judge(machine(THEIRS), known(), NOW, retags=True).why
    assert "cannot tell" in judge(machine(THEIRS), known(), NOW, retags=False).why


moments = st.integers(min_value=0, max_value=2**62).map(float)
sessions = st.builds(
    SessionHere,
    name=st.just("session 7"),
    living=st.sampled_from(["", "it runs"]),
    kept=st.dictionaries(st.sampled_from(["i-1", "i-2"]), moments),
)


@given(
    session=st.none() | sessions,
    controller=st.sampled_from([OURS, THEIRS]),
    expires=moments,
    now=moments,
    retags=st.booleans(),
    used=st.booleans(),
    keyed=st.booleans(),
    state=st.sampled_from(InstanceState),
)
def test_what_somebody_needs_is_never_leaked(
    session: SessionHere | None,
    controller: str,
    expires: float,
    now: float,
    retags: bool,
    used: bool,
    keyed: bool,
    state: InstanceState,
) -> None:
    knowledge = known(session, in_use={instance_alias("i-1"): "session 9"} if used else {}, keyed={UID} if keyed else ())
    verdict = judge(machine(controller, expires, state), knowledge, now, retags=retags)
    assert verdict.why
    if verdict.leaked:
        assert state in (InstanceState.PENDING, InstanceState.RUNNING, InstanceState.STOPPED) and not used
        if session:
            assert session.kept.get("i-1", now) <= now and ("i-1" in session.kept or not session.living)
        else:
            assert expires < now and (controller == OURS or (retags and expires + FOREIGN_GRACE < now))
        later = judge(machine(controller, expires, state), knowledge, now + 1e6, retags=retags)
        assert later.leaked, "time makes nothing less leaked"
