"""apache-libcloud's drivers, loaded when a provider needs one, and kept within limits: each request and each call has its time.

libcloud reads the environment for its own retries (``LIBCLOUD_RETRY_FAILED_HTTP_REQUESTS``), and a request that makes a machine must
never be sent twice; its drivers differ in whether they take a time limit or another address.  So the connections of a driver are set
up here, after it was made.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib import import_module
from typing import Any
from urllib.parse import urlsplit

from cloudtask.errors import UsageError
from cloudtask.providers.libcloud_config import Cloud

WHOLE = 3
"""Times the limit of one request that a call of ours may take altogether: a minute where a request has 20 seconds."""


class Limits:
    """The time that is left: ``each`` seconds for a request, `WHOLE` times that for the call that it belongs to."""

    def __init__(self, each: float) -> None:
        self._each = each
        self._end = 0.0

    def begin(self) -> None:
        """A call begins."""
        self._end = time.monotonic() + WHOLE * self._each

    @property
    def left(self) -> float:
        """Seconds until the call must end."""
        return self._end - time.monotonic()

    @property
    def room(self) -> bool:
        """There is time for one more request, should it take all that one may."""
        return self.left > self._each

    def next(self) -> float:
        """How long the next request may take.  Raises requests' Timeout where there is no time left."""
        if self.left <= 0:
            raise sdk("requests.exceptions").Timeout("out of time")
        return min(self._each, self.left)


def sdk(name: str) -> Any:
    """A module of libcloud or of what comes with it.  Raises UsageError where it is not installed."""
    try:
        return import_module(name)
    except ImportError as error:
        raise UsageError(f"no Python package {name.split('.')[0]}: pip install apache-libcloud (or 'cloudtask[libcloud]')") from error


def driver_class(driver: str) -> Any:
    """The class of a compute driver.  Raises UsageError where libcloud is not installed, or has none of that name."""
    try:
        return sdk("libcloud.compute.providers").get_driver(driver)
    except (AttributeError, ImportError) as error:
        raise UsageError(f"{driver}: the installed apache-libcloud has no such driver, or it needs more packages: {error}") from error


def connections(driver: Any) -> list[Any]:
    """All connections that a driver has, to each of its services."""
    kind = sdk("libcloud.common.base").Connection
    return [each for each in vars(driver).values() if isinstance(each, kind)]


def tame(driver: Any, cloud: Cloud, limits: Limits) -> None:
    """Time limits, no retries, the address and the certificates that the configuration names."""
    connect = _connector(limits, cloud.cacert)
    for connection in connections(driver):
        connection.conn_class = connect
        connection.retryCls = _Once
        connection.timeout = cloud.timeout
        if cloud.endpoint:
            _point(connection, cloud.endpoint)
        connection.connect()


class _Once:
    """In the place of libcloud's retries: none."""

    def __init__(self, **limits: object) -> None:
        pass

    def __call__(self, request: Callable[..., object]) -> Callable[..., object]:
        return request


def _point(connection: Any, endpoint: str) -> None:
    parts = urlsplit(endpoint)
    connection.secure = 1 if parts.scheme == "https" else 0
    connection.host = parts.hostname
    connection.port = parts.port or (443 if connection.secure else 80)
    connection.request_path = parts.path.rstrip("/")


def _connector(limits: Limits, cacert: str | None) -> Callable[..., Any]:
    """What makes the HTTP sessions of a connection."""
    kind = sdk("libcloud.http").LibcloudConnection

    def connect(**words: Any) -> Any:
        made = kind(**words)
        made.ca_cert = cacert or made.ca_cert
        send = made.session.request

        def request(**words: Any) -> Any:
            return send(**{**words, "timeout": limits.next()})

        made.session.request = request
        return made

    return connect
