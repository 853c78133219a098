"""Words of a POSIX shell's line: split as the shell splits them, and quoted so that every shell gives them back.

Source: POSIX.1-2017, Shell Command Language, 2.2 (quoting) and 2.3 (token recognition).  Nothing is ever expanded here: ``$HOME``,
``*`` and ``;`` are characters like others.  All is bytes, and bytes pass through unchanged.
"""

from __future__ import annotations

import re

_SPECIAL = re.compile(rb"['\"\\#]")
_PLAIN_WORDS = re.compile(rb"[^ \t\n]+")
# Possessive throughout: a line that cannot be split must not take for ever to say so.
_WORD = re.compile(
    rb"""(?:[ \t\n]|\\\n)*+
    (?:(\#[^\n]*+)|((?:[^ \t\n'"\\]++|'[^']*+'|"[^"\\]*+(?:\\.[^"\\]*+)*+"|\\.)++))""",
    re.DOTALL | re.VERBOSE,
)
_PIECE = re.compile(rb"""'([^']*+)'|"([^"\\]*+(?:\\.[^"\\]*+)*+)"|\\(.)|([^'"\\]++)""", re.DOTALL)
_ESCAPE_IN_DOUBLE_QUOTES = re.compile(rb'\\([$`"\\\n])')
_GAP = re.compile(rb"\A(?:[ \t\n]|\\\n)*+")

# A safe word means itself to every shell, wherever in a command it stands.  Not safe are a first ~ or =, an = that could make
# an assignment, and the words that a shell reserves, which would become part of the command's grammar.
_RESERVED = rb"(?:if|then|else|elif|fi|do|done|case|esac|while|until|for|in|select|function|time|coproc)"
_SAFE = rb"(?:-[A-Za-z0-9_@%+=:,./-]*+|(?!" + _RESERVED + rb"(?![A-Za-z0-9_@%+:,./-]))[A-Za-z0-9_@%+:,./][A-Za-z0-9_@%+:,./-]*+)"
is_safe = re.compile(_SAFE).fullmatch
"""True where the word needs no quotes."""
are_safe = re.compile(_SAFE + rb"(?: " + _SAFE + rb")*+").fullmatch
"""True where a line is nothing but safe words with one space between them: it is its own quoted form."""


class UnbalancedError(ValueError):
    """Text that ends inside quotes, or in a backslash.  The message begins with what is wrong: ``a ' is never closed``."""


def split_words(line: bytes) -> list[bytes]:
    """The words of ``line``, as a POSIX shell would split it; ``#`` begins a comment only where a word could begin.

    Raises :class:`UnbalancedError` where quotes are not closed or a backslash stands last.
    """
    if not _SPECIAL.search(line):
        return _PLAIN_WORDS.findall(line)
    words, at = [], 0
    while match := _WORD.match(line, at):
        at = match.end()
        if match[2] is not None:
            words.append(_unquoted(match[2]))
    rest = _GAP.sub(b"", line[at:], count=1)
    if rest:
        raise UnbalancedError("a backslash stands last" if rest[:1] == b"\\" else f"a {rest[:1].decode()} is never closed")
    return words


def _unquoted(word: bytes) -> bytes:
    if not _SPECIAL.search(word):
        return word
    pieces = []
    for single, double, escaped, plain in _PIECE.findall(word):
        if double:
            pieces.append(_ESCAPE_IN_DOUBLE_QUOTES.sub(_escaped, double))
        else:
            pieces.append(single or plain or (b"" if escaped == b"\n" else escaped))
    return b"".join(pieces)


def _escaped(match: re.Match[bytes]) -> bytes:
    return b"" if match[1] == b"\n" else match[1]


def quote(word: bytes) -> bytes:
    """``word`` so that any shell takes it as one word of exactly these bytes: bare where that is safe, else :func:`enclose`\\ d."""
    return word if is_safe(word) else enclose(word)


def enclose(word: bytes) -> bytes:
    """``word`` in single quotes."""
    return b"'" + word.replace(b"'", b"'\\''") + b"'"
