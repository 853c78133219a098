"""The ``docker`` provider: workers are containers of a Docker engine, the one of ``DOCKER_HOST``.

Any image with ``/bin/sh`` will do: its own command is not run, and the `docker` transport needs no sshd in it.  The container's first
process is the machine's timer, so that it ends where nobody uses it; what is left of it then is its name and files, until it is destroyed.

A container's name is made of its order's token, so the engine itself makes each once.  Its labels are its tags; the engine cannot change
them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from cloudtask.errors import ProviderBusyError, ProviderError, ProviderRefusedError, UsageError
from cloudtask.providers.base import TAG, Abilities, Instance, InstanceState, Launched, Offer, Order, Tags, chosen
from cloudtask.providers.docker_containers import engine_mark, failed, is_local, read_row, split_id
from cloudtask.providers.docker_making import Shape, in_parallel, look_at_image, make, missing_volume, remove
from cloudtask.providers.docker_pull import Pull
from cloudtask.settings import Settings
from cloudtask.transports.docker_engine import Engine, EngineError, engine_errors, open_engine, plain, sdk_missing
from cloudtask.units import format_size

_REQUEST_SECONDS = 30.0
_CALL_SECONDS = 45.0
_PULL_SECONDS = 90.0
_NOT_NOW = (408, 429)


class DockerProvider:
    """See `Provider`.  Raises UsageError where the SDK is not installed, or settings do not go together.

    ``patience`` is how long one ``launch`` waits for an image, in seconds.
    """

    name = "docker"
    abilities = Abilities(idempotent=True, tags=True, host_key=True, timer=True, power_off_ends_billing=True)

    def __init__(self, settings: Settings, *, patience: float = _PULL_SECONDS) -> None:
        if missing := sdk_missing():
            raise UsageError(f"--provider=docker: {missing}")
        extra = settings.extra
        self._image: str | None = extra.get("docker_image")
        self._cpus: float | None = extra.get("docker_cpus")
        self._memory: int | None = extra.get("docker_memory")
        self._volumes: Sequence[str] = extra.get("docker_volume") or ()
        self._network: str | None = extra.get("docker_network")
        self._ssh: bool = bool(extra.get("docker_ssh"))
        if self._ssh and self._network and (self._network in ("none", "host") or self._network.startswith("container:")):
            raise UsageError(f"--docker-ssh publishes a port, which --docker-network={self._network} does not let it do")
        self._patience = patience
        self._opened: tuple[Engine, str] | None = None
        self._pulls: dict[str, Pull] = {}

    # --- the contract --------------------------------------------------------------------------------------------------

    def offer(self) -> Offer:
        """See `Provider`.  Asks the engine whether it is there and has the image."""
        if not self._image:
            raise UsageError("--provider=docker needs --docker-image=IMAGE, an image with /bin/sh such as debian:12")
        try:
            engine, _ = self._engine()
            here = look_at_image(engine.api, self._image) is not None
        except EngineError as error:
            raise ProviderRefusedError(f"docker: {error}") from error
        rows = {
            "image": self._image if here else f"{self._image} (not here: it is pulled first)",
            "cpus": f"{self._cpus:g}" if self._cpus else "",
            "memory": format_size(self._memory) if self._memory else "",
            "volumes": " ".join(self._volumes),
            "network": self._network or "",
            "engine": engine.host,
        }
        return Offer(
            size=self._image, price=0.0, minimum=0.0, transport="ssh" if self._ssh else "docker",
            rows={name: value for name, value in rows.items() if value},
        )  # fmt: skip

    def launch(self, order: Order) -> Launched:
        """See `Provider`.  An image that is not here is pulled; while that takes longer, the answer is ProviderBusyError."""
        if not self._image:
            raise ProviderRefusedError("docker: no --docker-image to make containers of")
        try:
            engine, _ = self._engine()
            shape = self._shape(engine, self._image)
        except EngineError as error:
            raise _error(error) from error
        failures = in_parallel(lambda index: make(engine.api, order, index, shape), range(order.count), _CALL_SECONDS)
        return self._answer(order, failures)

    def describe(self, ids: Sequence[str]) -> list[Instance]:
        """See `Provider`."""
        wanted = self._containers(ids)
        if not wanted:
            return [Instance(id=id, state=InstanceState.ABSENT) for id in ids]
        found = {each.id: self._with_last_words(each) for each in self._list({"id": sorted(set(wanted.values()))})}
        return [found.get(id) or Instance(id=id, state=InstanceState.ABSENT) for id in ids]

    def destroy(self, ids: Sequence[str]) -> None:
        """See `Provider`.  With the container go its files and its volumes without a name."""
        wanted = self._containers(ids, strict=False)
        engine, _ = self._connected()
        failures = in_parallel(lambda container: remove(engine.api, container), sorted(set(wanted.values())), _CALL_SECONDS)
        if failures:
            raise _error(failures[0])
        self._containers(ids)

    def find(self, session: str | None = None) -> list[Instance]:
        """See `Provider`."""
        return chosen(self._list({"label": TAG if session is None else f"{TAG}={session}"}), session)

    def renew(self, ids: Sequence[str], tags: Tags) -> None:
        """Labels stay what they are."""
        raise ProviderRefusedError("docker: the labels of a container cannot be changed")

    def console_keys(self, id: str) -> list[str]:
        """A container has no console."""
        return []

    # --- the engine ----------------------------------------------------------------------------------------------------

    def _engine(self) -> tuple[Engine, str]:
        """The engine, and its mark.  Raises EngineError."""
        if self._opened is None:
            engine = open_engine(_REQUEST_SECONDS)
            with engine_errors("asking who it is"):
                self._opened = engine, _mark_of(engine)
        return self._opened

    def _connected(self) -> tuple[Engine, str]:
        try:
            return self._engine()
        except EngineError as error:
            raise _error(error) from error

    def _list(self, filters: dict[str, Any]) -> list[Instance]:
        engine, mark = self._connected()
        try:
            with engine_errors("listing containers"):
                return [read_row(row, mark, engine.host) for row in engine.api.containers(all=True, filters=filters)]
        except EngineError as error:
            raise _error(error) from error

    def _with_last_words(self, instance: Instance) -> Instance:
        """A container that has failed says why, where it had anything to say: no shell, no sshd."""
        parts = split_id(instance.id)
        if not parts or not failed(instance):
            return instance
        engine, _ = self._connected()
        try:
            with engine_errors("reading a log"):
                said = plain(bytes(engine.api.logs(parts[0], tail=1)).decode("utf-8", "replace"))
        except EngineError:
            return instance
        return replace(instance, note=f"{instance.note}: {said}") if said else instance

    def _containers(self, ids: Iterable[str], *, strict: bool = True) -> dict[str, str]:
        """Id -> container, for those that can be this engine's.  Raises ProviderBusyError where one is another engine's."""
        engine, mine = self._connected()
        split = {id: parts for id in ids if (parts := split_id(id))}
        elsewhere = [container for container, mark in split.values() if mark != mine]
        if elsewhere and strict:
            raise ProviderBusyError(
                f"docker: container {elsewhere[0][:12]} belongs to another engine than that at {engine.host}: "
                "set DOCKER_HOST to the one that it was launched with"
            )
        return {id: container for id, (container, mark) in split.items() if mark == mine}

    def _shape(self, engine: Engine, image: str) -> Shape:
        """Raises EngineError, ProviderError."""
        login = look_at_image(engine.api, image)
        if login is None:
            self._pull(image)
            login = look_at_image(engine.api, image) or ""
        if name := missing_volume(engine.api, self._volumes):
            raise ProviderRefusedError(f"docker: there is no volume {name}: docker volume create {name}")
        return Shape(
            image=image, login=login, cpus=self._cpus, memory=self._memory, volumes=self._volumes, network=self._network,
            ssh_at=("127.0.0.1" if is_local(engine.host) else "0.0.0.0") if self._ssh else "",
        )  # fmt: skip

    def _pull(self, image: str) -> None:
        pull = self._pulls.get(image) or Pull(image)
        self._pulls[image] = pull
        if not pull.wait(self._patience):
            raise ProviderBusyError(f"docker: image {image} is still being pulled ({pull.progress()})")
        del self._pulls[image]
        if pull.failure:
            raise ProviderRefusedError(f"docker: no image {image} here, and {pull.failure}: try docker pull {image}") from pull.failure

    def _answer(self, order: Order, failures: list[EngineError]) -> Launched:
        """All that the order has.  Raises ProviderError."""
        made = [each for each in self._list({"label": f"{TAG}-token={order.token}"}) if each.tags == order.tags]
        errors = [_error(each) for each in failures]
        said = "; ".join(dict.fromkeys(str(each) for each in errors))
        if any(isinstance(each, ProviderBusyError) for each in errors):
            raise ProviderBusyError(said)
        if errors and not made:
            raise ProviderRefusedError(said)
        return Launched(made, refusal=said)


def _mark_of(engine: Engine) -> str:
    """Podman, which answers like Docker, gives itself another id each time."""
    ids = {str(engine.api.info()["ID"]) for _ in range(2)}
    return engine_mark(ids.pop() if len(ids) == 1 else "")


def _error(error: EngineError) -> ProviderError:
    """ProviderRefusedError where the engine said no, or can never be asked; else ProviderBusyError."""
    refused = error.hopeless or (error.status is not None and 400 <= error.status < 500 and error.status not in _NOT_NOW)
    return (ProviderRefusedError if refused else ProviderBusyError)(f"docker: {error}")
