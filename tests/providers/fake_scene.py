"""A scene with the fake provider, and what its tests look at."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from cloudtask import transports
from cloudtask.errors import ConnectError
from cloudtask.model import Address
from cloudtask.providers.base import Instance, InstanceState, Provider
from cloudtask.providers.fake import FakeProvider
from cloudtask.transports import Connection, ConnectOptions
from tests.providers.contract import BaseScene, host_key, launched, login_key, running, settings_with


class FakeScene(BaseScene):
    """Objects of the fake provider with one state; ``values`` are their settings."""

    boot_seconds = 10.0

    def __init__(self, root: Path, **values: object) -> None:
        super().__init__()
        self.root = root
        self.values = {"fake_state": str(root / "state"), **values}
        self.lost = False

    @property
    def state(self) -> str:
        """The provider's directory."""
        return str(self.values["fake_state"])

    def make(self) -> FakeProvider:
        """See `Scene`."""
        return self.with_values(**({"fake_faults": "lost-answer=1"} if self.lost else {}))

    def with_values(self, **more: object) -> FakeProvider:
        """With other settings, and the same state."""
        return FakeProvider(settings_with(**{**self.values, **more}))

    def bogus_id(self) -> str:
        """See `Scene`."""
        return "f-0123456789ab"

    def broken(self) -> Iterable[Provider]:
        """See `Scene`."""
        (self.root / "file").touch()
        yield self.with_values(fake_state=str(self.root / "file"))
        yield self.with_values(fake_faults="api-500=100%")
        yield self.with_values(fake_faults="throttle=100%")

    def refusing(self) -> Provider:
        """See `Scene`."""
        return self.with_values(fake_faults="refuse=quota")

    def lose_answer(self) -> bool:
        """See `Scene`."""
        self.lost = True
        return True

    def clean(self) -> None:
        """See `BaseScene`; without what goes wrong."""
        self.values = {**self.values, "fake_faults": None}
        self.lost = False
        super().clean()


def one_running(scene: FakeScene) -> Instance:
    """One machine, as soon as it runs."""
    [instance] = running(scene, launched(scene, scene.order()))
    return instance


def state_of(scene: FakeScene, id: str) -> InstanceState:
    """Of one machine, now."""
    return scene.make().describe([id])[0].state


def reached(scene: FakeScene, instance: Instance) -> Connection | None:
    """A login with the order's key, where the machine shows the order's host key; None where it does not answer."""
    key, config = scene.root / "key", scene.root / "ssh_config"
    key.write_text(login_key().private)
    key.chmod(0o600)
    config.touch()
    address = Address(
        host=instance.host or "", port=instance.port, user=instance.user, alias=f"cloudtask-{instance.id}", host_key=host_key().public
    )
    options = ConnectOptions(identity=str(key), ssh_config=str(config), known_hosts=str(scene.root / "known"), timeout=10.0)
    try:
        return transports.find(instance.transport or "ssh").connect(address, options)
    except ConnectError:
        return None


def marked(scene: FakeScene) -> set[str]:
    """The ids of all machines of this scene of which something runs, as the kernel knows them."""
    found = set()
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            words = dict(word.partition("=")[::2] for word in Path(f"/proc/{name}/environ").read_text(errors="replace").split("\0"))
        except OSError:
            continue
        if words.get("HOME", "").startswith(f"{scene.root}/"):
            found.add(words.get("FAKE_MACHINE", ""))
    return found


def named(words: str) -> list[int]:
    """The processes with ``words`` in their command line."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            if words.encode() in Path(f"/proc/{name}/cmdline").read_bytes():
                found.append(int(name))
        except OSError:
            continue
    return found
