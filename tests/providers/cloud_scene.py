"""The scene of `tests.providers.contract` for a provider that goes through libcloud to a server of ours."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from cloudtask import providers
from cloudtask.providers.base import Provider
from tests.providers.contract import BaseScene, settings_with
from tests.providers.servers.cloud import CloudServer, Fault

GARBAGE = (
    Fault(status=500, body='{"errors": [{"reason": "oops"}]}'),
    Fault(status=502, body="<html>Bad Gateway</html>", kind="text/html"),
    Fault(status=200, body="<html>Sign in to the WiFi</html>", kind="text/html"),
    Fault(status=200, body="[1, 2"),
    Fault(status=429, body="{}", headers={"Retry-After": "1"}),
    Fault(),
)


class CloudScene(BaseScene):
    """``entry`` is the cloud in ``clouds.yaml``, but for where it is."""

    boot_seconds = 10.0
    reachable = False
    provider = ""
    create = ""

    def __init__(self, server: CloudServer, folder: Path, entry: dict[str, Any], stack: ExitStack) -> None:
        super().__init__()
        self.server = server
        self.folder = folder
        self.entry = entry
        self._stack = stack
        self._files = 0

    def make(self) -> Provider:
        """See `Scene`."""
        return self.made()

    def made(self, settings: dict[str, Any] | None = None, **entry: Any) -> Provider:
        """A provider with more in its settings, or in its entry."""
        self._files += 1
        file = self.folder / f"clouds{self._files}.yaml"
        file.touch(mode=0o600)
        file.write_text(json.dumps({self.provider: {**self.place(self.server), **self.entry, **entry}}))
        found = settings_with(provider=self.provider, libcloud_config=str(file), **(settings or {}))
        provider = providers.find(self.provider)(found)
        # How long a caller waits before it asks again: our servers know at once.
        provider.abilities = replace(provider.abilities, settles=0.2)
        return provider

    def place(self, server: CloudServer) -> dict[str, Any]:
        """Where a server is, as an entry says it."""
        return {"endpoint": server.url}

    def like(self) -> CloudServer:
        """Another server of this kind."""
        return type(self.server)()

    def broken(self) -> Iterator[Provider]:
        """See `Scene`: wrong credentials, all kinds of answers that are none, and nobody there."""
        yield self.wrong()
        server = self._stack.enter_context(self.like())
        for fault in GARBAGE:
            server.always = fault
            yield self.made(**self.place(server))
        server.always = Fault(wait=30)
        yield self.made(**self.place(server), timeout=0.3)
        with self.like() as gone:
            place = self.place(gone)
        yield self.made(**place)

    def wrong(self) -> Provider:
        """With wrong credentials."""
        return self.made(token="wrong-secret-word")

    def refusing(self) -> Provider:
        """See `Scene`."""
        self.server.quota = 0
        return self.made()

    def lose_answer(self) -> bool:
        """See `Scene`: of the second machine."""
        self.server.fail("POST", self.create, Fault(after=True), skip=1)
        return True

    def secrets(self) -> Iterable[str]:
        """See `Scene`."""
        return [str(value) for key, value in self.entry.items() if key in ("token", "password")] + ["wrong-secret-word"]
