"""An address of the web that a credential may be sent to.  Apart from `web`, whose imports take 20 ms: settings are checked with it."""

from __future__ import annotations

from urllib.parse import urlsplit

_LOOPBACK = ("localhost", "127.0.0.1", "::1")


def checked_url(text: str) -> str:
    """An address of the web, without slashes at its end.  Raises ValueError where it is none, or would show a credential to a network."""
    try:
        parts = urlsplit(text)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise ValueError("not an address of the web (https://...)") from None
    if not host or parts.scheme not in ("http", "https") or parts.username or parts.query or parts.fragment or not text.isascii():
        raise ValueError("not an address of the web (https://...)")
    if parts.scheme == "http" and host not in _LOOPBACK:
        raise ValueError("must begin with https://: what is secret would travel in clear")
    return text.rstrip("/")
