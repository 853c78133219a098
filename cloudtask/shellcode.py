r"""Reads shell code far enough to know where a placeholder may stand, and where words may be appended.

The values of placeholders are quoted for plain code.  Inside quotes, a here-document, ``${..}``, arithmetic or backquotes the same
quotes would mean something else, and a value could break out.  The lexer therefore follows quotes, comments, here-documents and
``$(..)`` (which is plain code again, in double quotes too) as POSIX.1-2017, 2.3, has it, with the extensions of bash, because
/bin/sh may be either.  Where shells differ, or where only a whole parser could tell (``case`` inside ``$(..)``), it is in *doubt*
from there on, and says so: a caller then places nothing.  It judges where values go, never whether the code is right.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from cloudtask.placeholders import PLACEHOLDER
from cloudtask.shellquotes import Context, Heredoc, Marker, QuoteLexer, UnclosedError
from cloudtask.shellwords import UnbalancedError, split_words

_INSIGNIFICANT = ("blank", "newline", "joined", "comment")

_TOKEN = re.compile(
    rb"""(?P<blank>[ \t]+)|(?P<newline>\n)|(?P<joined>\\\n)|(?P<escape>\\.)|(?P<last>\\)|(?P<comment>\#)
    |(?P<single>')|(?P<double>")|(?P<backquote>`)
    |(?P<arithmetic>\$\(\()|(?P<substitution>\$\()|(?P<parameter>\$\{)|(?P<ansi>\$')|(?P<bracket>\$\[)|(?P<special>\$[$@*?!0-9#-])
    |(?P<herestring><<<)|(?P<heredoc><<-?)|(?P<operator>[;&|<>])|(?P<opening>\()|(?P<closing>\))
    |(?P<text>[^ \t\n\\'"`$\#{<>;&|()]+|[{$])""",
    re.DOTALL | re.VERBOSE,
)
_PLAIN_DOUBLE_PARENTHESES = re.compile(rb"\(\((?:[^'\"\\`#(){}<]|<(?!<))*+\)\)")
_REDIRECTION = re.compile(rb"[<>][>&|]?")
# bash expands what follows these a second time: >&'$(rm x)' runs rm (5.2 does).
_DUPLICATIONS = (b">&", b"<&")
_DELIMITER = re.compile(rb"[ \t]*((?:[^ \t\n'\"\\$`;&|<>(){}#]|'[^'\n]*'|\"[^\"\n\\$`]*\"|\\[^\n])+)(?=[ \t\n;&|<>()]|\Z)")
_EXPANSION = re.compile(rb"\$[({\[]|`")
_PLAIN_EXPANSION = re.compile(rb"\$\([^'\"`\\()#]*\)|\$\{[^'\"`\\{}]*\}|`[^'\"`\\]*`")
_ASSIGNMENT = re.compile(rb"[A-Za-z_][A-Za-z0-9_]*\+?=")
_ARRAY_INDEX = re.compile(rb"[A-Za-z_][A-Za-z0-9_]*\[[^]]*\Z")


class Scan(NamedTuple):
    """What a look at some shell code found.

    ``end`` is where words may be appended: behind the last thing that is neither blank nor a comment nor a here-document's text;
    ``alone`` as for a marker there.  ``doubt`` and ``unclosed`` are (offset, what is the matter there), or None.
    """

    markers: list[Marker]
    end: int
    alone: bool
    doubt: tuple[int, str] | None
    unclosed: tuple[int, str] | None


def scan_code(code: bytes) -> Scan:
    """Where the placeholders of ``code`` stand, and how it ends."""
    lexer = _Lexer(code)
    unclosed = None
    try:
        lexer.commands(Context(nested=False))
    except UnclosedError as error:
        unclosed = None if lexer.doubt else (error.at, error.what)
    alone = lexer.ends_in_redirection()
    return Scan(lexer.markers, lexer.end, alone, lexer.doubt, unclosed)


def check_closed(code: bytes) -> None:
    """Raises :class:`UnbalancedError` where ``code`` ends inside something that a shell wants closed."""
    if unclosed := scan_code(code).unclosed:
        raise UnbalancedError(unclosed[1])


class _Lexer(QuoteLexer):
    """Adds plain code, comments and here-documents."""

    def __init__(self, code: bytes) -> None:
        super().__init__(code)
        self.end = 0
        self._awaits = b""
        self._pending = 0

    def commands(self, context: Context) -> None:
        """Reads plain code to its end, or past the parenthesis that closes this ``$(``."""
        while self.at < len(self.code) and not context.is_over:
            if marker := PLACEHOLDER.match(self.code, self.at):
                kind = "placeholder"
                self._placeholder(marker, context)
            else:
                kind = self._token(context)
            if not context.nested and kind not in _INSIGNIFICANT:
                self.end, self._awaits = self.at, b"" if context.word else context.target
        self._end_word(context)
        if context.heredocs and not context.is_over:
            raise UnclosedError(context.heredocs[0].start, "a here-document never ends")

    def ends_in_redirection(self) -> bool:
        """True where the code ends with a redirection of which the target is still to come."""
        if self._awaits in _DUPLICATIONS:
            self._doubt(self.end - 2, self._awaits.decode())
        return bool(self._awaits)

    def _token(self, context: Context) -> str:
        match = _TOKEN.match(self.code, self.at)
        assert match and match.lastgroup, "every byte begins some token"
        kind = "text" if match.lastgroup == "comment" and context.word else match.lastgroup
        self.at = match.end()
        getattr(self, f"_{kind}")(match.start(), context)
        return kind

    def _placeholder(self, marker: re.Match[bytes], context: Context) -> None:
        refusal = "inside an array's index" if _ARRAY_INDEX.match(context.word) else ""
        if context.target in _DUPLICATIONS:
            refusal = f"behind {context.target.decode()}"
        self._mark(marker, refusal, alone=bool(context.target or _ASSIGNMENT.match(context.word)))
        self.at = marker.end()
        context.word += marker[0]

    def _text(self, start: int, context: Context) -> None:
        context.word += self.code[start : self.at]

    _escape = _special = _text

    def _blank(self, start: int, context: Context) -> None:
        self._end_word(context)

    def _newline(self, start: int, context: Context) -> None:
        self._end_word(context)
        context.target = b""
        if self._pending > len(context.heredocs):
            self._doubt(start, "a $(..) of several lines behind a <<")
        for heredoc in context.heredocs:
            self._body(heredoc)
        self._pending -= len(context.heredocs)
        context.heredocs = []

    def _last(self, start: int, context: Context) -> None:
        raise UnclosedError(start, "a backslash stands last")

    def _comment(self, start: int, context: Context) -> None:
        end = self.code.find(b"\n", start)
        self._pass(start, len(self.code) if end < 0 else end, "inside a comment")

    def _operator(self, start: int, context: Context) -> None:
        self._end_word(context)
        operator = _REDIRECTION.match(self.code, start)
        context.target = operator[0] if operator else b""
        self.at = operator.end() if operator else self.at

    def _herestring(self, start: int, context: Context) -> None:
        self._end_word(context)
        context.target = b"<<<"

    def _heredoc(self, start: int, context: Context) -> None:
        self._end_word(context)
        strips_tabs = self.code[self.at - 1 : self.at] == b"-"
        match = _DELIMITER.match(self.code, self.at)
        if not match:
            self._doubt(start, "a here-document's end mark that is no plain word")
            return
        self.at = match.end()
        is_expanded = not any(mark in match[1] for mark in (b"'", b'"', b"\\"))
        context.heredocs.append(Heredoc(start, b"".join(split_words(match[1])), is_expanded, strips_tabs))
        self._pending += 1

    def _opening(self, start: int, context: Context) -> None:
        self._end_word(context)
        context.target = b""
        if plain := _PLAIN_DOUBLE_PARENTHESES.match(self.code, start):
            self.at = plain.end()
            return
        if self.code[self.at : self.at + 1] == b"(":
            self._doubt(start, "((, which is arithmetic to some shells")
        context.depth += 1

    def _closing(self, start: int, context: Context) -> None:
        self._end_word(context)
        if context.depth or not context.nested:
            context.depth = max(0, context.depth - 1)
            return
        context.is_over = True
        if context.heredocs:
            self._pending -= len(context.heredocs)
            self._doubt(context.heredocs[0].start, "a here-document that the ) of its $(..) cuts off")

    def _end_word(self, context: Context) -> None:
        if context.nested and context.word == b"case":
            self._doubt(self.at, "`case` inside $(..)")
        if context.word:
            context.word = context.target = b""

    def _body(self, heredoc: Heredoc) -> None:
        while self.at < len(self.code):
            start = self.at
            end = self.code.find(b"\n", start)
            self.at = len(self.code) if end < 0 else end + 1
            line = self.code[start : self.at].removesuffix(b"\n")
            if (line.lstrip(b"\t") if heredoc.strips_tabs else line) == heredoc.delimiter:
                return
            self._refuse(start, self.at, "inside a here-document")
            if heredoc.is_expanded and not _ends_with_its_line(line):
                self._doubt(start, "a here-document's line that ends inside something")
        raise UnclosedError(heredoc.start, "a here-document never ends")


def _ends_with_its_line(line: bytes) -> bool:
    """True where nothing that a here-document expands can reach over the end of this line."""
    return not line.endswith(b"\\") and not _EXPANSION.search(_PLAIN_EXPANSION.sub(b"", line))
