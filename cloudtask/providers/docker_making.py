"""The making of containers: each at most once by its name, started by whoever comes after a cut, and gone where it cannot be started."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from cloudtask.providers import docker_sshd as sshd
from cloudtask.providers.base import Order, Tags
from cloudtask.providers.docker_containers import LABEL, LOGIN, SSH_LABEL, SSH_PORT, name_of
from cloudtask.transports.docker_engine import EngineError, engine_errors

if TYPE_CHECKING:
    from docker import APIClient

NO_SUCH = 404
_CONFLICT = 409
_AT_ONCE = 8
_IDLE = "trap 'exit 0' TERM INT; while :; do sleep 3600 & wait $!; done"
"""The first process of a container without a timer."""
_LOG = {"Type": "json-file", "Config": {"max-size": "1m", "max-file": "1"}}

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What containers are to be.  ``login`` is the user of the image; ``ssh_at`` the address of the engine's machine at which sshd is
    published, empty where there is to be none."""

    image: str
    login: str = ""
    cpus: float | None = None
    memory: int | None = None
    volumes: Sequence[str] = ()
    network: str | None = None
    ssh_at: str = ""


def look_at_image(client: APIClient, image: str) -> str | None:
    """The image's user (empty: root); None where the image is not here.  Raises EngineError."""
    try:
        with engine_errors(f"looking at image {image}"):
            found: Any = client.inspect_image(image)  # type: ignore[no-untyped-call]  # so it is in the stubs
            user = (found.get("Config") or {}).get("User")
    except EngineError as error:
        if error.status == NO_SUCH:
            return None
        raise
    return user.partition(":")[0] if isinstance(user, str) else ""


def missing_volume(client: APIClient, volumes: Sequence[str]) -> str | None:
    """The first volume with a name that is not there: made by the way, it would stay for ever.  Raises EngineError."""
    for name in [volume.partition(":")[0] for volume in volumes if not volume.startswith("/")]:
        try:
            with engine_errors(f"looking at volume {name}"):
                client.inspect_volume(name)
        except EngineError as error:
            if error.status == NO_SUCH:
                return name
            raise
    return None


def make(client: APIClient, order: Order, index: int, shape: Shape) -> None:
    """The container with that index of an order: made and started, unless it is already.  Raises EngineError."""
    name = name_of(order.token, index)
    try:
        with engine_errors("making a container"):
            client.create_container(name=name, host_config=_host_config(shape), **_recipe(order, shape))
    except EngineError as error:
        if error.status != _CONFLICT:
            raise
    with engine_errors("looking at a container"):
        found = client.inspect_container(name)
        container, state, labels = str(found["Id"]), str(found["State"]["Status"]), found["Config"]["Labels"] or {}
    if Tags.from_dict(labels) != order.tags:
        raise EngineError(f"a container that is not of this order has the name {name}", _CONFLICT)
    if state == "created":
        _start(client, order, container, shape)


def _recipe(order: Order, shape: Shape) -> dict[str, Any]:
    """The words of the create call about what runs in it."""
    timer = order.timer or _IDLE
    return {
        "image": shape.image,
        "entrypoint": ["/bin/sh", "-c", (sshd.START if shape.ssh_at else "") + timer, "cloudtask-timer", "--main"],
        "user": "0",
        "labels": {**order.tags.as_dict(), LABEL: order.label, LOGIN: shape.login, **({SSH_LABEL: "yes"} if shape.ssh_at else {})},
        "ports": [22] if shape.ssh_at else None,
        "healthcheck": {"test": ["NONE"]},  # the image's own is about a command that does not run here
    }


def _host_config(shape: Shape) -> dict[str, Any]:
    """The words about what it may use, as the API has them.  ``Init``: what a job leaves behind is reaped."""
    words = {
        "Init": True,
        "LogConfig": _LOG,
        "NanoCpus": round(shape.cpus * 1e9) if shape.cpus else None,
        "Memory": shape.memory,
        "MemorySwap": shape.memory,
        "NetworkMode": shape.network,
        "Mounts": [_mount(volume) for volume in shape.volumes],
        "PortBindings": {SSH_PORT: [{"HostIp": shape.ssh_at, "HostPort": ""}]} if shape.ssh_at else None,
    }
    return {name: value for name, value in words.items() if value}


def _mount(volume: str) -> dict[str, Any]:
    """A mount as the API has them: unlike a "bind", it makes no directory of a path that is not there."""
    source, target, *mode = volume.split(":")
    return {"Type": "bind" if source.startswith("/") else "volume", "Source": source, "Target": target, "ReadOnly": mode == ["ro"]}


def _start(client: APIClient, order: Order, container: str, shape: Shape) -> None:
    try:
        if shape.ssh_at:
            with engine_errors("putting keys into a container"):
                client.put_archive(container, "/", sshd.files(order))
        with engine_errors("starting a container"):
            client.start(container)
    except EngineError as error:
        if error.status is None:
            raise
        remove(client, container)
        # It is known why it does not start, and nothing is left of it.
        raise EngineError(str(error), error.status, hopeless=True) from error


def remove(client: APIClient, container: str) -> None:
    """Destroys a container with its files and its volumes without a name.  One that is gone, or going, is as good.  Raises EngineError."""
    try:
        with engine_errors("removing a container"):
            client.remove_container(container, v=True, force=True)
    except EngineError as error:
        if error.status not in (NO_SUCH, _CONFLICT):
            raise


def in_parallel(work: Callable[[T], None], items: Iterable[T], seconds: float) -> list[EngineError]:
    """Does the work on each item, eight at a time, beginning none after so many seconds; what went wrong.

    In threads that hold up nobody's end.
    """
    waiting, failures = deque(items), list[EngineError]()
    deadline = time.monotonic() + seconds

    def take_from_pile() -> None:
        while True:
            try:
                item = waiting.popleft()
            except IndexError:
                return
            try:
                if time.monotonic() > deadline:
                    raise EngineError(f"the engine did not get through within {seconds:.0f} s")
                work(item)
            except EngineError as error:
                failures.append(error)

    threads = [threading.Thread(target=take_from_pile, name="docker", daemon=True) for _ in range(min(_AT_ONCE, len(waiting)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return failures
