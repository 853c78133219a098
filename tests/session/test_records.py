"""What lines say: sizes, readable keys, and results that come back as they were."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudtask.model import Attempt, Result, Span
from cloudtask.session import records
from cloudtask.states import Ending
from tests.session.samples import NOW, header, run, worker

NAMES = st.sampled_from(["workers/7.log", "workers/7.1.log", "workers/12.32.log", "workers/71.log"])
MILLISECONDS = st.integers(0, 10**9).map(lambda ms: ms / 1000)
SPANS = st.builds(Span, NAMES, *[st.integers(0, 10**12)] * 3, st.integers(-1, 10**9))


@st.composite
def results(draw: st.DrawFn) -> Result:
    """Any result that a supervisor may report."""
    ending = draw(st.sampled_from(Ending))
    value = draw(st.integers(0, 255)) if ending in (Ending.EXIT, Ending.SIGNAL) else 0
    numbers = draw(st.tuples(st.integers(1, 10**6), st.integers(1, 100)))
    began = round(NOW - draw(MILLISECONDS), 3)
    memory, slot = draw(st.integers(0, 10**9)), draw(st.integers(0, 64))
    end = Result(*numbers, ending, value, began, draw(MILLISECONDS), draw(MILLISECONDS), memory, slot, draw(st.booleans()))
    return end._replace(span=draw(st.none() | SPANS))


@given(results(), st.booleans())
def test_a_result_comes_back(result: Result, again: bool) -> None:
    fields = json.loads(records.ended(7, [records.End(result, again)], NOW))
    (item,) = fields["ended"]
    back = records.result(item, fields["worker"], fields["time"])
    assert back._replace(began=result.began) == result
    assert abs(back.began - result.began) <= 0.501
    assert bool(item.get("again")) == again


@pytest.mark.parametrize(
    "wrong",
    [
        {"outcome": "exit 0"},
        {"job": 1},
        {"job": 1, "attempt": 1, "outcome": "bored 3"},
        {"job": 1, "attempt": 1, "outcome": "exit x"},
        {"job": 1, "attempt": 1, "outcome": "exit 0", "file": "../../etc/passwd", "offset": 0},
        {"job": 1, "attempt": 1, "outcome": "exit 0", "file": "1/2", "offset": 0},
        {"job": 1, "attempt": 1, "outcome": "exit 0", "file": "1\n", "offset": 0},
    ],
)
def test_an_item_that_ended_could_not_have_written(wrong: dict[str, object]) -> None:
    with pytest.raises((KeyError, ValueError)):
        records.result(wrong, 1, NOW)


def test_an_output_that_is_in_no_worker_log_is_a_bug() -> None:
    with pytest.raises(ValueError, match="not the name of a worker log"):
        records.ended(1, [records.End(Result(1, 1, Ending.EXIT, span=Span("/etc/passwd", 0, 1, 0)))], NOW)


@pytest.mark.parametrize(
    "result",
    [
        Result(123456, 1, Ending.EXIT, 0, NOW, 3599.999, 3500.123, 1048576, 1, span=Span("workers/12.log", 123456789, 12345, 0)),
        Result(123456, 1, Ending.EXIT, 0, NOW, 3599.999, 12.345, 10240, 4, span=Span("workers/12.4.log", 1234567, 1234, 0)),
    ],
)
def test_a_job_alone_in_its_records_takes_under_300_bytes(result: Result) -> None:
    attempt = Attempt(123456, 1)
    lines = [
        records.sent(12, [attempt], NOW + 0.123),
        records.started(12, [(*attempt, result.slot)], NOW + 0.234),
        records.ended(12, [records.End(result)], NOW + 3600.345),
        records.relayed([123456]),
    ]
    assert sum(map(len, lines)) < 300, lines


def test_in_batches_it_is_about_half_of_that() -> None:
    jobs = range(1000, 1050)
    results = [Result(job, 1, Ending.EXIT, 0, NOW, 0.123, 0.045, 10240, 2, span=Span("workers/3.2.log", job * 100, 123, 0)) for job in jobs]
    attempts = [Attempt(result.job, 1) for result in results]
    lines = [
        records.sent(3, attempts, NOW),
        records.started(3, [(*attempt, 2) for attempt in attempts], NOW),
        records.ended(3, [records.End(result) for result in results], NOW),
    ]
    assert sum(map(len, lines)) / 50 < 200


def test_lines_are_lines_and_the_first_key_is_the_event() -> None:
    awkward = "a\nb\udcff\u2028"
    lines = {
        "format": header(3),
        "run": run(retry=[1, 2]),
        "epoch": records.epoch(2),
        "lost": records.lost(1, [Attempt(1, 1)], awkward, NOW),
        "retired": records.retired(1, awkward, NOW),
        "settled": records.settled(1, 1, Ending.POISON, NOW),
        "contact": records.contact(1, "back", NOW),
        "finished": records.finished(1, 3, NOW),
    }
    for event, line in lines.items():
        assert line.endswith(b"\n") and line.count(b"\n") == 1 and line.isascii()
        assert next(iter(json.loads(line))) == event
    assert json.loads(lines["lost"])["why"] == awkward
    assert [next(iter(json.loads(line))) for line in worker(4).splitlines()] == ["worker", "ready"]
    assert json.loads(worker(4).splitlines()[0])["port"] == 22


def test_what_is_zero_is_left_out() -> None:
    line = records.ended(1, [records.End(Result(1, 1, Ending.TIMEOUT))], NOW)
    assert json.loads(line)["ended"] == [{"job": 1, "outcome": "timeout", "slot": 0}]
    assert b"retry" not in run()
    assert json.loads(records.adopted(1, NOW, held=[Attempt(2, 3)])) == {"adopted": 1, "held": [[2, 3]], "time": NOW}
