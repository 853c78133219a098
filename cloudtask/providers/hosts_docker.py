"""Hosts that are containers of a Docker engine, with an sshd in them: started and stopped."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from typing import Any

from cloudtask.errors import ProviderBusyError, ProviderRefusedError
from cloudtask.printable import sanitize
from cloudtask.providers.base import InstanceState
from cloudtask.providers.hosts_power import Standing, Switch

LIMIT = 30
"""Seconds for one call of the engine."""

STOP = 10
"""Seconds that the engine gives a container between TERM and KILL."""

STATES = {
    "created": InstanceState.STOPPED,
    "exited": InstanceState.STOPPED,
    "dead": InstanceState.STOPPED,
    "paused": InstanceState.STOPPED,
    "running": InstanceState.RUNNING,
    "restarting": InstanceState.PENDING,
    "removing": InstanceState.LEAVING,
}
"""The engine's words (Docker Engine API, ContainerInspect, State.Status)."""


class DockerPower:
    """See `cloudtask.providers.hosts_power.Power`.  A paused container is resumed, and then somebody else's to end."""

    certain = True

    def __init__(self, switch: Switch) -> None:
        self._switch = switch

    def look(self) -> Standing:
        """See `Power`."""
        with self._container() as container:
            if container is None:
                return Standing(InstanceState.ABSENT, note=f"no container {self._switch.options['container']!r}")
            state = STATES.get(container.status, InstanceState.PENDING)
            address = self._switch.address or _address(container.attrs)
            return Standing(state, address, paused=container.status == "paused", note=sanitize(str(container.status)))

    def start(self) -> None:
        """See `Power`."""
        with self._container() as container:
            if container is None:
                raise self._trouble(f"no container {self._switch.options['container']!r}", True)
            container.unpause() if container.status == "paused" else container.start()

    def stop(self, waited: float) -> None:
        """See `Power`."""
        with self._container() as container:
            if container is not None:
                container.stop(timeout=STOP)

    @contextmanager
    def _container(self) -> Iterator[Any]:
        """The container, None where there is none, for as long as the block lasts; the engine's errors in our words."""
        import docker
        import requests

        host = self._switch.options.get("host") or os.environ.get("DOCKER_HOST") or "unix:///var/run/docker.sock"
        try:
            _knock(host)
            # DOCKER_TLS_VERIFY and DOCKER_CERT_PATH count for every host.
            client = docker.from_env(timeout=LIMIT, environment={**os.environ, "DOCKER_HOST": host})
            with closing(client):
                try:
                    container = client.containers.get(self._switch.options["container"])
                except docker.errors.NotFound:
                    container = None
                yield container
        except docker.errors.APIError as error:
            refused = error.response is not None and 400 <= error.response.status_code < 500
            raise self._trouble(error.explanation or error, refused) from None
        except (docker.errors.DockerException, requests.RequestException, OSError, ValueError) as error:
            raise self._trouble(error, False) from None

    def _trouble(self, said: object, refused: bool) -> ProviderRefusedError | ProviderBusyError:
        kind = ProviderRefusedError if refused else ProviderBusyError
        return kind(f"hosts: {self._switch.name}: docker: {' '.join(sanitize(str(said)).split())[:300]}")


def _knock(host: str) -> None:
    """Raises OSError where nobody listens at a Unix socket: the SDK would not close its own then."""
    if host.startswith("unix://"):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(LIMIT)
            sock.connect(host.removeprefix("unix://"))


def _address(attributes: Mapping[str, Any]) -> str | None:
    """The address in the first of its networks that has one."""
    networks = (attributes.get("NetworkSettings") or {}).get("Networks") or {}
    found = [network.get("IPAddress") for network in networks.values() if isinstance(network, Mapping)]
    return next((address for address in found if isinstance(address, str) and address), None)
