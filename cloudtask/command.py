"""A command and one job's line make the exact shell code that a worker gives to ``/bin/sh -c``.  The only place that quotes.

The command is code where it is one argument, words where it is several.  A job's words are data: each is quoted, and appended to
the command or put in the place of its placeholders (:mod:`cloudtask.placeholders`).  Without a command a line is code as it stands.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from cloudtask.errors import InputError, UsageError
from cloudtask.placeholders import PARTS, PLACEHOLDER, Placeholder, parse_placeholder
from cloudtask.printable import describe_code, sanitize_bytes
from cloudtask.shellcode import scan_code
from cloudtask.shellquotes import Marker
from cloudtask.shellwords import UnbalancedError, are_safe, enclose, quote, split_words

_SLOT = b'"${CLOUDTASK_SLOT}"'
_SHELLS = frozenset((b"sh", b"bash", b"dash", b"ash", b"ksh", b"mksh", b"zsh", b"busybox"))
_NO_PLACEHOLDERS = "or use --literal to have no placeholders at all"
_IN_DOUBLE_QUOTES = {b"#": '"$CLOUDTASK_JOB"', b"%": '"$CLOUDTASK_SLOT"'}

# A value may stand bare only where what is next to it cannot make it part of a name ($HOME{}), a number of a file descriptor
# ({}>file), an assignment ({}=1) or a word that the shell knows (~{}).
_BARE_AFTER = frozenset(b" \t\n;&|(=/")
_BARE_BEFORE = frozenset(b" \t\n;&|)/.")

_Filler = Callable[[Sequence[bytes], int], bytes]


class _Piece(NamedTuple):
    """Code as it stands, or a placeholder of which ``bare`` says whether safe values may do without quotes there."""

    code: bytes
    asks: Placeholder | None = None
    bare: bool = True
    alone: bool = False


class Command:
    """The command of a session, checked once and asked for each job.

    ``words`` are the command's arguments (one may stand without a sequence around it), none where lines are code.  ``code`` says
    that the first of them is shell code (default: where it is the only one); further ones are words behind it, as with a
    template's COMMAND and the arguments given to it.
    ``mode`` is how lines are read (:data:`cloudtask.jobs.MODES`).  Raises :class:`UsageError` where a placeholder stands in a
    place that its value could break out of, and where words cannot be appended safely.
    """

    def __init__(
        self, words: Sequence[bytes | str] | None, *, literal: bool = False, mode: str = "words", code: bool | None = None
    ) -> None:
        argv = [os.fsencode(word) for word in ([words] if isinstance(words, bytes | str) else words or ())]
        if any(b"\0" in word for word in argv):
            raise UsageError("the command has a NUL byte, which no shell can take: take it out")
        self._is_split = mode == "words"
        self._is_line = not argv
        pieces = _plan(argv, literal, len(argv) == 1 if code is None else code) if argv else []
        self._fillers = [_filler(piece) for piece in pieces]
        self._needs = max((piece.asks.nth for piece in pieces if piece.asks), default=0)
        self._alone = next((piece for piece in pieces if _takes_only_word(piece)), None)
        self._ends = _ends_around_bare_words(pieces)

    def render(self, line: bytes, job: int) -> bytes:
        """The shell code of the job numbered ``job``.  Raises :class:`InputError` as :meth:`check` does."""
        if self._is_line:
            return _guarded(line)
        if self._ends and self._is_split and are_safe(line):
            return _guarded(self._ends[0] + line + self._ends[1])
        words = self.words(line)
        self._check_count(words, line, job)
        return _guarded(b"".join([filler(words, job) for filler in self._fillers]))

    def check(self, line: bytes, job: int) -> None:
        """Raises :class:`InputError` where the line has fewer words than the command's placeholders ask for, or more."""
        if self._needs or self._alone:
            self._check_count(self.words(line), line, job)

    def check_all(self, lines: Iterable[bytes]) -> None:
        """:meth:`check` of all jobs' lines, the first being job 1; costs nothing where any line will do."""
        if self._needs or self._alone:
            for job, line in enumerate(lines, 1):
                self._check_count(self.words(line), line, job)

    def words(self, line: bytes) -> list[bytes]:
        """The job's words."""
        return split_words(line) if self._is_split else [line]

    def label(self, line: bytes) -> bytes:
        """What --tag puts before a job's output lines: its words joined by a space, without live control characters."""
        try:
            words = self.words(line)
        except UnbalancedError:  # shell code whose quotes nest
            words = [line.strip()]
        return sanitize_bytes(b" ".join(words))

    def describe(self, line: bytes, job: int) -> str:
        """The job's shell code as status lines show it: one line, harmless to terminals, at most 4000 characters."""
        return describe_code(self.render(line, job))

    def _check_count(self, words: Sequence[bytes], line: bytes, job: int) -> None:
        count = len(words)
        has = f"job {job} has {'1 word' if count == 1 else f'{count} words'}"
        if count < self._needs:
            raise InputError(f"{has} but the command asks for {{{self._needs}}}: {_excerpt(line)}; mend the line or the command")
        if self._alone and count != 1:
            way = "name which as in {1}, quote the line, or use --input=line"
            raise InputError(f"{has} but {self._alone.code.decode()} takes one where it stands: {_excerpt(line)}; {way}")


def _guarded(code: bytes) -> bytes:
    # sh -c takes what begins with - or + for its own options.
    return b" " + code if code[:1] in (b"-", b"+") else code


def _excerpt(line: bytes) -> str:
    return describe_code(line, 60)


def _plan(argv: Sequence[bytes], literal: bool, has_code: bool) -> list[_Piece]:
    """The pieces of the whole command, with the place of the appended words among them where no placeholder takes words."""
    if has_code:
        return _plan_code(argv[0], argv[1:], literal)
    pieces = _word_pieces(argv, literal)
    return pieces if _takes_words(pieces) else [*pieces, _Piece(b" "), _Piece(b"{}", Placeholder(0, b"", b""))]


def _plan_code(code: bytes, further: Sequence[bytes], literal: bool) -> list[_Piece]:
    scan = scan_code(code)
    if scan.unclosed:
        raise UsageError(f"{_position(code, scan.unclosed[0])}: {scan.unclosed[1]}; mend the command")
    if not scan.end:
        raise UsageError("the command is empty: leave it out to run the lines themselves, or give one")
    markers = [] if literal else scan.markers
    for marker in markers:
        if marker.refusal:
            raise UsageError(_refusal(code, marker))
    tail = _word_pieces(further, literal)
    takes_words = any(not marker.asks.about for marker in markers) or _takes_words(tail)
    if takes_words and not further:
        return _code_pieces(code, markers)
    if scan.doubt:
        what = f"{_position(code, scan.doubt[0])}: words cannot be appended safely behind {scan.doubt[1]}"
        raise UsageError(f"{what}: put the code in a script and call that")
    appended = [_Piece(b" "), *tail] if tail else []
    if not takes_words:
        appended += [_Piece(b" "), _Piece(b"{}", Placeholder(0, b"", b""), alone=scan.alone and not tail)]
    rest = code[scan.end :]
    return [*_code_pieces(code[: scan.end], markers), *appended, *([_Piece(b" " + rest)] if rest.strip() else [])]


def _takes_only_word(piece: _Piece) -> bool:
    return piece.asks is not None and bool((piece.alone and piece.asks.is_whole) or (piece.asks.part and not piece.asks.nth))


def _takes_words(pieces: Sequence[_Piece]) -> bool:
    return any(piece.asks and not piece.asks.about for piece in pieces)


def _refusal(code: bytes, marker: Marker) -> str:
    form = code[marker.start : marker.end].decode()
    way = f"take it out (its value is quoted already), {_NO_PLACEHOLDERS}"
    if marker.refusal == "inside double quotes" and marker.asks.about:
        way = f"write {_IN_DOUBLE_QUOTES[marker.asks.about]}, {_NO_PLACEHOLDERS}"
    return f"{_position(code, marker.start)}: {form} stands {marker.refusal}, where its value could break out: {way}"


def _position(code: bytes, at: int) -> str:
    """``column 7 of the command``, in characters from 1; with the line where there are several."""
    column = len(code[code.rfind(b"\n", 0, at) + 1 : at].decode("utf-8", "surrogateescape")) + 1
    line = code.count(b"\n", 0, at) + 1
    where = f"line {line}, " if b"\n" in code else ""
    return f"{where}column {column} of the command"


def _code_pieces(code: bytes, markers: Sequence[Marker]) -> list[_Piece]:
    pieces, at = [], 0
    for marker in markers:
        bare = (not marker.start or code[marker.start - 1] in _BARE_AFTER) and (marker.end == len(code) or code[marker.end] in _BARE_BEFORE)
        pieces += [_Piece(code[at : marker.start]), _Piece(code[marker.start : marker.end], marker.asks, bare, marker.alone)]
        at = marker.end
    return [*pieces, _Piece(code[at:])]


def _word_pieces(argv: Sequence[bytes], literal: bool) -> list[_Piece]:
    pieces: list[_Piece] = []
    for number, word in enumerate(argv):
        if number:
            pieces.append(_Piece(b" "))
        markers = [] if literal else list(PLACEHOLDER.finditer(word))
        if markers and markers[0][0] != word:
            _refuse_nested_code(argv, number)
        pieces += _pieces_of_word(word, markers) if markers else [_Piece(quote(word))]
    return pieces


def _refuse_nested_code(argv: Sequence[bytes], number: int) -> None:
    """A placeholder amid the words of ``sh -c`` or ``eval`` is amid code, and its value would be read as code."""
    before = argv[:number]
    runs_shell = any(word.rsplit(b"/", 1)[-1] in _SHELLS for word in before) and before[-1][:1] == b"-" and before[-1].endswith(b"c")
    if runs_shell or before[:1] == [b"eval"]:
        what = f"argument {number + 1} of the command is shell code with a placeholder inside, which its value could break out of"
        raise UsageError(f"{what}: give the whole code as the only argument, or pass the value as in sh -c 'rm \"$1\"' sh {{}}")


def _pieces_of_word(word: bytes, markers: Sequence[re.Match[bytes]]) -> list[_Piece]:
    pieces, at = [], 0
    for marker in markers:
        asks = parse_placeholder(marker)
        bare = (not marker.start() or word[marker.start() - 1] in b"=/") and (marker.end() == len(word) or word[marker.end()] in b"/.")
        text = word[at : marker.start()]
        pieces += [_Piece(quote(text))] if text else []
        pieces.append(_Piece(marker[0], asks, bare or asks.about == b"#"))
        at = marker.end()
    return [*pieces, _Piece(quote(word[at:]))] if word[at:] else pieces


def _ends_around_bare_words(pieces: Sequence[_Piece]) -> tuple[bytes, bytes] | None:
    """The code before and behind the words, where they stand in one place only and nothing else depends on the job."""
    places = [number for number, piece in enumerate(pieces) if piece.asks and piece.asks.about != b"%"]
    if len(places) != 1:
        return None
    place = pieces[places[0]]
    if place.asks is None or not place.asks.is_whole or place.alone or not place.bare:
        return None
    codes = [_SLOT if piece.asks else piece.code for piece in pieces]
    return b"".join(codes[: places[0]]), b"".join(codes[places[0] + 1 :])


def _filler(piece: _Piece) -> _Filler:
    """What puts a job's value in the place of ``piece``."""
    asks, as_data = piece.asks, quote if piece.bare else enclose
    if asks is None or asks.about == b"%":
        code = piece.code if asks is None else _SLOT
        return lambda words, job: code
    if asks.about == b"#":
        return lambda words, job: as_data(b"%d" % job)
    if asks.is_whole:
        return lambda words, job: b" ".join(map(as_data, words))
    at, part = max(asks.nth - 1, 0), PARTS[asks.part]
    return lambda words, job: as_data(part(words[at]))
