"""What the providers that speak HTTP themselves share: no way from the address that a credential is sent to, to another."""

from __future__ import annotations

import urllib.request
from http.client import HTTPMessage
from typing import IO


class NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would carry a credential to whom it names, and make a GET of a POST: it is an error here."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> urllib.request.Request | None:
        """None: followed by nobody."""
        return None
