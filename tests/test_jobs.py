"""Which input lines are jobs, and how a line is split: compared with real shells."""

from __future__ import annotations

import functools
import shutil
import subprocess
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudtask.errors import InputError
from cloudtask.jobs import read_jobs
from cloudtask.shellwords import UnbalancedError, split_words

SHELLS = [shell for shell in ("dash", "bash") if shutil.which(shell)] or ["sh"]


@pytest.mark.parametrize(
    ("data", "jobs"),
    [
        (b"", []),
        (b"\n \n\t\n", []),
        (b"hello\nworld\n", [b"hello", b"world"]),
        (b"hello\nworld", [b"hello", b"world"]),
        (b"same\nsame\n", [b"same", b"same"]),
        (b"  a  b \n", [b"  a  b "]),
        (b"# no job\n  # don't\na # don't\n", [b"a # don't"]),
        (b"'#1' a#b http://x/#y\n", [b"'#1' a#b http://x/#y"]),
        (b"''\n", [b"''"]),
        (b"\xff\xfe 'caf\xe9'\n", [b"\xff\xfe 'caf\xe9'"]),
        (b"a\r\n\r\n#x\r\n'b c'\r\nd\r", [b"a", b"'b c'", b"d"]),
        (b"a\rb\n", [b"a\rb"]),
    ],
)
def test_words(data: bytes, jobs: list[bytes]) -> None:
    assert read_jobs(data) == jobs


def test_lines_are_data_as_they_stand() -> None:
    assert read_jobs(b"# it's\n\n  \na \\\r\n' b", "line") == [b"# it's", b"a \\\r", b"' b"]


def test_nul_separated_items_may_hold_anything_else() -> None:
    assert read_jobs(b"a\nb\0\0 \0# it's\0last", "nul") == [b"a\nb", b" ", b"# it's", b"last"]


@pytest.mark.parametrize(
    ("line", "what"),
    [
        (b"it's", "a ' is never closed"),
        (b'say "hi', 'a " is never closed'),
        (b"a\\", "a backslash stands last"),
        (b"a\\\r", "a backslash stands last"),
    ],
)
def test_a_line_that_cannot_be_split_is_named(line: bytes, what: str) -> None:
    with pytest.raises(InputError, match="line 3 of the jobs") as caught:
        read_jobs(b"# it's fine\n\n" + line + b"\nok\n'\n")
    assert what in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("mode", ["words", "line"])
def test_a_nul_byte_is_named_by_its_line(mode: str) -> None:
    with pytest.raises(InputError, match="line 2 of the jobs has a NUL byte"):
        read_jobs(b"a\n# \0\n\0", mode)


def test_lines_that_are_code_may_nest_quotes_as_a_shell_does() -> None:
    nested = b"""echo "$(echo '"')" """
    assert read_jobs(nested + b"\n", code=True) == [nested]
    with pytest.raises(InputError, match="line 1"):
        read_jobs(nested + b"\n")
    with pytest.raises(InputError, match="line 1"):
        read_jobs(b"echo 'x\n", code=True)


def test_an_unknown_mode_is_a_bug() -> None:
    with pytest.raises(ValueError):
        read_jobs(b"", "lines")


@pytest.mark.parametrize("line", [b"file-000001.txt --opt value\n", b"'file 1.txt' --opt=\"a b\"\n"])
def test_a_million_lines_are_read_in_seconds(line: bytes) -> None:
    data = line * 1_000_000
    began = time.process_time()
    jobs = read_jobs(data)
    assert time.process_time() - began < 8, "takes under 1 s (3 s with quotes) on a machine of 2020"
    assert len(jobs) == 1_000_000


def test_a_line_that_cannot_be_split_says_so_at_once() -> None:
    began = time.process_time()
    for line in (b'"' + b"a" * 1_000_000, b'"' + b"\\a" * 500_000, b"a'" * 333_333, b"\\"):
        with pytest.raises(UnbalancedError):
            split_words(line)
    assert time.process_time() - began < 5


def test_a_word_of_a_megabyte() -> None:
    assert split_words(b"a '" + b"x y" * 400_000 + b"'") == [b"a", b"x y" * 400_000]


# Lines as a shell reads them, put together from pieces whose expansions are all quoted or escaped: there we and it must agree.
_PLAIN = st.sampled_from([b"a", b"Z", b"0", b"-", b"_", b"/", b".", b"=", b"#", b":", b",", b"\xff", b"\xc3\xa9", b"\r", b"\v"])
_SINGLE = st.binary(max_size=6).map(lambda data: b"'" + data.translate(None, b"\0\n'") + b"'")
_IN_DOUBLE = st.sampled_from(
    [b"\\$", b"\\`", b'\\"', b"\\\\", b"\\a", b"\\ ", b"\\'", b"'", b" ", b"x", b"#", b"*", b";", b"\xff"]
)
_DOUBLE = st.lists(_IN_DOUBLE, max_size=5).map(lambda parts: b'"' + b"".join(parts) + b'"')
_ESCAPED = st.sampled_from([b"\\" + bytes([byte]) for byte in b"$`\"'\\ \t*?[~{};&|<>()!#ab"])
_BLANK = st.sampled_from([b" ", b"\t", b"  "])
_LINES = st.lists(st.one_of(_PLAIN, _SINGLE, _DOUBLE, _ESCAPED, _BLANK), max_size=12).map(b"".join)


@functools.cache
def _shell_splits(shell: str, lines: tuple[bytes, ...]) -> list[list[bytes]]:
    script = b'LC_ALL=C; show() { printf \'%s\\0\' "$#" "$@"; }\n' + b"".join(b"show " + line + b"\n" for line in lines)
    done = subprocess.run([shell], input=script, capture_output=True, timeout=20, check=True)
    assert not done.stderr, done.stderr
    items = done.stdout.split(b"\0")[:-1]
    found = []
    while items:
        count = int(items[0])
        found.append(items[1 : count + 1])
        del items[: count + 1]
    return found


@pytest.mark.parametrize("shell", SHELLS)
@settings(max_examples=150, deadline=None)
@given(lines=st.lists(_LINES, min_size=1, max_size=30))
def test_words_are_split_as_the_shell_does(shell: str, lines: list[bytes]) -> None:
    assert [split_words(line) for line in lines] == _shell_splits(shell, tuple(lines))


@settings(max_examples=300)
@given(st.binary(max_size=30).map(lambda line: line.replace(b"\0", b"")))
def test_any_bytes_are_split_or_refused(line: bytes) -> None:
    try:
        words = split_words(line)
    except UnbalancedError:
        assert set(line) & set(b"'\"\\")
    else:
        assert b"".join(words).translate(None, b"'\"\\ \t\n") in line.translate(None, b"'\"\\ \t\n")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"$HOME * ; a|b `x` $(y) ~ >z", [b"$HOME", b"*", b";", b"a|b", b"`x`", b"$(y)", b"~", b">z"]),
        (b"a'b'\"c\"\\d", [b"abcd"]),
        (b"a #b 'c", [b"a"]),
        (b"a#b ''#c \\#d", [b"a#b", b"#c", b"#d"]),
        (b'"a\\$b\\c"', [b"a$b\\c"]),
        (b"'a\nb' \"c\\\nd\" e\\\nf \\\n#g", [b"a\nb", b"cd", b"ef"]),
        (b"a\vb\x0c\xa0", [b"a\vb\x0c\xa0"]),
    ],
)
def test_words_of_a_line(line: bytes, words: list[bytes]) -> None:
    assert split_words(line) == words
