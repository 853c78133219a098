"""A TurnKey Hub on a loopback port: the calls of its HTTP API that launch, list and destroy, with its way to say no.

::

    with HubServer(key="K3Y", boot=0.2) as hub:
        hub.fail("POST", "launch/", Fault(status=500, body="oops"))
        ...
        assert hub.live() == []

What is known of the real one comes from its clients: the key in a header ``apikey``, slashes at the end of paths, forms in, JSON out,
plain text ``Name:Description`` for errors, a machine that is pending and cannot be terminated, and one that runs long before it is
``booted``.
"""

from __future__ import annotations

import json
import threading
import time
import urllib.parse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self

NEEDED = ("region", "size", "type", "arch", "label", "sec_updates")
REGIONS = ("us-east-1", "us-west-2", "eu-west-1")


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What happens to a call instead of, or (``after``) beside what it asks for.

    ``status`` 0 hangs up without an answer; ``wait`` is how many seconds it is silent first.
    """

    status: int = 0
    body: str = ""
    kind: str = "text/plain"
    after: bool = False
    wait: float = 0.0
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Machine:
    """A server as the Hub keeps it.  Times are of time.monotonic()."""

    number: int
    fields: Mapping[str, str]
    name: str
    began: float
    ended: float = 0.0

    @property
    def id(self) -> str:
        """As Amazon names it."""
        return f"i-{self.number:08x}"


@dataclass(frozen=True)
class Call:
    """One request that came in."""

    method: str
    path: str
    query: Mapping[str, str]
    form: Mapping[str, str]
    headers: Mapping[str, str]


class Refusal(Exception):
    """An error as the Hub writes it."""

    def __init__(self, status: int, name: str, description: str) -> None:
        super().__init__(name)
        self.status = status
        self.text = f"{name}:{description}"


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hung up is none."""


class HubServer:
    """A context manager.

    ``pending`` and ``boot`` are the seconds until a machine is running, and from then until it is booted; ``stays`` how long a terminated
    one is still listed, ``appears`` how long a new one is not listed yet; ``quota`` how many there may be.
    """

    def __init__(
        self, *, key: str = "HUBKEY", pending: float = 0.0, boot: float = 0.0, stays: float = 30.0, appears: float = 0.0, quota: int = 20
    ) -> None:
        self.key = key
        self.pending = pending
        self.boot = boot
        self.stays = stays
        self.appears = appears
        self.quota = quota
        self.backups = {"7"}
        self.machines: list[Machine] = []
        self.extra: list[object] = []
        self.calls: list[Call] = []
        self.lock = threading.Lock()
        self._faults: list[tuple[str, str, Fault]] = []
        self._leaving = threading.Event()
        self._server = _Server(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self._server.server_port}/api/"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._leaving.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def fail(self, method: str, part: str, *faults: Fault) -> None:
        """The next calls with this method and this in their path meet these faults, one each."""
        with self.lock:
            self._faults += [(method, part, fault) for fault in faults]

    def forgive(self) -> None:
        """Forget the faults that nobody met."""
        with self.lock:
            self._faults.clear()

    def live(self) -> list[str]:
        """The ids of the machines that are not terminated."""
        with self.lock:
            return [each.id for each in self.machines if not each.ended]

    def add(self, label: str) -> str:
        """A machine that somebody else launched; its id."""
        with self.lock:
            return self._new("core", {"region": "us-east-1", "size": "m1.small", "type": "s3", "label": label}).id

    def forms(self, part: str) -> list[Mapping[str, str]]:
        """The forms that came to paths with ``part`` in them."""
        with self.lock:
            return [call.form for call in self.calls if part in call.path and call.method != "GET"]

    def _new(self, name: str, fields: Mapping[str, str]) -> Machine:
        machine = Machine(len(self.machines) + 1, fields, name, time.monotonic())
        self.machines.append(machine)
        return machine

    # --- what is answered ---------------------------------------------------------------------------------------------

    def answer(self, call: Call) -> object:
        """What JSON a call gives.  Raises Refusal."""
        if "apikey" not in call.headers:
            raise Refusal(400, "Request.MissingHeader", "apikey")
        if call.headers["apikey"] != self.key:
            raise Refusal(400, "HubAccount.InvalidApiKey", f"the key {call.headers['apikey']} is not valid: look at your profile")
        for method, beginning, act in self._routes():
            if call.method == method and call.path.startswith(beginning) and call.path.endswith("/"):
                return act(call, call.path.removeprefix(beginning).split("/"))
        raise Refusal(404, "<html><body><h1>Page not found</h1></body></html>", "")

    def _routes(self) -> list[tuple[str, str, Callable[[Call, list[str]], object]]]:
        return [
            ("POST", "amazon/launch/", self._launch),
            ("GET", "amazon/instances/", lambda call, rest: [*map(self._shown, filter(self._listed, self.machines)), *self.extra]),
            ("GET", "amazon/instance/", lambda call, rest: [self._shown(self._machine(rest[0]))]),
            ("PUT", "amazon/instance/", self._terminate),
        ]

    def _launch(self, call: Call, rest: list[str]) -> object:
        for name in NEEDED:
            if not call.form.get(name):
                raise Refusal(400, "Request.MissingArgument", name)
        if rest[0] != "core" and not rest[0].startswith(("ami-", "snap-")):
            raise Refusal(404, "Appliance.NotFound", f"no appliance {rest[0]}")
        if call.form.get("backup_id", "7") not in self.backups:
            raise Refusal(404, "BackupRecord.NotFound", "no such backup")
        if call.form["region"] not in REGIONS:
            raise Refusal(400, "Request.InvalidArgument", "region")
        if sum(not each.ended for each in self.machines) >= self.quota:
            raise Refusal(400, "Amazon.InstanceLimitExceeded", "your quota allows for 0 more running instance(s)")
        return self._shown(self._new(rest[0], call.form))

    def _terminate(self, call: Call, rest: list[str]) -> object:
        machine = self._machine(rest[0])
        if rest[1:] != ["terminate", ""]:
            raise Refusal(400, "Request.InvalidArgument", "action")
        if self._status(machine) == "pending":
            raise Refusal(400, "Instance.InvalidState", "instance is pending: it can not be terminated")
        machine.ended = machine.ended or time.monotonic()
        return self._shown(machine)

    def _machine(self, id: str) -> Machine:
        for each in self.machines:
            if each.id == id and self._listed(each):
                return each
        raise Refusal(404, "Instance.NotFound", id)

    def _listed(self, machine: Machine) -> bool:
        now = time.monotonic()
        return now - machine.began >= self.appears and (not machine.ended or now - machine.ended < self.stays)

    def _status(self, machine: Machine) -> str:
        if machine.ended:
            return "terminated"
        return "running" if time.monotonic() - machine.began >= self.pending else "pending"

    def _shown(self, machine: Machine) -> dict[str, object]:
        status, age = self._status(machine), time.monotonic() - machine.began
        booted = age >= self.pending + self.boot
        return {
            "instanceid": machine.id,
            "type": machine.fields["size"],
            "region": machine.fields["region"],
            "ipaddress": f"127.1.0.{machine.number}" if status == "running" else None,
            "status": status,
            "ebs_backed": machine.fields["type"] == "ebs",
            "server": {
                "boot_status": "booted" if booted and status == "running" else "sec-updates" if status == "running" else "",
                "name": machine.name,
                "description": machine.fields["label"],
                "serverid": f"s{machine.number}",
            },
        }

    def _fault(self, call: Call) -> Fault | None:
        with self.lock:
            for index, (method, part, fault) in enumerate(self._faults):
                if method == call.method and part in call.path:
                    del self._faults[index]
                    return fault
        return None

    def respond(self, call: Call) -> Fault | None:
        """Status and body of a call; a fault in its place."""
        fault = self._fault(call)
        if fault and fault.wait:
            self._leaving.wait(fault.wait)
        with self.lock:
            self.calls.append(call)
            if fault and not fault.after:
                return fault
            try:
                body = json.dumps(self.answer(call))
            except Refusal as error:
                return fault or Fault(status=error.status, body=error.text)
        return fault or Fault(status=200, body=body, kind="application/json; charset=utf-8")

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                path, _, query = self.path.partition("?")
                size = int(self.headers.get("Content-Length") or 0)
                form = self.rfile.read(size).decode() if self.headers.get("Content-Type") == "application/x-www-form-urlencoded" else ""
                headers = {name.lower(): value for name, value in self.headers.items()}
                call = Call(self.command, path.removeprefix("/api/"), _fields(query), _fields(form), headers)
                fault = hub.respond(call)
                if fault and fault.status:
                    self._send(fault)

            do_POST = do_PUT = do_DELETE = do_GET

            def _send(self, fault: Fault) -> None:
                self.send_response(fault.status)
                body = b"" if fault.status == 204 else fault.body.encode()
                for name, value in {"Content-Type": fault.kind, "Content-Length": str(len(body)), **fault.headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *words: object) -> None:
                """Says nothing."""

        return Handler


def _fields(text: str) -> dict[str, str]:
    return dict(urllib.parse.parse_qsl(text, keep_blank_values=True))
