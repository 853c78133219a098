"""The Docker engine's API through its SDK, for the transport and the provider: where the engine is, and what its errors mean.

The engine is the one of ``DOCKER_HOST``, ``DOCKER_TLS_VERIFY`` and ``DOCKER_CERT_PATH``, else the socket of this machine, as the ``docker``
command has it (docker(1), "ENVIRONMENT VARIABLES").  The SDK is loaded with this module, so that supervisors share one copy of it.
"""

from __future__ import annotations

import contextlib
import functools
import os
import socket
from collections.abc import Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from docker import APIClient

with contextlib.suppress(ImportError):  # `sdk_missing` says so, in one line
    import docker
    import docker.errors
    import docker.utils
    import requests.exceptions
    import urllib3.exceptions

DEFAULT_HOST = "unix:///var/run/docker.sock"
_WORDS_KEPT = 400


class EngineError(Exception):
    """What went wrong, in one line.  ``status`` is the HTTP status that the engine answered with, None where it gave no answer;
    ``hopeless`` says that another try would end the same, and that nothing was done."""

    def __init__(self, message: str, status: int | None = None, *, hopeless: bool = False) -> None:
        super().__init__(message)
        self.status = status
        self.hopeless = hopeless


def sdk_missing() -> str:
    """What to do about a missing SDK; empty where it is there."""
    return "" if find_spec("docker") else "the Python package docker is not installed: pip install 'cloudtask[docker]'"


def engine_host() -> str:
    """Where the engine is, as ``DOCKER_HOST`` says it."""
    return os.environ.get("DOCKER_HOST") or DEFAULT_HOST


class Engine(NamedTuple):
    """An engine that has answered: where it is, and the SDK's client for it."""

    host: str
    api: APIClient


def open_engine(timeout: float) -> Engine:
    """The engine, which has answered.  ``timeout`` is for each single request, in seconds.  Raises EngineError."""
    host = engine_host()
    if missing := sdk_missing():
        raise EngineError(missing, hopeless=True)
    if not host.startswith(("unix://", "tcp://", "http://", "https://")):
        way = "ssh -nNT -L /tmp/docker.sock:/var/run/docker.sock HOST, and DOCKER_HOST=unix:///tmp/docker.sock"
        raise EngineError(f"DOCKER_HOST={plain(host)}: only unix:// and tcp:// are known here; for ssh use {way}", hopeless=True)
    with engine_errors("connecting"):
        try:
            return Engine(host, _client_class(host)(version="auto", timeout=int(timeout), **docker.utils.kwargs_from_env()))
        except docker.errors.TLSParameterError as error:
            raise EngineError(f"DOCKER_TLS_VERIFY, DOCKER_CERT_PATH: {plain(str(error))}", hopeless=True) from error
        except (docker.errors.DockerException, OSError) as error:
            raise _no_engine(host, error) from error


@functools.cache
def _client_class(host: str) -> type[APIClient]:
    """The SDK's client without two of its faults."""

    class Client(docker.APIClient):
        # REQUESTS_CA_BUNDLE of the environment, where it is set, would take the place of DOCKER_CERT_PATH's authority.
        trust_env = property(lambda self: False, lambda self, value: None)  # a Session sets it to True

        def send(self, request: Any, **words: Any) -> Any:
            """Where nobody listens at a Unix socket the SDK forgets to close its own."""
            _knock(host)
            return super().send(request, **words)

    return Client


def _knock(host: str) -> None:
    """Raises OSError where nobody listens at a Unix socket."""
    if host.startswith("unix://"):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(socket_path(host))


def socket_path(host: str) -> str:
    """The path in ``unix:///path``."""
    return "/" + host.removeprefix("unix://").lstrip("/")


def _no_engine(host: str, error: Exception) -> EngineError:
    said = reason(error)
    cause = _cause(error)
    if isinstance(cause, PermissionError):
        return EngineError(f"{plain(host)}: {said}: may you use docker (group docker)?", hopeless=True)
    return EngineError(f"no engine answers at {plain(host)} ({said}): is dockerd running? DOCKER_HOST names another one")


@contextlib.contextmanager
def engine_errors(what: str) -> Iterator[None]:
    """Maps all that the SDK and what is under it raise to EngineError; ``what`` was being done."""
    try:
        yield
    except docker.errors.APIError as error:
        raise EngineError(f"{what}: {plain(str(error.explanation or error))}", error.status_code) from error
    except (
        docker.errors.DockerException, requests.exceptions.RequestException, urllib3.exceptions.HTTPError, OSError,
        ValueError, LookupError, TypeError, AttributeError,  # an answer that is none
    ) as error:  # fmt: skip
        raise EngineError(f"{what}: the engine at {plain(engine_host())} gave no answer: {reason(error)}") from error


def reason(error: BaseException) -> str:
    """What is at the bottom of an error, in a few words."""
    cause = _cause(error)
    if isinstance(cause, TimeoutError):
        return "timed out"
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror
    return plain(str(cause) or type(cause).__name__)


def _cause(error: BaseException) -> BaseException:
    """The error of the system under layers of others, which hold it as their cause or as an argument."""
    waiting, seen = [error], {id(error)}
    for each in waiting:
        if isinstance(each, OSError) and each.errno is not None and each.strerror:
            return each
        for below in (*each.args, getattr(each, "reason", None), each.__cause__, each.__context__):
            if isinstance(below, BaseException) and id(below) not in seen:
                seen.add(id(below))
                waiting.append(below)
    return waiting[-1] if isinstance(waiting[-1], TimeoutError) else error


def plain(text: str) -> str:
    """One printable line."""
    return "".join(each if each.isprintable() else " " for each in text).strip()[:_WORDS_KEPT]
