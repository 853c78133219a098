"""Frames on the wire between supervisor and agent.  Both ends use this module; neither trusts the other.

A frame is a 4-byte big-endian length of all that follows, the 4-byte length of the header, the header (a JSON object in UTF-8
whose key ``t`` names the type), and the payload: raw bytes.  Strings in headers that hold raw bytes are surrogateescape'd, which
JSON writes as ``\\udcXX``.
"""

import json
import struct

MAX_FRAME = 1 << 20
"""The most that the first length may say."""

LONGEST_NUMBER = (1 << 31) - 1
"""Job and attempt numbers, epochs and counters stay below this."""

_LENGTHS = struct.Struct(">II")
dump = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode
"""Compact JSON, all ASCII."""


class ProtocolError(Exception):
    """The peer sent what no peer of this protocol sends."""


def pack(header: "dict[str, object]", payload: bytes = b"") -> bytes:
    """One frame.  Raises ValueError where it would be longer than `MAX_FRAME` allows, or the header is no JSON."""
    return pack_text(dump(header), payload)


def pack_text(header: str, payload: bytes = b"") -> bytes:
    """Like `pack`, with a header that is JSON already."""
    head = header.encode("ascii")
    length = 4 + len(head) + len(payload)
    if length > MAX_FRAME:
        raise ValueError("a frame of %d bytes is too long" % length)
    return _LENGTHS.pack(length, len(head)) + head + payload


class Unpacker:
    """Cuts a stream of bytes into frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> "list[tuple[dict[str, object], bytes]]":
        """The frames that are complete now.  Raises ProtocolError for garbage; then the connection is of no more use."""
        buffer = self._buffer
        buffer += data
        frames = []
        start, end = 0, len(buffer)
        while end - start >= 8:
            length, head = _LENGTHS.unpack_from(buffer, start)
            if length > MAX_FRAME or head > length - 4:
                raise ProtocolError("a frame says that it is %d bytes long, its header %d" % (length, head))
            if end - start < 4 + length:
                break
            body = start + 8 + head
            start_of_header, start = start + 8, start + 4 + length
            frames.append((_read_header(bytes(buffer[start_of_header:body])), bytes(buffer[body:start])))
        if start:
            del buffer[:start]
        return frames


def _read_header(text: bytes) -> "dict[str, object]":
    try:
        header = json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ProtocolError("a header is not JSON: %s" % error)
    if not isinstance(header, dict) or not isinstance(header.get("t"), str):
        raise ProtocolError("a header is not an object with a type")
    return header


def whole(value: object, least: int = 0, most: int = LONGEST_NUMBER) -> int:
    """``value`` as a whole number in a range.  Raises ProtocolError."""
    if type(value) is not int or not least <= value <= most:
        raise ProtocolError("not a number from %d to %d: %.80r" % (least, most, value))
    return value


def seconds(value: object) -> float:
    """``value`` as a duration: a number of seconds, not negative, at most some years.  Raises ProtocolError."""
    if type(value) not in (int, float) or not 0 <= value <= 1e9:  # type: ignore[operator]  # the type has just been looked at
        raise ProtocolError("not a duration: %.80r" % (value,))
    return float(value)  # type: ignore[arg-type]  # the same


def text(value: object) -> str:
    """``value`` as a string without NUL.  Raises ProtocolError."""
    if not isinstance(value, str) or "\0" in value:
        raise ProtocolError("not a text: %.80r" % (value,))
    return value


def rows(header: "dict[str, object]", width: int) -> "list[list[object]]":
    """The rows under ``jobs``: each a list of ``width`` values that begins with a job's and an attempt's number."""
    listed = header.get("jobs")
    if not isinstance(listed, list):
        raise ProtocolError("no list of jobs")
    for row in listed:
        if not isinstance(row, list) or len(row) != width:
            raise ProtocolError("not a row of %d values: %.80r" % (width, row))
        whole(row[0], -2)
        whole(row[1])
    return listed
