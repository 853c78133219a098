"""One call of the TurnKey Hub's HTTP API: what is sent, what an answer is, and what an error means.

The API as its clients (hubtools, hubclient) use it: the key in a header ``apikey``, paths with a slash at their end, GET fields in the
query and others as a form, JSON back.  What is no success has a plain text ``Name:Description``.
"""

from __future__ import annotations

import http.client
import json
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from http.client import HTTPResponse
from typing import cast

from cloudtask.errors import ProviderBusyError, ProviderError, ProviderRefusedError
from cloudtask.printable import sanitize
from cloudtask.providers.web import NoRedirect

SILENCE = 30.0
"""Seconds without a byte after which a call is given up: the limit of the Hub's own clients."""

LONGEST = 60.0
"""Seconds that a whole answer may take."""

LARGEST = 32 << 20
"""Bytes that an answer may have."""

_ERROR = re.compile(r"\s*([A-Za-z][A-Za-z0-9_.]{0,80})\s*:\s*(.*)", re.DOTALL)
_SHOWN = 300
_ASK_AGAIN = (408, 425, 429)
"""Refusals of the moment: request timeout, too early, too many requests (RFC 9110, 8470, 6585)."""


class HubApi:
    """The API at ``url`` (with a slash at its end), as the user that ``key`` belongs to.

    Raises ProviderRefusedError where the Hub said no, ProviderBusyError for all that is no clear answer; never shows the key.
    """

    def __init__(self, url: str, key: str) -> None:
        self._url = url
        self._key = key
        self._opener = urllib.request.build_opener(NoRedirect)

    def get(self, path: str, **fields: str) -> object:
        """What JSON a GET gives."""
        return self._ask("GET", f"{path}?{urllib.parse.urlencode(fields)}", None)

    def post(self, path: str, fields: Mapping[str, str]) -> object:
        """What JSON a POST gives; None for an empty answer."""
        return self._ask("POST", path, fields)

    def put(self, path: str, fields: Mapping[str, str]) -> object:
        """What JSON a PUT gives; None for an empty answer."""
        return self._ask("PUT", path, fields)

    def _ask(self, method: str, path: str, fields: Mapping[str, str] | None) -> object:
        body = None if fields is None else urllib.parse.urlencode(fields).encode()
        headers = {"apikey": self._key, "Accept": "application/json", "User-Agent": "cloudtask"}
        request = urllib.request.Request(self._url + path, data=body, headers=headers, method=method)
        try:
            with self._opener.open(request, timeout=SILENCE) as answer:
                text = _read(cast(HTTPResponse, answer))
        except urllib.error.HTTPError as error:
            with error:
                raise self._said_no(error) from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = getattr(error, "reason", None) or error
            raise ProviderBusyError(f"hub: no answer to {method} {path.partition('?')[0]}: {self._shown(str(reason))}") from None
        return self._parsed(text, f"{method} {path.partition('?')[0]}")

    def _parsed(self, text: bytes, call: str) -> object:
        if not text.strip():
            return None
        try:
            return cast(object, json.loads(text))
        except (ValueError, RecursionError):
            beginning = self._shown(text[:60].decode(errors="replace"))
            raise ProviderBusyError(f"hub: the answer to {call} is no JSON: {beginning!r}") from None

    def _said_no(self, error: urllib.error.HTTPError) -> ProviderError:
        """Only the Hub's own words are a no: a proxy's error page settles nothing."""
        try:
            text = error.read(65536).decode(errors="replace")
        except (OSError, http.client.HTTPException, ValueError):
            text = ""
        words = _ERROR.fullmatch(text)
        if words and 400 <= error.code < 500 and error.code not in _ASK_AGAIN:
            return ProviderRefusedError(f"hub: {self._shown(f'{words[1]}: {words[2]}')}")
        said = self._shown(f"{words[1]}: {words[2]}" if words else text.strip().partition("\n")[0])
        return ProviderBusyError(f"hub: HTTP {error.code}" + (f": {said}" if said else ""))

    def _shown(self, text: str) -> str:
        """Text of the other side, on one harmless line and without the key."""
        line = sanitize(" ".join(text.replace(self._key, "(the key)").split()))
        line = "".join(character if character.isprintable() else "?" for character in line)
        return line if len(line) <= _SHOWN else f"{line[: _SHOWN - 3]}..."


def _read(answer: HTTPResponse) -> bytes:
    """All of a body.  One that drips or does not end raises TimeoutError or ValueError."""
    deadline, pieces, size = time.monotonic() + LONGEST, [], 0
    while piece := answer.read1(1 << 16):
        pieces.append(piece)
        size += len(piece)
        if size > LARGEST:
            raise ValueError(f"more than {LARGEST} bytes")
        if time.monotonic() > deadline:
            raise TimeoutError(f"not whole within {LONGEST:.0f} s")
    if answer.length:
        raise http.client.IncompleteRead(b"", answer.length)
    return b"".join(pieces)
