"""From the worker logs to standard output."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from cloudtask.model import Span
from cloudtask.relay import Relay, RelayRules

LOG = "workers/1.log"


class Reader:
    """A front that keeps what is written; ``broken``: nobody reads."""

    def __init__(self, broken: bool = False) -> None:
        self.out = b""
        self.err = b""
        self.broken = broken

    def job_output(self, data: bytes) -> None:
        if self.broken:
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")
        self.out += data

    def job_error_output(self, data: bytes) -> None:
        self.err += data

    def say(self, line: str, *, important: bool = False) -> None:
        raise AssertionError("the relay says nothing")

    def progress(self, done: int, failed: int, running: int, total: int) -> None:
        raise AssertionError("the relay shows no figures")

    def close(self, *, wait: bool = True) -> None:
        """Nothing to close."""


class Bench:
    """A session's worker log, and a relay over it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        (directory / "workers").mkdir()
        self.log = directory / LOG
        self.log.touch()
        self.woken = 0

    def span(self, out: bytes = b"", err: bytes = b"") -> Span:
        offset = self.log.stat().st_size + len(b"# status\n")
        with self.log.open("ab") as file:
            file.write(b"# status\n" + out + err)
        return Span(LOG, offset, len(out), len(err))

    def relay(self, reader: Reader, *, by_line: bool = False, keep_order: bool = False, tag: Callable[[int], bytes] | None = None) -> Relay:
        rules = RelayRules(directory=self.directory, by_line=by_line, keep_order=keep_order, tag=tag)

        def wake() -> None:
            self.woken += 1

        relay = Relay(rules, reader, wake, already=lambda job: False)
        relay.start()
        return relay


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def finish(relay: Relay) -> None:
    relay.finish()
    relay.join(10)
    assert not relay.is_alive()


def test_whole_output_of_each_job(bench: Bench) -> None:
    reader = Reader()
    relay = bench.relay(reader)
    for job, data in ((2, b"two\n"), (1, b"\xffone")):
        relay.whole((job, bench.span(data, b"e")))
    relay.whole((3, None))
    finish(relay)
    assert (reader.out, reader.err) == (b"two\n\xffone", b"ee")
    assert relay.take_relayed() == [2, 1, 3]
    assert relay.take_relayed() == []


def test_order_is_kept(bench: Bench) -> None:
    reader = Reader()
    relay = bench.relay(reader, keep_order=True)
    spans = {job: bench.span(b"%d\n" % job) for job in (1, 2, 3, 4)}
    for job in (3, 1, 4, 2):
        relay.whole((job, spans[job]))
    finish(relay)
    assert reader.out == b"1\n2\n3\n4\n"


def test_tags_stand_before_each_line(bench: Bench) -> None:
    reader = Reader()
    relay = bench.relay(reader, tag=lambda job: b"job%d" % job)
    relay.whole((1, bench.span(b"a\r\nb\n\nlast", b"oops\n")))
    finish(relay)
    assert reader.out == b"job1\ta\r\njob1\tb\njob1\t\njob1\tlast\n"
    assert reader.err == b"job1\toops\n"


def test_lines_are_whole_when_they_come_in_pieces(bench: Bench) -> None:
    reader = Reader()
    relay = bench.relay(reader, by_line=True)
    text = {1: b"alpha beta\ngamma\nrest", 2: b"x\nyy\n"}
    spans = {job: bench.span(data) for job, data in text.items()}
    positions = {1: 0, 2: 0}
    for job, length in ((1, 4), (2, 1), (1, 9), (2, 4), (1, 8)):
        position = positions[job]
        relay.piece(job, 1, (1, position, LOG, spans[job].offset + position, length))
        positions[job] += length
    relay.end(1, 1, True)
    relay.end(2, 1, False)
    finish(relay)
    assert sorted(reader.out.splitlines()) == sorted(b"alpha beta\ngamma\nrest\nx\nyy".splitlines())
    assert relay.take_relayed() == [1]


def test_a_piece_that_comes_again_is_written_once(bench: Bench) -> None:
    reader = Reader()
    relay = bench.relay(reader, by_line=True)
    span = bench.span(b"one\ntwo\n")
    relay.piece(1, 1, (1, 0, LOG, span.offset, 4))
    again = bench.span(b"one\ntwo\n")
    relay.piece(1, 1, (1, 0, LOG, again.offset, 8))
    relay.end(1, 1, True)
    finish(relay)
    assert reader.out == b"one\ntwo\n"


def test_scattered_output_is_put_together(bench: Bench) -> None:
    reader = Reader()
    relay = bench.relay(reader)
    first, second = bench.span(b"out1", b"err1"), bench.span(b"out2")
    segments = [[1, first.offset, 4], [2, first.offset + 4, 4], [1, second.offset, 4]]
    (bench.directory / "workers" / "1.index").write_text(json.dumps({"job": 1, "attempt": 1, "segments": segments}) + "\n")
    relay.whole((1, Span(LOG, first.offset, 8, 4, 0)))
    finish(relay)
    assert (reader.out, reader.err) == (b"out1out2", b"err1")


def test_nobody_reads_any_more(bench: Bench) -> None:
    relay = bench.relay(Reader(broken=True))
    relay.whole((1, bench.span(b"x")))
    relay.join(10)
    assert relay.broken and bench.woken == 1
    assert relay.take_relayed() == []
