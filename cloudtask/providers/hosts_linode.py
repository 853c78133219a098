"""Hosts that are Linodes: booted and shut down by id, over API v4 (https://techdocs.akamai.com/linode-api).  A Linode that is off costs on.

The token is read from ``token_file``, else from the environment: ``LINODE_TOKEN`` or, as Linode's own program has it, ``LINODE_CLI_TOKEN``.
"""

from __future__ import annotations

import http.client
import json
import os
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any, cast

from cloudtask.errors import ProviderBusyError, ProviderError, ProviderRefusedError
from cloudtask.printable import sanitize
from cloudtask.providers.base import InstanceState
from cloudtask.providers.hosts_power import Standing, Switch
from cloudtask.providers.web import NoRedirect

VARIABLES = ("LINODE_TOKEN", "LINODE_CLI_TOKEN")
LIMIT = 20.0
"""Seconds without a byte after which a call is given up."""

LARGEST = 1 << 20
STATES = {
    "running": InstanceState.RUNNING,
    "offline": InstanceState.STOPPED,
    "stopped": InstanceState.STOPPED,
    "shutting_down": InstanceState.LEAVING,
    "deleting": InstanceState.GONE,
}
"""What API v4 says of a Linode; all else (booting, rebooting, migrating ...) is on its way."""


class LinodePower:
    """See `cloudtask.providers.hosts_power.Power`."""

    certain = True

    def __init__(self, switch: Switch) -> None:
        self._switch = switch
        self._place = f"{switch.options['url']}/linode/instances/{switch.options['id']}"

    def look(self) -> Standing:
        """See `Power`."""
        found = self._ask("GET", "")
        if found is None:
            return Standing(InstanceState.ABSENT, note=f"no Linode {self._switch.options['id']}")
        status, addresses = found.get("status"), found.get("ipv4")
        if not isinstance(status, str):
            raise self._trouble("an answer without a status", False)
        first = addresses[0] if isinstance(addresses, list) and addresses and isinstance(addresses[0], str) else None
        return Standing(STATES.get(status, InstanceState.PENDING), self._switch.address or first, note=sanitize(status[:40]))

    def start(self) -> None:
        """See `Power`."""
        self._ask("POST", "/boot")

    def stop(self, waited: float) -> None:
        """See `Power`."""
        self._ask("POST", "/shutdown")

    def _ask(self, method: str, act: str) -> Mapping[str, Any] | None:
        """The JSON of an answer; None where there is no such Linode."""
        token = self._token()
        headers = {"Authorization": f"Bearer {token}", "Accept": "application/json", "Content-Type": "application/json"}
        request = urllib.request.Request(self._place + act, data=b"{}" if act else None, headers=headers, method=method)
        try:
            with urllib.request.build_opener(NoRedirect).open(request, timeout=LIMIT) as answer:
                content = json.loads(answer.read(LARGEST))
        except urllib.error.HTTPError as error:
            with error:
                if error.code == 404 and method == "GET":
                    return None
                raise self._said_no(error, token) from None
        except (OSError, http.client.HTTPException, ValueError, RecursionError) as error:
            raise self._trouble(str(getattr(error, "reason", None) or error).replace(token, "(the token)"), False) from None
        if not isinstance(content, dict):
            raise self._trouble("an answer that makes no sense", False)
        return content

    def _said_no(self, error: urllib.error.HTTPError, token: str) -> ProviderError:
        """``{"errors": [{"reason": "..."}]}``; 400 is the answer to what is busy as well ("Linode busy")."""
        try:
            reason = str(cast("dict[str, Any]", json.loads(error.read(65536)))["errors"][0]["reason"])
        except (OSError, http.client.HTTPException, ValueError, KeyError, IndexError, TypeError, RecursionError):
            return self._trouble(f"HTTP {error.code}", False)
        refused = error.code in (401, 403, 404)
        return self._trouble(f"HTTP {error.code}: {reason.replace(token, '(the token)')}", refused)

    def _token(self) -> str:
        path = self._switch.options.get("token_file")
        try:
            if path:
                with open(path, encoding="ascii") as file:
                    token = file.read().strip()
            else:
                token = next((os.environ[name] for name in VARIABLES if os.environ.get(name)), "")
        except (OSError, ValueError) as error:
            raise self._trouble(f"{path} cannot be read: {getattr(error, 'strerror', None) or 'not text'}", True) from None
        if not (token.isascii() and token.isprintable() and token) or " " in token:
            raise self._trouble(f"there is no token: set {VARIABLES[0]}, or the key token_file", True)
        return token

    def _trouble(self, said: str, refused: bool) -> ProviderRefusedError | ProviderBusyError:
        kind = ProviderRefusedError if refused else ProviderBusyError
        return kind(f"hosts: {self._switch.name}: linode: {' '.join(sanitize(said).split())[:300]}")
