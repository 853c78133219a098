"""What a run shows: status lines, the progress bar, and the jobs' output between them.  Real pipes and terminals."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import termios
import threading
import time
import tty
from collections.abc import Callable, Iterator

import pytest

from cloudtask.cli.progress import Look, StreamFront, choose_look
from cloudtask.cli.streams import harmless

BAR = Look(bar=True, every_line=False)
LINES = Look(bar=False, every_line=True)
QUIET = Look(bar=False, every_line=False)


class Reader:
    """Reads the other end of a pipe or a terminal."""

    def __init__(self, terminal: bool) -> None:
        if terminal:
            self._end, self.descriptor = pty.openpty()
            tty.setraw(self.descriptor)
        else:
            self._end, self.descriptor = os.pipe()
        self.seen = b""

    def until(self, text: bytes) -> bytes:
        """All that came so far, once ``text`` is in it."""
        deadline = time.monotonic() + 20
        while text not in self.seen:
            left = deadline - time.monotonic()
            assert left > 0, f"never came {text!r}: {self.seen!r}"
            if select.select([self._end], [], [], left)[0]:
                self.seen += os.read(self._end, 1 << 20)
        return self.seen

    def rest(self) -> bytes:
        """All that came, when nothing more is waiting."""
        while select.select([self._end], [], [], 0)[0]:
            self.seen += os.read(self._end, 1 << 20)
        return self.seen

    def drain_while(self, act: Callable[[], None]) -> bytes:
        """All that came until ``act`` had returned in another thread."""
        acting = threading.Thread(target=act)
        acting.start()
        while acting.is_alive():
            if select.select([self._end], [], [], 0.1)[0]:
                self.seen += os.read(self._end, 1 << 20)
        return self.rest()

    def close_reading_end(self) -> None:
        os.close(self._end)
        self._end = -1

    def close(self) -> None:
        for descriptor in (self._end, self.descriptor):
            if descriptor >= 0:
                os.close(descriptor)


MakeReader = Callable[..., Reader]


@pytest.fixture
def reader() -> Iterator[MakeReader]:
    made: list[Reader] = []

    def make(terminal: bool = False) -> Reader:
        made.append(Reader(terminal))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.mark.parametrize(
    ("quiet", "terminal", "term", "expected"),
    [
        (False, True, "xterm", BAR),
        (False, True, "dumb", LINES),
        (False, True, None, LINES),
        (False, False, "xterm", LINES),
        (True, True, "xterm", QUIET),
        (True, False, "xterm", QUIET),
    ],
)
def test_choice_of_the_look(quiet: bool, terminal: bool, term: str | None, expected: Look) -> None:
    assert choose_look(quiet, terminal, {} if term is None else {"TERM": term}) == expected


def test_status_lines_in_their_order(reader: MakeReader) -> None:
    out, err = reader(), reader()
    front = StreamFront(LINES, out.descriptor, err.descriptor)
    for number in range(1000):
        front.say(f"line {number}", important=number % 7 == 0)
    front.progress(1, 0, 1, 2)
    front.close()
    front.close()
    assert err.rest().decode().splitlines() == [f"line {number}" for number in range(1000)]
    assert out.rest() == b""


def test_quiet_shows_only_what_is_important(reader: MakeReader) -> None:
    out, err = reader(), reader()
    front = StreamFront(QUIET, out.descriptor, err.descriptor)
    front.say("using existing worker")
    front.say("exit 1 # false", important=True)
    front.close()
    assert err.rest() == b"exit 1 # false\n"


def test_status_lines_are_harmless(reader: MakeReader) -> None:
    out, err = reader(), reader()
    front = StreamFront(LINES, out.descriptor, err.descriptor)
    front.say("h (1): echo \x1b]0;owned\x07 \udcff é")
    front.close()
    assert err.rest().decode() == "h (1): echo \\x1b]0;owned\\x07 \\xff é\n"


def test_output_passes_unchanged_where_there_is_no_terminal(reader: MakeReader) -> None:
    out, err = reader(), reader()
    front = StreamFront(LINES, out.descriptor, err.descriptor)
    data = bytes(range(256)) * 10
    front.job_output(data)
    front.job_error_output(data)
    front.close()
    assert out.rest() == data and err.rest() == data


def test_output_is_harmless_on_a_terminal_even_cut_in_a_character(reader: MakeReader) -> None:
    out, err = reader(terminal=True), reader(terminal=True)
    front = StreamFront(LINES, out.descriptor, err.descriptor)
    text = "a\té\x1b[2J€\u202e😀\n".encode() + b"\xff\n"
    for at in range(len(text)):
        front.job_output(text[at : at + 1])
        front.job_error_output(text[at : at + 1])
    front.close()
    expected = "a\té\\x1b[2J€\\u202e😀\n\\xff\n".encode()
    assert out.rest() == expected and err.rest() == expected


def test_nobody_reads_standard_output(reader: MakeReader) -> None:
    out, err = reader(), reader()
    front = StreamFront(LINES, out.descriptor, err.descriptor)
    out.close_reading_end()
    with pytest.raises(BrokenPipeError):
        front.job_output(b"x")
    front.close()


def test_nobody_reads_standard_error(reader: MakeReader) -> None:
    out, err = reader(), reader()
    front = StreamFront(LINES, out.descriptor, err.descriptor)
    err.close_reading_end()
    front.say("lost")
    front.job_error_output(b"lost")
    front.close()


def test_a_stuck_standard_error_holds_nothing_up_and_is_bounded(reader: MakeReader) -> None:
    out, err = reader(), reader()
    front = StreamFront(LINES, out.descriptor, err.descriptor)
    for number in range(60_000):
        front.say(f"{number} {'x' * 80}")
    front.say("an important one", important=True)
    front.job_output(b"still going\n")
    assert out.until(b"still going\n")
    front.close(wait=False)
    lines = err.drain_while(front.close).decode().splitlines()
    assert lines[0].startswith("0 x") and "an important one" in lines and len(lines) < 45_000
    dropped = [int(line.split()[1]) for line in lines if "status lines are not shown" in line]
    assert len(lines) - len(dropped) + sum(dropped) == 60_001


def test_a_stuck_standard_output_does_not_hold_up_status_lines(reader: MakeReader) -> None:
    out, err = reader(), reader()
    front = StreamFront(LINES, out.descriptor, err.descriptor)
    writing = threading.Thread(target=front.job_output, args=(b"x" * (1 << 20),))
    writing.start()
    front.say("a line")
    assert err.until(b"a line\n") == b"a line\n"
    front.close()
    assert len(out.drain_while(writing.join)) == 1 << 20


def test_a_non_blocking_stream_is_written_whole(reader: MakeReader) -> None:
    out, err = reader(), reader()
    os.set_blocking(out.descriptor, False)
    front = StreamFront(LINES, out.descriptor, err.descriptor)
    assert len(out.drain_while(lambda: front.job_output(b"x" * (1 << 20)))) == 1 << 20
    front.close()


# --- the bar ---------------------------------------------------------------------------------------------------------


def test_the_bar_shows_the_figures(reader: MakeReader) -> None:
    err = reader(terminal=True)
    front = StreamFront(BAR, err.descriptor, err.descriptor)
    front.say("127.0.0.1 (7): exit 0 # true")
    front.progress(30, 2, 4, 100)
    screen = err.until(b"ETA").decode()
    assert "30/100 done" in screen and "2 failed" in screen and "4 running" in screen and "/s" in screen
    assert "exit 0" not in screen and "\n" not in screen
    front.close()
    assert err.rest().endswith(b"\r\x1b[2K")


def test_failures_stand_above_the_bar(reader: MakeReader) -> None:
    err = reader(terminal=True)
    front = StreamFront(BAR, err.descriptor, err.descriptor)
    front.progress(1, 0, 1, 3)
    err.until(b"1/3 done")
    front.say("h (7): exit 1 # false", important=True)
    front.progress(2, 1, 1, 3)
    screen = err.until(b"2/3 done")
    assert b"\r\x1b[2Kh (7): exit 1 # false\n" in screen
    front.close()


def test_output_and_the_bar_share_a_terminal(reader: MakeReader) -> None:
    err = reader(terminal=True)
    front = StreamFront(BAR, err.descriptor, err.descriptor)
    front.progress(1, 0, 1, 3)
    err.until(b"1/3 done")
    front.job_output(b"no end of line")
    front.progress(2, 0, 1, 3)
    screen = err.until(b"2/3 done")
    assert b"\r\x1b[2Kno end of line\n" in screen
    front.close()


@pytest.mark.parametrize("columns", [40, 80])
def test_the_bar_leaves_room_for_what_a_terminal_echoes(columns: int, reader: MakeReader) -> None:
    err = reader(terminal=True)
    fcntl.ioctl(err.descriptor, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    front = StreamFront(BAR, err.descriptor, err.descriptor)
    front.progress(123456, 1234, 1234, 1000000)
    screen = err.until(b"123456").decode()
    front.close()
    assert len(re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", screen)) + len("^C^C") < columns


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"plain\n\ttext", b"plain\n\ttext"),
        (b"\r50%\r100%\n", b"\\r50%\\r100%\n"),
        (b"a\0b\x7f", b"a\\x00b\\x7f"),
        ("é\x85".encode(), "é\\x85".encode()),
    ],
)
def test_harmless(data: bytes, expected: bytes) -> None:
    assert harmless(data) == expected
