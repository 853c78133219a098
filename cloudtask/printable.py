r"""Text from jobs, made harmless before it reaches a display, a log line or a tag.

A terminal obeys what it is shown: control characters move its cursor, change its title or type for its user, and bidirectional
controls (https://trojansource.codes) make a line read as what it is not.  All of them become visible: ``\x1b``, ``\n``, ``\u202e``.
"""

from __future__ import annotations

import re

_LIVE = re.compile("[\0-\x08\x0a-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_LIVE_BYTES = re.compile(rb"[\0-\x1f\x7f]")
_SHORT = {"\n": r"\n", "\r": r"\r"}
_CODE_LIMIT = 4000


def _visible(match: re.Match[str]) -> str:
    number = ord(match[0])
    if 0xDC80 <= number <= 0xDCFF:  # what surrogateescape made of a byte that is no UTF-8
        number -= 0xDC00
    return _SHORT.get(match[0]) or (f"\\x{number:02x}" if number < 256 else f"\\u{number:04x}")


def sanitize(text: str | bytes) -> str:
    """``text`` without live control characters (but tabs), always encodable as UTF-8; invalid UTF-8 shows as ``\\xff``."""
    if isinstance(text, bytes):
        text = text.decode("utf-8", "surrogateescape")
    return _LIVE.sub(_visible, text) if _LIVE.search(text) else text


def sanitize_bytes(data: bytes) -> bytes:
    """``data`` without ASCII control characters, tabs and newlines among them; all other bytes, valid UTF-8 or not, are unchanged."""
    return _LIVE_BYTES.sub(lambda match: b"\\x%02x" % match[0][0], data) if _LIVE_BYTES.search(data) else data


def describe_code(code: bytes, limit: int = _CODE_LIMIT) -> str:
    """Shell code as status lines show it: one harmless line of at most ``limit`` characters, ``...`` at its end where it was cut.

    Blanks and newlines around it (text in triple quotes of a template has some) are left out.
    """
    text = sanitize(code.strip()[: 4 * limit + 4])  # a character is at most 4 bytes: no need to decode a megabyte
    return text if len(text) <= limit else text[: limit - 3] + "..."
