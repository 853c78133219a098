"""What the servers of the clouds' APIs share: JSON over HTTP on a loopback port, faults to order, machines whose state follows the clock.

::

    with LinodeServer(boot=0.2) as server:
        server.fail("POST", "/instances", Fault(status=500))                 # the next one
        server.fail("POST", "/instances", Fault(after=True))                 # done, but the answer is lost
        ...
        assert server.live() == []
"""

from __future__ import annotations

import json
import ssl
import threading
import time
import urllib.parse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, NamedTuple, Protocol, Self

NEVER = float("inf")


class Stage(Protocol):
    """What makes real machines of it: see `tests.stage.stage`."""

    def start(self, machine_id: str, user_data: str = "", *, commands: bool = False, boot_seconds: float = 0.0) -> str:
        """A machine; its address."""

    def stop(self, machine_id: str) -> None:
        """Ends it."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What happens to a call instead of what it asks for, or (``after``) when that is done.

    ``status`` 0 hangs up without an answer; ``wait`` is how many seconds it is silent first.
    """

    status: int = 0
    body: str = ""
    kind: str = "application/json"
    after: bool = False
    wait: float = 0.0
    headers: Mapping[str, str] = field(default_factory=dict)


class Call(NamedTuple):
    """One request that came in."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: Any


class Answer(NamedTuple):
    """What is sent back, ``body`` as JSON."""

    status: int
    body: Any = None
    headers: Mapping[str, str] = {}


class Refusal(Exception):
    """An answer in the middle of something."""

    def __init__(self, status: int, body: Any) -> None:
        super().__init__(status)
        self.answer = Answer(status, body)


@dataclass
class Machine:
    """A machine as the cloud keeps it.  Times are of time.monotonic(); ``wrong`` says why it never starts."""

    id: str
    name: str
    fields: dict[str, Any]
    address: str = ""
    user_data: str = ""
    began: float = field(default_factory=time.monotonic)
    made: float = field(default_factory=time.time)
    ended: float = NEVER
    wrong: str = ""

    @property
    def age(self) -> float:
        """Seconds since it was made."""
        return time.monotonic() - self.began


class CloudServer:
    """A context manager; `answer` is each cloud's own.

    ``boot`` is the seconds until a machine runs, ``leaving`` those that a destroyed one is still shown, ``quota`` how many there may be.
    With a ``stage`` each machine is a real one.
    """

    def __init__(self, *, boot: float = 0.0, leaving: float = 0.0, quota: int = 20, stage: Stage | None = None) -> None:
        self.boot = boot
        self.leaving = leaving
        self.quota = quota
        self.machines: dict[str, Machine] = {}
        self.calls: list[Call] = []
        self.always: Fault | None = None
        self.lock = threading.RLock()
        self._stage = stage
        self._made = 0
        self._faults: list[tuple[str, str, Fault]] = []
        self._closing = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._asked())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        for each in self.live():
            self.end(each)

    def secure(self, cert: str, key: str) -> None:
        """From now on with TLS."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(cert, key)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)

    def fail(self, method: str, part: str, *faults: Fault, skip: int = 0) -> None:
        """The next calls with this method and this in their path meet these faults, one each, after ``skip`` that go well."""
        with self.lock:
            self._faults += [(method, part, Fault(status=-1))] * skip + [(method, part, fault) for fault in faults]

    def asked(self, method: str, part: str) -> list[Call]:
        """The calls with this method and this in their path."""
        with self.lock:
            return [each for each in self.calls if each.method == method and part in each.path]

    def live(self) -> list[str]:
        """The ids of the machines that nobody has destroyed."""
        with self.lock:
            return [each.id for each in self.machines.values() if each.ended == NEVER]

    def shown(self) -> list[Machine]:
        """The machines that a list has, oldest first."""
        now = time.monotonic()
        return [each for each in self.machines.values() if now < each.ended + self.leaving]

    def add(self, name: str, fields: dict[str, Any], user_data: str = "") -> Machine:
        """A new machine."""
        with self.lock:
            self._made += 1
            machine = Machine(self.new_id(self._made), name, fields, f"203.0.113.{self._made % 250 + 1}", user_data)
            self.machines[machine.id] = machine
            if self._stage:
                machine.address = self._stage.start(f"m{self._made}", user_data, boot_seconds=self.boot)
                machine.fields["stage"] = f"m{self._made}"
            return machine

    def end(self, id: str) -> None:
        """It is destroyed."""
        with self.lock:
            machine = self.machines[id]
            machine.ended = min(machine.ended, time.monotonic())
        if self._stage:
            self._stage.stop(machine.fields["stage"])

    def new_id(self, number: int) -> str:
        """The id of the machine with this number."""
        raise NotImplementedError

    def answer(self, call: Call) -> Answer:
        """What a call does; called with the lock held."""
        raise NotImplementedError

    # --- HTTP -----------------------------------------------------------------------------------------------------------

    def _fault(self, call: Call) -> Fault | None:
        for at, (method, part, fault) in enumerate(self._faults):
            if method == call.method and part in call.path:
                del self._faults[at]
                return fault if fault.status >= 0 else None
        return self.always

    def _serve(self, call: Call) -> tuple[Answer, Fault | None]:
        with self.lock:
            self.calls.append(call)
            fault = self._fault(call)
            if fault and not fault.after:
                return Answer(0), fault
            try:
                return self.answer(call), fault
            except Refusal as refusal:
                return refusal.answer, fault

    def _asked(self) -> type[BaseHTTPRequestHandler]:
        cloud = self

        class Asked(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            # An answer in one packet: head and body apart would wait 40 ms for each other.
            wbufsize = -1
            disable_nagle_algorithm = True
            timeout = 30

            def do_any(self) -> None:
                """Whatever the method."""
                parts = urllib.parse.urlsplit(self.path)
                data = self.rfile.read(int(self.headers.get("content-length") or 0))
                query = dict(urllib.parse.parse_qsl(parts.query))
                headers = {name.lower(): value for name, value in self.headers.items()}
                answer, fault = cloud._serve(Call(self.command, parts.path, query, headers, _read(data)))
                if fault:
                    cloud._closing.wait(fault.wait)
                    self._send(fault.status, fault.body.encode(), fault.kind, fault.headers)
                else:
                    body = b"" if answer.body is None else json.dumps(answer.body).encode()
                    self._send(answer.status, body, "application/json", answer.headers)

            do_GET = do_POST = do_PUT = do_DELETE = do_any  # names of http.server

            def _send(self, status: int, body: bytes, kind: str, headers: Mapping[str, str]) -> None:
                if not status:
                    self.close_connection = True
                    return
                try:
                    self.send_response(status)
                    for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **headers}.items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(body)
                except OSError:
                    self.close_connection = True

            def log_message(self, format: str, *args: object) -> None:
                """Nothing."""

        return Asked


def _read(data: bytes) -> Any:
    try:
        return json.loads(data) if data else None
    except ValueError:
        return data.decode(errors="replace")


def whole(text: str | None, otherwise: int) -> int:
    """A number of a query."""
    return int(text) if text and text.isdigit() else otherwise


Route = Callable[[Call], Answer]
