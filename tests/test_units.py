"""Durations and sizes as people write them, and text that no terminal obeys."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudtask.printable import describe_code, sanitize, sanitize_bytes
from cloudtask.units import format_duration, format_elapsed, format_size, parse_duration, parse_size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        ("90s", 90),
        ("1.5h", 5400),
        ("15m", 900),
        ("2h", 7200),
        ("1d", 86400),
        ("1h30m", 5400),
        ("1d2h3m4.5s", 93784.5),
        (" 0 ", 0),
        ("0.25", 0.25),
        ("36500d", 36500 * 86400),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "x", "1x", "-1", "1h-30m", "30m1h", "1h30", "1.h", ".5", "inf", "nan", "1e3", "1 h", "1h1h", "٣"])
def test_what_is_no_duration_is_named(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration") as caught:
        parse_duration(text)
    assert str(caught.value).startswith(repr(text))


@pytest.mark.parametrize("text", ["36501d", "9" * 400, "9" * 400 + "d"])
def test_a_duration_that_no_clock_can_wait_for_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="too long"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (90, "1m30s"), (3600, "1h"), (86400, "1d"), (0.5, "0.5s"), (3600.1, "1h0.1s"), (59.9999, "1m"), (5400, "1h30m")],
)
def test_durations_in_tables(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@given(st.integers(0, 10**12))
def test_a_formatted_duration_reads_back(thousandths: int) -> None:
    assert parse_duration(format_duration(thousandths / 1000)) == pytest.approx(thousandths / 1000, abs=1e-4)


def test_elapsed_time_is_in_the_originals_words() -> None:
    assert [format_elapsed(seconds) for seconds in (11.9, 1, 0, 4000)] == ["11 seconds", "1 seconds", "0 seconds", "4000 seconds"]


@pytest.mark.parametrize(
    ("text", "size"),
    [("1024", 1024), ("64k", 65536), ("512M", 512 << 20), ("4G", 4 << 30), ("4GiB", 4 << 30), ("1.5G", 3 << 29), ("0", 0), ("2T", 2 << 40)],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "G", "4GB", "4B", "-1", "4 G", "0x10", "1e3", "4iB"])
def test_what_is_no_size_is_named(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size"):
        parse_size(text)


@pytest.mark.parametrize("text", ["9" * 30, "1025P"])
def test_a_size_beyond_any_disk_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="too large"):
        parse_size(text)


@given(st.integers(0, 1 << 60))
def test_a_formatted_size_is_exact(size: int) -> None:
    assert parse_size(format_size(size)) == size


@pytest.mark.parametrize(("size", "text"), [(0, "0"), (1000, "1000"), (1536, "1.5K"), (1 << 30, "1G"), (5 << 29, "2.5G"), (1025, "1025")])
def test_sizes_in_tables(size: int, text: str) -> None:
    assert format_size(size) == text


def test_less_than_nothing_is_a_bug() -> None:
    with pytest.raises(ValueError):
        format_duration(-1)
    with pytest.raises(ValueError):
        format_size(-1)


@given(st.one_of(st.text(), st.binary()))
def test_sanitized_text_has_no_live_control_and_can_be_written(text: str | bytes) -> None:
    shown = sanitize(text)
    shown.encode("utf-8")
    assert not [c for c in shown if c != "\t" and (unicodedata.category(c) in ("Cc", "Cs") or unicodedata.bidirectional(c) in BIDI)]
    assert sanitize(shown) == shown


BIDI = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\tb é 日本", "a\tb é 日本"),
        ("\x1b[31m", r"\x1b[31m"),
        ("a\nb\r", r"a\nb\r"),
        ("\x9b1m\x7f\0", r"\x9b1m\x7f\x00"),
        ("a\u202eb\u2066", r"a\u202eb\u2066"),
        (b"\xff\xc3\xa9", "\\xffé"),
        ("\udcff\ud800", r"\xff\ud800"),
    ],
)
def test_controls_become_visible(text: str | bytes, shown: str) -> None:
    assert sanitize(text) == shown


def test_a_tag_stays_one_line_and_keeps_all_other_bytes() -> None:
    assert sanitize_bytes(b"a\nb\t\x1b[0m\xff\xc3\xa9") == b"a\\x0ab\\x09\\x1b[0m\xff\xc3\xa9"


def test_long_code_is_cut() -> None:
    assert describe_code(b"\n    f={}\n    ls\n") == r"f={}\n    ls"
    assert describe_code(b"x" * 4000) == "x" * 4000
    assert describe_code(b"x" * 4001) == "x" * 3997 + "..."
    assert describe_code("é".encode() * 1_000_000, 10) == "é" * 7 + "..."
    assert len(describe_code(b"\x1b" * 10_000)) == 4000
