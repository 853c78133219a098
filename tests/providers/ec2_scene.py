"""Where the tests of the ``ec2`` provider play: `tests.stage.ec2_server`, with machines behind it or without."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cloudtask.providers.base import Provider
from cloudtask.providers.ec2 import Ec2Provider
from cloudtask.providers.ec2_api import ATTEMPTS
from tests.providers.contract import BaseScene, settings_with
from tests.sshd import free_port
from tests.stage.ec2_server import ACCESS_KEY, ACCOUNT, SECRET_KEY, Ec2Server

ODD_ANSWERS = (
    b"<html>teapot</html>",
    b"not XML at all",
    b"",
    b'<?xml version="1.0"?><Other xmlns="x"><thing/></Other>',
)


class Ec2Scene(BaseScene):
    """A server of EC2's API, and machines on a stage where there can be one."""

    boot_seconds = 20.0

    def __init__(self, server: Ec2Server, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.server = server
        self.reachable = server.stage is not None
        self._monkeypatch = monkeypatch
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_REGION", "AWS_DEFAULT_REGION"):
            monkeypatch.delenv(name, raising=False)

    def make(self, **settings: Any) -> Ec2Provider:
        return Ec2Provider(settings_with(**settings))

    def foreign_id(self) -> str:
        self.make()._api.call("run_instances", ImageId="ami-00000000000000001", MinCount=1, MaxCount=1, ClientToken="foreign")
        return f"{self.server.instances()[-1].id}.us-east-1.{ACCOUNT}"

    def broken(self) -> Iterator[Provider]:
        server = self.server
        faults: list[Callable[[], None]] = [
            lambda: server.fail("*", times=999),
            lambda: server.fail("*", times=999, status=503, code="RequestLimitExceeded", message="Request limit exceeded."),
            lambda: server.refused_keys.add(ACCESS_KEY),
            *(lambda body=body: server.garble("*", body, times=999) for body in ODD_ANSWERS),
        ]
        for fault in faults:
            fault()
            yield self.make(ami_id="ami-00000000000000001")
            server.mend()
        self._monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
        yield self.make()
        self._monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)

    def refusing(self) -> Provider:
        self.server.capacity = 0
        return self.make()

    def lose_answer(self) -> bool:
        self.server.lose("RunInstances", times=ATTEMPTS)
        return True

    def clean(self) -> None:
        """Nothing is absent here for a while but by order, so there is nothing to wait for."""
        self.server.mend()
        self.server.hidden.clear()
        self.make().destroy(self.server.alive())
        assert self.server.alive() == []

    def secrets(self) -> tuple[str, ...]:
        return ACCESS_KEY, SECRET_KEY


def last(scene: Ec2Scene, action: str) -> dict[str, str]:
    """What the last call of an action said."""
    return [call.words for call in scene.server.calls if call.action == action][-1]


def plain(ids: list[str]) -> list[str]:
    """As Amazon writes them."""
    return [each.partition(".")[0] for each in ids]
