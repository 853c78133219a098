"""Where the docker provider plays: its scenes, and containers as its tests see them."""

from __future__ import annotations

import select
import socket
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from cloudtask import transports
from cloudtask.model import Address
from cloudtask.providers.base import Instance, Order, Provider
from cloudtask.providers.docker import DockerProvider
from cloudtask.providers.docker_containers import engine_mark, instance_id
from cloudtask.transports import ConnectOptions
from tests.providers.contract import BaseScene, running, settings_with
from tests.providers.docker_engine import BUSYBOX, DEBIAN, Engine
from tests.providers.docker_proxy import LossyProxy

STRANGE_ANSWERS = (
    b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n",
    b"\x00garbage\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]",
    b"",
)


class DockerScene(BaseScene):
    """Containers of the busybox image, reached by exec."""

    boot_seconds = 20.0

    def __init__(self, engine: Engine, folder: Path, patch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.engine = engine
        self._folder = folder
        self._patch = patch
        self._mark = engine_mark(engine.client.info()["ID"])
        self._proxy: LossyProxy | None = None

    def make(self, **values: object) -> Provider:
        return DockerProvider(settings_with(**{"docker_image": BUSYBOX, **values}))

    def bogus_id(self) -> str:
        return instance_id("0" * 64, self._mark)

    def foreign_id(self) -> str:
        return instance_id(self.engine.run(BUSYBOX), self._mark)

    def lose_answer(self) -> bool:
        self.proxy().lose(rb"POST \S*/start\b")
        return True

    def proxy(self) -> LossyProxy:
        """The proxy that the engine is behind from now on."""
        if self._proxy is None:
            self._proxy = LossyProxy(self._folder / "proxy", self.engine.host)
            self._patch.setenv("DOCKER_HOST", self._proxy.host)
        return self._proxy

    def broken(self) -> Iterable[Provider]:
        """Nobody there, nobody at home, errors, garbage, and silence that ends."""
        self._patch.setenv("DOCKER_HOST", f"unix://{self._folder}/nobody")
        yield self.make()
        for number, answer in enumerate(STRANGE_ANSWERS):
            with Impostor(self._folder / f"impostor{number}", answer) as impostor:
                self._patch.setenv("DOCKER_HOST", impostor.host)
                yield self.make()
        self._patch.setenv("DOCKER_HOST", self.engine.host)

    def refusing(self) -> Provider:
        return self.make(docker_memory=1000)

    def clean(self) -> None:
        self._patch.setenv("DOCKER_HOST", self.engine.host)
        super().clean()
        if self._proxy:
            self._proxy.close()


class Impostor:
    """Gives one answer to whatever it is asked."""

    def __init__(self, path: Path, answer: bytes) -> None:
        self.host = f"unix://{path}"
        self._answer = answer
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(16)
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> Impostor:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                if connection.recv(65536):
                    connection.sendall(self._answer)


class SshScene(DockerScene):
    """Containers with an sshd."""

    def make(self, **values: object) -> Provider:
        return super().make(**{"docker_image": DEBIAN, "docker_ssh": True, **values})


def launch(scene: DockerScene, order: Order | None = None, **values: object) -> Instance:
    """One machine, running."""
    [instance] = scene.make(**values).launch(order or scene.order()).instances
    return running(scene, [instance.id])[0]


def details(scene: DockerScene, instance: Instance) -> dict[str, Any]:
    return dict(scene.engine.client.inspect_container(instance.id.partition(".")[0]))


def says(instance: Instance, command: str) -> str:
    """What a command prints there, as whoever the provider says logs in."""
    address = Address(host=instance.host or "", user=instance.user, transport=instance.transport)
    connection = transports.find(instance.transport or "ssh").connect(address, ConnectOptions(timeout=10.0))
    channel, said = connection.open(command), b""
    try:
        while True:
            assert select.select([channel], [], [], 20)[0], said
            try:
                data = channel.recv(4096)
            except BlockingIOError:
                continue
            if not data:
                return said.decode()
            said += data
    finally:
        connection.close()
