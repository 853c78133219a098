"""Calls of libvirt: each with a time limit, its errors mapped in this one place.

libvirt's calls have no time limit of their own: one waits for ever for a daemon that is stopped, a storage pool on a dead NFS server
or an ssh that asks for a password.  So each runs in a thread that may be left behind, and the connection with it; the next call makes
a new one.  Keepalive messages end calls that wait for a daemon that says nothing, so that what was left behind goes away.  They
need libvirt's event loop, which one thread of the process runs.
"""

from __future__ import annotations

import errno
import re
import threading
import time
from collections.abc import Callable, Sequence
from functools import cache
from importlib import import_module
from typing import Any

from cloudtask.errors import ProviderBusyError, ProviderError, ProviderRefusedError, UsageError
from cloudtask.printable import sanitize

LIMIT = 20.0
"""Seconds that a call may take."""

_KEEPALIVE = (5, 4)
"""Seconds between two messages, and how many may stay unanswered."""

_LEFT_BEHIND = 16
"""So many calls may be waiting for ever before no more are made."""

_REFUSALS = """
    NO_SUPPORT ACCESS_DENIED AUTH_FAILED AUTH_CANCELLED AUTH_UNAVAILABLE OPERATION_DENIED OPERATION_UNSUPPORTED CONFIG_UNSUPPORTED
    ARGUMENT_UNSUPPORTED XML_ERROR XML_DETAIL XML_INVALID_SCHEMA INVALID_ARG NO_CONNECT NO_DOMAIN NO_STORAGE_POOL NO_STORAGE_VOL
    NO_NETWORK OS_TYPE DOM_EXIST CPU_INCOMPATIBLE
"""
"""libvirt's words for a no (virErrorNumber): asked again it would say it again."""

_UNSETTLED = "OPERATION_TIMEOUT RESOURCE_BUSY NO_MEMORY RPC OPERATION_ABORTED NO_CLIENT INVALID_CONN"
"""Those that settle nothing, whoever says them."""


@cache
def load() -> Any:
    """The package ``libvirt``, made quiet, with its event loop running.  Raises UsageError where it is not installed."""
    try:
        libvirt = import_module("libvirt")
    except ImportError as error:
        raise UsageError(f"--provider=libvirt needs libvirt-python ({error}): pip install 'cloudtask[libvirt]'") from None
    libvirt.registerErrorHandler(_say_nothing, None)
    libvirt.virEventRegisterDefaultImpl()
    threading.Thread(target=_run_events, args=(libvirt,), name="libvirt events", daemon=True).start()
    return libvirt


def _say_nothing(context: object, error: object) -> None:
    """In place of libvirt's own handler, which writes to stderr."""


def _run_events(libvirt: Any) -> None:
    try:
        while True:
            libvirt.virEventRunDefaultImpl()
    except libvirt.libvirtError:
        return  # without it only keepalive is missing


class _Call(threading.Thread):
    """One call of libvirt, which may never end."""

    def __init__(self, call: Callable[[], Any], foreign: type[Exception]) -> None:
        super().__init__(name="libvirt call", daemon=True)
        self._call, self._foreign = call, foreign
        self.answer: Any = None
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            self.answer = self._call()
        except self._foreign as error:
            self.error = error


class Calls:
    """A connection to libvirt, made when it is first needed and again when it was lost."""

    def __init__(self, uri: str, limit: float = LIMIT) -> None:
        self.libvirt = load()
        self.uri = uri
        self._limit = limit
        self._until = float("inf")
        self.shown_uri = re.sub(r"//([^/@:]*):[^/@]*@", r"//\1@", uri)
        self._connection: Any = None
        self._left_behind: list[_Call] = []

    def begin(self, seconds: float) -> None:
        """All calls from here on may take so long together."""
        self._until = time.monotonic() + seconds

    def on(self, method: str, *arguments: object, none_for: Sequence[str] = (), certain: bool = False) -> Any:
        """Calls a method of the connection; see `ask`."""
        return self.ask(getattr(self._connected(), method), *arguments, none_for=none_for, certain=certain)

    def ask(
        self,
        call: Callable[..., Any],
        *arguments: object,
        none_for: Sequence[str] = (),
        certain: bool = False,
        limit: float | None = None,
    ) -> Any:
        """What the call answers; None where it raises an error of ``none_for`` (``NO_DOMAIN``).

        ``certain``: whatever libvirt answers but yes means that nothing was done.  Raises ProviderRefusedError, ProviderBusyError.
        """
        thread = self._run(lambda: call(*arguments), limit or self._limit)
        if thread.error is None:
            return thread.answer
        code: int = thread.error.get_error_code()  # type: ignore[attr-defined]  # a libvirtError: libvirt has no types
        if code in self._codes(none_for):
            return None
        raise self._mapped(thread.error, code, certain)

    def refused(self, reason: str) -> ProviderRefusedError:
        """An error of ours, in the form of libvirt's."""
        return ProviderRefusedError(self._message(reason))

    def busy(self, reason: str) -> ProviderBusyError:
        """The same for what settles nothing."""
        return ProviderBusyError(self._message(reason))

    def _run(self, call: Callable[[], Any], limit: float) -> _Call:
        self._left_behind = [thread for thread in self._left_behind if thread.is_alive()]
        if len(self._left_behind) >= _LEFT_BEHIND:
            raise self.busy(f"{_LEFT_BEHIND} calls wait for an answer already; is libvirtd alive?")
        limit = min(limit, self._until - time.monotonic())
        if limit <= 0:
            raise self.busy("too slow: ask again for what is not done yet")
        thread = _Call(call, self.libvirt.libvirtError)
        thread.start()
        thread.join(limit)
        if thread.is_alive():
            self._left_behind.append(thread)
            self._connection = None
            raise self.busy(f"no answer within {limit:g} seconds")
        return thread

    def _connected(self) -> Any:
        if self._connection is None or not self._alive(self._connection):
            self._connection = None
            self._connection = self.ask(self.libvirt.open, self._quiet_uri())
            self.ask(self._connection.setKeepAlive, *_KEEPALIVE, none_for=("NO_SUPPORT", "INTERNAL_ERROR"))
        return self._connection

    def _quiet_uri(self) -> str:
        """ssh must not ask for a password: nobody would answer."""
        if "+ssh://" not in self.uri or "no_tty=" in self.uri:
            return self.uri
        return f"{self.uri}{'&' if '?' in self.uri else '?'}no_tty=1"

    def _alive(self, connection: Any) -> bool:
        """No question to the daemon: whether the connection is known to be lost."""
        try:
            return bool(connection.isAlive())
        except self.libvirt.libvirtError:
            return False

    def _codes(self, names: Sequence[str]) -> set[int]:
        return {getattr(self.libvirt, f"VIR_ERR_{name}") for name in names if hasattr(self.libvirt, f"VIR_ERR_{name}")}

    def _mapped(self, error: Any, code: int, certain: bool) -> ProviderError:
        """An error of libvirt's as ours."""
        words = error.get_error_message() or str(error)
        if self._connection is None:
            forbidden = code in self._codes(("SYSTEM_ERROR",)) and error.get_int1() in (errno.EACCES, errno.EPERM)
            no = forbidden or code in self._codes(("NO_CONNECT", "AUTH_FAILED", "AUTH_CANCELLED", "AUTH_UNAVAILABLE"))
        else:
            settled = not self._is_wire(error) and code not in self._codes(_UNSETTLED.split())
            no = settled and (certain or code in self._codes(_REFUSALS.split()))
        return self.refused(words) if no else self.busy(words)

    def _is_wire(self, error: Any) -> bool:
        """It was the connection that failed: the daemon may have done what it was asked."""
        rpc = (self.libvirt.VIR_FROM_RPC, self.libvirt.VIR_FROM_REMOTE)
        return error.get_error_domain() in rpc or not self._alive(self._connection)

    def _message(self, reason: str) -> str:
        return sanitize(f"libvirt ({self.shown_uri}): {reason.replace(self.uri, self.shown_uri).strip()}".replace("\n", " "))[:500]
