"""Quotes and expansions in shell code: what stands inside a word, and where it ends.  See :mod:`cloudtask.shellcode`.

Source: POSIX.1-2017, Shell Command Language, 2.2, 2.6; bash 5.2 and dash 0.5.12 where they go beyond or differ, which is a doubt.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import NamedTuple

from cloudtask.placeholders import PLACEHOLDER, Placeholder, parse_placeholder

_DEEPEST = 40

_IN_DOUBLE = re.compile(
    rb"""(?P<escape>\\.)|(?P<closing>")|(?P<backquote>`)|(?P<arithmetic>\$\(\()|(?P<substitution>\$\()|(?P<parameter>\$\{)|(?P<bracket>\$\[)
    |(?P<text>[^"\\`${]+|[${\\])""",
    re.DOTALL | re.VERBOSE,
)
_IN_BRACES = re.compile(
    rb"""(?P<escape>\\.)|(?P<closing>\})|(?P<single>')|(?P<double>")|(?P<backquote>`)
    |(?P<arithmetic>\$\(\()|(?P<substitution>\$\()|(?P<parameter>\$\{)|(?P<ansi>\$')|(?P<bracket>\$\[)
    |(?P<text>[^}'"\\`${]+|[${\\])""",
    re.DOTALL | re.VERBOSE,
)
# Arithmetic that every shell sees end in the same place, whatever else it takes it for.
_PLAIN_ARITHMETIC = re.compile(rb"\$\(\((?:[^'\"\\`()]|\([^'\"\\`()]*\))*+\)\)")
_QUOTES_INSIDE_BRACES = re.compile(rb"'[^'\"}\\`(]*'|\"[^'\"}\\`(]*\"")
_BACKQUOTED = re.compile(rb"`(?:[^`\\]|\\.)*+`", re.DOTALL)


class Marker(NamedTuple):
    """A placeholder found at ``start:end``.

    ``refusal`` says where it stands (``inside single quotes``) if it must not stand there, else it is empty.  ``alone`` says that
    only one word fits there: the value of an assignment, or the target of a redirection, after which a second word would be
    taken for something else.
    """

    start: int
    end: int
    asks: Placeholder
    refusal: str
    alone: bool


class UnclosedError(Exception):
    """Code that ends inside what began at ``at``; ``what`` says so in words."""

    def __init__(self, at: int, what: str) -> None:
        super().__init__(what)
        self.at = at
        self.what = what


class Heredoc(NamedTuple):
    """A here-document of which the text is still to come."""

    start: int
    delimiter: bytes
    is_expanded: bool
    strips_tabs: bool


class Context:
    """One level of plain code, the whole or one ``$(..)``, and where in it the lexer is.

    ``word`` is what has been read of the current word (quotes and expansions stand for themselves as ``''`` and ``$``), ``target``
    the redirection whose target it is.
    """

    def __init__(self, *, nested: bool) -> None:
        self.nested = nested
        self.depth = 0
        self.word = b""
        self.target = b""
        self.heredocs: list[Heredoc] = []
        self.is_over = False


class QuoteLexer:
    """Methods named after a token get the offset of its start; ``self.at`` is its end then, and theirs to move on."""

    def __init__(self, code: bytes) -> None:
        self.code = code
        self.at = 0
        self.markers: list[Marker] = []
        self.doubt: tuple[int, str] | None = None
        self._nesting = 0

    def commands(self, context: Context) -> None:
        """Reads plain code to its end, or past the parenthesis that closes this ``$(``."""
        raise NotImplementedError

    def _joined(self, start: int, context: Context) -> None:
        # A shell takes out the line end first, so what stands around it may be one token together.
        if self.code[start - 1 : start] in (b"$", b"<", b"("):
            self._doubt(start, "a line end inside an operator")

    def _single(self, start: int, context: Context) -> None:
        end = self.code.find(b"'", start + 1)
        if end < 0:
            raise UnclosedError(start, "a ' is never closed")
        self._pass(start, end + 1, "inside single quotes")
        context.word += b"''"

    def _ansi(self, start: int, context: Context) -> None:
        end = self.code.find(b"'", start + 2)
        if end < 0:
            raise UnclosedError(start, "a $' is never closed")
        if self.code[end - 1 : end] == b"\\":
            self._doubt(start, "\\' inside $'..', which ends the quotes in some shells")
        self._pass(start, end + 1, "inside $'..'")
        context.word += b"''"

    def _bracket(self, start: int, context: Context) -> None:
        self._doubt(start, "$[..], which is arithmetic to some shells")
        context.word += b"$"

    def _backquote(self, start: int, context: Context, *, quoted: bool = False) -> None:
        match = _BACKQUOTED.match(self.code, start)
        if not match:
            raise UnclosedError(start, "a ` is never closed")
        if match[0].count(b"'") % 2 or match[0].count(b'"') % 2 or (quoted and b'"' in match[0]):
            self._doubt(start, "quotes inside `..`")
        self._pass(start, match.end(), "inside `..` (write $(..))")
        context.word += b"``"

    def _arithmetic(self, start: int, context: Context) -> None:
        if match := _PLAIN_ARITHMETIC.match(self.code, start):
            self._pass(start, match.end(), "inside arithmetic")
            context.word += b"$"
            return
        self._doubt(start, "$((, of which the end is not plain to see")
        self.at = start + 2
        self._substitution(start, context)

    def _substitution(self, start: int, context: Context) -> None:
        inner = Context(nested=True)
        with self._one_deeper(start):
            self.commands(inner)
        if not inner.is_over:
            raise UnclosedError(start, "a $( is never closed")
        context.word += b"$"

    def _double(self, start: int, context: Context) -> None:
        self._inside(_IN_DOUBLE, start, "inside double quotes")
        context.word += b"''"

    def _parameter(self, start: int, context: Context, *, quoted: bool = False) -> None:
        if marker := PLACEHOLDER.match(self.code, start + 1):
            self._mark(marker, "inside ${..}")
        elif self.code[self.at : self.at + 1] in (b" ", b"\t", b"\n", b"|"):
            self._doubt(start, "${ cmd; }, which is code to some shells")
        self._inside(_IN_BRACES, start, "inside ${..}", quoted=quoted)
        context.word += b"$"

    @contextlib.contextmanager
    def _one_deeper(self, start: int) -> Iterator[None]:
        if self._nesting == _DEEPEST:
            raise UnclosedError(start, f"more than {_DEEPEST} quotes and expansions stand inside each other")
        self._nesting += 1
        yield
        self._nesting -= 1

    def _inside(self, tokens: re.Pattern[bytes], start: int, place: str, *, quoted: bool = True) -> None:
        """Reads on from ``self.at`` behind the ``"`` or ``${`` that opened ``place``; ``quoted`` where double quotes are around."""
        scratch = Context(nested=True)
        with self._one_deeper(start):
            while match := tokens.match(self.code, self.at):
                kind = match.lastgroup or ""
                if kind == "text" and (marker := PLACEHOLDER.match(self.code, self.at)):
                    self._mark(marker, place)
                self.at = match.end()
                if kind == "closing":
                    return
                self._part(kind, match.start(), scratch, quoted)
        raise UnclosedError(start, 'a " is never closed' if tokens is _IN_DOUBLE else "a ${ is never closed")

    def _part(self, kind: str, start: int, scratch: Context, quoted: bool) -> None:
        if kind in ("backquote", "parameter"):
            getattr(self, f"_{kind}")(start, scratch, quoted=quoted)
        elif kind in ("single", "double", "ansi") and quoted:
            self._quotes_inside_braces(start)
        elif kind == "escape" and self.code[start + 1 : start + 2] == b"\n":
            self._joined(start, scratch)
        elif kind not in ("text", "escape"):
            getattr(self, f"_{kind}")(start, scratch)

    def _quotes_inside_braces(self, start: int) -> None:
        # Inside "${..}" some shells see quotes and some see plain characters: the same to us where nothing could end between them.
        match = _QUOTES_INSIDE_BRACES.match(self.code, start)
        if match:
            self._pass(start, match.end(), "inside ${..}")
        else:
            self._doubt(start, 'quotes inside "${..}"')

    # What has been found.

    def _pass(self, start: int, end: int, place: str) -> None:
        self._refuse(start, end, place)
        self.at = end

    def _refuse(self, start: int, end: int, place: str) -> None:
        for marker in PLACEHOLDER.finditer(self.code, start, end):
            self._mark(marker, place)

    def _mark(self, marker: re.Match[bytes], refusal: str, *, alone: bool = False) -> None:
        if self.doubt and not refusal:
            refusal = f"behind {self.doubt[1]}"
        self.markers.append(Marker(marker.start(), marker.end(), parse_placeholder(marker), refusal, alone))

    def _doubt(self, at: int, what: str) -> None:
        self.doubt = self.doubt or (at, what)
