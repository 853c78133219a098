"""The ``docker`` transport: a program is an exec in a running container.  Neither ssh nor sshd is needed in the image, only ``/bin/sh``.

The host of an address is the container's id or name.  The engine keeps no exec alive and ends none: a program whose connection is cut
meets the end of its stdin, and what it writes from then on is thrown away.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from cloudtask.errors import ConnectError, RefusedError, WorkerError
from cloudtask.model import Address
from cloudtask.transports.base import Channel, ConnectOptions
from cloudtask.transports.docker_engine import Engine, EngineError, engine_errors, open_engine
from cloudtask.transports.docker_stream import Pump
from cloudtask.transports.docker_wire import Wire, start_exec
from cloudtask.transports.socket_end import SocketEnd

SHELL = "/bin/sh"
_STATUS_SECONDS = 5.0
_PAUSE = 0.01
_CLOSE_SECONDS = 1.0
_AS_THEY_ARE = frozenset(range(32, 127)) - frozenset(b"%\\'")
_ID_LENGTH = 64
_NO_SUCH = 404
_OVER = ("exited", "dead", "removing")


class DockerTransport:
    """A `Transport` to containers of the Docker engine."""

    def connect(self, address: Address, options: ConnectOptions) -> DockerConnection:
        """See `Transport`.  Raises RefusedError where there is no such container, user or shell, or the container has ended."""
        deadline = time.monotonic() + options.timeout
        who = f"docker container {address.host}"
        try:
            engine = open_engine(options.timeout)
        except EngineError as error:
            raise (RefusedError if error.hopeless else ConnectError)(f"{who}: {error}") from error
        connection = DockerConnection(engine, address.host, address.user or options.user)
        try:
            _check_running(engine, address.host, who)
            _check_shell(connection, who, deadline)
        except BaseException:
            connection.close()
            raise
        return connection


def _check_running(engine: Engine, host: str, who: str) -> None:
    try:
        with engine_errors("looking at it"):
            state = engine.api.inspect_container(host)["State"]
            running, paused, word = bool(state["Running"]), bool(state.get("Paused")), str(state.get("Status"))
    except EngineError as error:
        if error.status == _NO_SUCH:
            raise RefusedError(f"{who}: there is no such container") from error
        raise ConnectError(f"{who}: {error}") from error
    if paused:
        raise ConnectError(f"{who} is paused: docker unpause {host}")
    if not running:
        kind = RefusedError if word in _OVER else ConnectError
        raise kind(f"{who} does not run ({word}{_how_it_ended(state)})")


def _how_it_ended(state: Mapping[str, Any]) -> str:
    if state.get("OOMKilled") is True:
        return ", out of memory"
    return f", exit {state['ExitCode']}" if isinstance(state.get("ExitCode"), int) and state.get("Status") == "exited" else ""


def _check_shell(connection: DockerConnection, who: str, deadline: float) -> None:
    """The engine tells what is wrong with user or shell by the stdout of a program that never was."""
    channel, said = connection.open("echo cloudtask-$((40 + 2))"), b""
    try:
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                raise ConnectError(f"{who}: no answer from its {SHELL}")
            select.select([channel], [], [], left)
            with contextlib.suppress(BlockingIOError):
                if not (data := channel.recv(4096)):
                    break
                said += data
    finally:
        channel.close()
    if said.strip() != b"cloudtask-42":
        raise _refusal(who, (said or channel.complaints()).decode("utf-8", "replace"))


def _refusal(who: str, said: str) -> WorkerError:
    line = "".join(each for each in said.strip().splitlines()[0] if each.isprintable())[:300] if said.strip() else ""
    if not line:
        return ConnectError(f"{who}: its {SHELL} ended without a word")
    if "unable to find user" in line:
        return RefusedError(f"{who}: no such user there (docker: {line}); --user names another one")
    if SHELL in line:
        return RefusedError(f"{who}: the image has no {SHELL} (docker: {line}); use one that has")
    return RefusedError(f"{who}: no program can be started there (docker: {line})")


class DockerConnection:
    """A `Connection` to one container."""

    notes: tuple[str, ...] = ()

    def __init__(self, engine: Engine, container: str, user: str | None) -> None:
        self._engine = engine
        self._container = container
        # By number, root needs no /etc/passwd.
        self._user = "0" if user == "root" else user or ""
        short = container[:12] if len(container) == _ID_LENGTH else container
        self.login = f"{user}@{short}" if user else short
        self._channels: list[DockerChannel] = []
        self._open = True

    def open(self, command: str) -> Channel:
        """See `Connection`."""
        if not self._open:
            raise ConnectError(f"{self.login}: the connection is closed")
        try:
            exec_id = self._create(_shell_code(command))
            channel = DockerChannel(*start_exec(self._engine, exec_id), partial(self._ask_status, exec_id))
        except EngineError as error:
            self._open = False
            raise ConnectError(f"{self.login}: {error}") from error
        self._channels = [each for each in self._channels if each.fileno() >= 0]
        self._channels.append(channel)
        return channel

    def _create(self, code: str) -> str:
        with engine_errors("starting a program"):
            return str(self._engine.api.exec_create(self._container, [SHELL, "-c", code], stdin=True, user=self._user)["Id"])

    def _ask_status(self, exec_id: str) -> int | None:
        """The exit status, which may come a moment after the end of the output.  None where the engine does not know it (any more)."""
        deadline, pause = time.monotonic() + _STATUS_SECONDS, threading.Event()
        while self._open:
            try:
                with engine_errors("asking for an exit status"):
                    found = self._engine.api.exec_inspect(exec_id)
                    running, status = found["Running"], found["ExitCode"]
            except EngineError:
                self._open = False
                return None
            if not running or time.monotonic() > deadline:
                return status if isinstance(status, int) and not running else None
            pause.wait(_PAUSE)
        return None

    def alive(self) -> bool:
        """See `Connection`."""
        return self._open

    def close(self) -> None:
        """See `Connection`."""
        self._open = False
        while self._channels:
            self._channels.pop().close()
        self._engine.api.close()


def _shell_code(command: str) -> str:
    """The command as JSON can hold it: where it has bytes that are no UTF-8, printf(1) makes it on the worker."""
    raw = os.fsencode(command)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        octal = "".join(chr(byte) if byte in _AS_THEY_ARE else f"\\{byte:03o}" for byte in raw)
        return f"eval \"$(printf '{octal}')\""


class DockerChannel(SocketEnd):
    """A `Channel` to one exec.  ``ask_status`` is called once its output has ended."""

    def __init__(self, wire: Wire, ahead: bytes, ask_status: Callable[[], int | None]) -> None:
        self._ask_status = ask_status
        self._status: int | None = None
        self._pump = Pump(wire, ahead, self._learn_status)
        super().__init__(self._pump.theirs)
        self._pump.start()

    def _learn_status(self) -> None:
        self._status = self._ask_status()

    def complaints(self) -> bytes:
        """See `Channel`."""
        return self._pump.complaints()

    def exit_status(self) -> int | None:
        """See `Channel`."""
        return self._status

    def close(self) -> None:
        """See `Channel`."""
        if self._socket.fileno() >= 0:
            self._socket.close()
            self._pump.finish(_CLOSE_SECONDS)
