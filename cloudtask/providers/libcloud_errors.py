"""What apache-libcloud raises, and what it means: the one place where its errors become ours.

libcloud has a handful of exception classes, drivers that raise bare ``Exception``, some that put the HTTP status into the text only, and
``requests`` below it all, whose messages hold whole addresses.  What says no is a ProviderRefusedError, all else a ProviderBusyError.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

from cloudtask.errors import ProviderBusyError, ProviderError, ProviderRefusedError

LONGEST = 300
"""Characters of a provider's own words that a message has at most."""

_STATUS = re.compile(r"(?:Status code|code): (\d{3})\b", re.ASCII)
_PASSING = (408, 423, 425)
"""HTTP statuses that say no for now only, beside 409, 429 and 5xx."""


class UnauthorisedError(ProviderRefusedError):
    """The credentials are refused.  ``stale``: it was a token that had been good, so another may be had."""

    stale = False


class AbsentError(ProviderRefusedError):
    """There is no such thing (404)."""


class ConflictError(ProviderBusyError):
    """It cannot be done as things stand (409): for a new machine that is a no."""


class ThrottledError(ProviderBusyError):
    """Too many requests (429): this one was not done."""


class Speaker:
    """Words of one cloud made fit for a message: one line, not too long, without credentials."""

    def __init__(self, name: str, secrets: Iterable[str]) -> None:
        self.name = name
        self._secrets = sorted((each for each in secrets if len(each) >= 4), key=len, reverse=True)

    def say(self, doing: str, words: str) -> str:
        """A message."""
        text = " ".join(words.split())
        for secret in self._secrets:
            text = text.replace(secret, "***")
        text = "".join(each if each.isprintable() else "?" for each in text)
        return f"{self.name}: {doing}: {text[:LONGEST] or 'no reason given'}"

    @contextmanager
    def translating(self, doing: str) -> Iterator[None]:
        """Whatever is raised within comes out as a ProviderError."""
        try:
            yield
        except ProviderError:
            raise
        except Exception as error:
            raise self.translate(error, doing) from error

    def translate(self, error: Exception, doing: str) -> ProviderError:
        """What an exception of libcloud, or of what is below it, means."""
        from libcloud.common.types import InvalidCredsError
        from requests.exceptions import RequestException, Timeout

        if isinstance(error, InvalidCredsError):
            return UnauthorisedError(self.say(doing, f"credentials refused: {_words_of(error)}"))
        if isinstance(error, Timeout):
            return ProviderBusyError(self.say(doing, "no answer in time"))
        if isinstance(error, (RequestException, OSError)):
            return self._without_answer(error, doing)
        status = _status_of(error)
        return self._by_status(status, error, doing) if status else ProviderBusyError(self.say(doing, f"odd answer: {_words_of(error)}"))

    def _without_answer(self, error: Exception, doing: str) -> ProviderError:
        # Never its own words: they have the address in them, and some drivers put credentials there.
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            return ProviderRefusedError(self.say(doing, "its certificate is signed by nobody we know; name who signs it as 'cacert'"))
        root = _root_of(error)
        return ProviderBusyError(self.say(doing, f"no connection: {getattr(root, 'strerror', None) or type(root).__name__}"))

    def _by_status(self, status: int, error: Exception, doing: str) -> ProviderError:
        said = f"HTTP {status}: {_words_of(error)}"
        if status == 401:
            refused = UnauthorisedError(self.say(doing, f"credentials refused: {said}"))
            refused.stale = True
            return refused
        if status == 404:
            return AbsentError(self.say(doing, said))
        if status == 409:
            return ConflictError(self.say(doing, said))
        if status == 429 or (status == 413 and _retry_after(error)):
            return ThrottledError(self.say(doing, said))
        if status >= 500 or status in _PASSING or status < 400 or "busy" in said.lower():
            return ProviderBusyError(self.say(doing, said))
        return ProviderRefusedError(self.say(doing, said))


def _status_of(error: Exception) -> int | None:
    for name in ("code", "http_code", "status"):
        if isinstance(found := getattr(error, name, None), int) and 100 <= found <= 599:
            return int(found)
    match = _STATUS.search(f"{getattr(error, 'value', '')} {getattr(error, 'body', '')}")
    return int(match[1]) if match else None


def _retry_after(error: Exception) -> bool:
    headers = getattr(error, "headers", None)
    return isinstance(headers, Mapping) and "retry-after" in headers


def _words_of(error: Exception) -> str:
    """What it says.  Not ``str(error)``: that of BaseHTTPError fails where the message is no text, others have whole bodies in it."""
    for name in ("message", "value"):
        if found := getattr(error, name, None):
            return _text_of(found)
    return _text_of(error.args[0]) if error.args else type(error).__name__


def _text_of(words: object) -> str:
    """Of an answer's error object, what it says: ``{"error": {"message": ...}}`` and its like."""
    if isinstance(words, Mapping):
        for key in ("message", "reason", "detail", "description", "error", "errors"):
            if key in words:
                return _text_of(words[key])
        return "; ".join(_text_of(each) for each in words.values())
    if isinstance(words, (list, tuple)):
        return "; ".join(_text_of(each) for each in words)
    return str(words)


def _root_of(error: BaseException) -> BaseException:
    seen = {id(error)}
    while (inner := error.__cause__ or error.__context__) is not None and id(inner) not in seen:
        seen.add(id(inner))
        error = inner
    return error
