"""Amazon EC2 for tests: moto over HTTP, with what moto leaves out and what we lean on added in front of it.

::

    with Ec2Server(stage) as server:           # or without a stage: machines are answers only
        server.environment                     # AWS_ENDPOINT_URL and credentials, for boto3
        server.fail("RunInstances", status=500)
        server.lose("RunInstances")            # done, but the answer never comes

Added, as Amazon's documents have it: client tokens are honoured (the same answer again; other words are refused; so is a token of
terminated instances), MaxCount is tried for, instances begin ``pending``, spot instances have requests, Debian publishes images, and with a
stage each instance is a machine with the address that the API tells.  moto's backend is one for a process, so is the server.
"""

from __future__ import annotations

import base64
import contextlib
import datetime
import io
import os
import re
import socket
import threading
import urllib.parse
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.stage.stage import Stage, require_stage

os.environ.setdefault("MOTO_EC2_LOAD_DEFAULT_AMIS", "false")

ACCOUNT = "123456789012"
DEBIAN = "136693071363"
REGIONS = ("us-east-1", "eu-west-1")
ACCESS_KEY, SECRET_KEY = "AKIATESTTESTTESTTEST", "test-secret-test-secret-test-secret-test"
ATTEMPTS_OF_BOTO = 2
"""How often a call is made, as the provider has it: so many are lost until an answer is."""
XMLNS = "http://ec2.amazonaws.com/doc/2016-11-15/"
_INSTANCE = re.compile(r"<instanceId>(i-[0-9a-f]+)</instanceId>")
_SCOPE = re.compile(r"Credential=([^/]+)/[0-9]+/([^/]+)/")


@dataclass(frozen=True)
class Call:
    """A request as it came."""

    action: str
    region: str
    words: dict[str, str]
    access_key: str

    def values(self, prefix: str) -> list[str]:
        """A list parameter: ``InstanceId.1``, ``InstanceId.2`` ..."""
        return [value for name, value in self.words.items() if re.fullmatch(rf"{prefix}\.[0-9]+", name)]


@dataclass(frozen=True)
class Answer:
    """What goes back."""

    status: int
    body: bytes
    headers: list[tuple[str, str]] = field(default_factory=lambda: [("Content-Type", "text/xml")])


@dataclass
class Fault:
    """What shall go wrong with the next ``times`` calls of an action ("*" is any)."""

    action: str
    times: int
    answer: Callable[[Callable[[], Answer]], Answer | None]


class Ec2Server:
    """See the module.  ``boot_seconds``: between a machine's address and its sshd; ``commands``: its ``runcmd`` is run (the timer).

    ``told`` hears of machines that come and go.
    """

    def __init__(
        self,
        stage: Stage | None = None,
        *,
        boot_seconds: float = 0.0,
        commands: bool = False,
        port: int = 0,
        told: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.stage = stage
        self._port = port
        self._told = told
        self.calls: list[Call] = []
        self.hidden: set[str] = set()
        self.hide_new = False
        self.capacity = 1000
        self.page = 1000
        self.pending_seconds = 0.0
        self.refused_keys: set[str] = set()
        self.spot: dict[str, str] = {}
        self.consoles: dict[str, str] = {}
        self.boot_seconds = boot_seconds
        self._commands = commands
        self._guard = threading.RLock()
        self._faults: list[Fault] = []
        self._tokens: dict[tuple[str, str], tuple[dict[str, str], Answer, list[str]]] = {}
        self._hands = ThreadPoolExecutor(2)
        self._timers: list[threading.Timer] = []
        self._app: Any = None
        self._server: Any = None

    def __enter__(self) -> Self:
        from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
        from werkzeug.serving import make_server

        self._app = DomainDispatcherApplication(create_backend_app)
        self._reset()

        class Quiet(MotoRequestHandler):
            def log(self, type: str, message: str, *args: object) -> None:
                """Nothing on stderr."""

        self._server = make_server("127.0.0.1", self._port, self._serve, threaded=True, request_handler=Quiet)
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for timer in self._timers:
            timer.cancel()
        self._hands.shutdown(cancel_futures=True)
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        """For AWS_ENDPOINT_URL."""
        return f"http://127.0.0.1:{self._server.server_port}"

    @property
    def environment(self) -> dict[str, str]:
        """What boto3 needs to come here and nowhere else."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": "/dev/null",
            "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        }

    # --- what may go wrong

    def fail(self, action: str, *, times: int = 1, status: int = 500, code: str = "InternalError", message: str = "by order") -> None:
        """The next calls are answered with an error and do nothing."""
        self._faults.append(Fault(action, times, lambda _: _error(status, code, message)))

    def lose(self, action: str, *, times: int = 1) -> None:
        """The next calls are done, and the connection is closed without an answer."""

        def lose(perform: Callable[[], Answer]) -> None:
            perform()

        self._faults.append(Fault(action, times, lose))

    def garble(self, action: str, body: bytes, *, times: int = 1, status: int = 200) -> None:
        """The next calls are answered with ``body``."""
        self._faults.append(Fault(action, times, lambda _: Answer(status, body)))

    # --- what the tests look at and play

    def instance(self, id: str, region: str = "us-east-1") -> Any:
        """moto's own record of an instance; ``id`` may be one of ours."""
        return self._backend(region).get_instance(id.partition(".")[0])

    def instances(self, region: str = "us-east-1") -> list[Any]:
        """All that there are or were."""
        with self._guard:
            return list(self._backend(region).all_instances())

    def alive(self) -> list[str]:
        """The ids of all that exist, in all regions."""
        return [each.id for region in REGIONS for each in self.instances(region) if each.state != "terminated"]

    def volumes(self) -> list[Any]:
        """All disks."""
        return list(self._backend("us-east-1").volumes.values())

    def publish(self, name: str, created: str, *, region: str = "us-east-1", owner: str = DEBIAN, **more: Any) -> str:
        """An image, as its owner would publish it; its id."""
        from moto.ec2.models.amis import Ami

        backend = self._backend(region)
        day = datetime.datetime.fromisoformat(created)
        words: dict[str, Any] = {"architecture": "x86_64", "root_device_type": "ebs", "root_device_name": "/dev/xvda", **more}
        id = f"ami-{len(backend.amis):017x}"
        backend.amis[id] = Ami(backend, id, name=name, owner_id=owner, public=True, creation_date=day, **words)
        return id

    def interrupt(self, id: str, code: str) -> None:
        """A spot request's status changes: its machine is to go."""
        with self._guard:
            self.spot[self.instance(id).spot_instance_request_id] = code

    def take_back(self, id: str) -> None:
        """Amazon ends a spot machine."""
        instance = self.instance(id)
        self.interrupt(id, "instance-terminated-no-capacity")
        self._terminate(instance)
        instance.state_reason.code = "Server.SpotInstanceTermination"
        instance.state_reason.message = "Server.SpotInstanceTermination: Spot instance termination"

    def mend(self) -> None:
        """Nothing goes wrong any more."""
        self._faults.clear()
        self.refused_keys.clear()

    def machine_ended(self, id: str, why: str) -> None:
        """For `Stage`: a machine powered itself off."""
        self._told(f"{id} {why}")
        with self._guard:
            for region in REGIONS:
                for instance in self.instances(region):
                    if instance.id == id and instance.instance_initiated_shutdown_behavior == "terminate":
                        self._terminate(instance)
                    elif instance.id == id:
                        instance.stop()

    # --- requests

    def _serve(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        """The WSGI application."""
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        words = dict(urllib.parse.parse_qsl(body.decode(), keep_blank_values=True))
        scope = _SCOPE.search(environ.get("HTTP_AUTHORIZATION", ""))
        call = Call(words.get("Action", ""), scope[2] if scope else REGIONS[0], words, scope[1] if scope else "")
        with self._guard:
            self.calls.append(call)
            answer = self._faulty(call, lambda: self._perform(call, environ))
        if answer is None:
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            raise ConnectionAbortedError("the answer is lost, by order")
        headers = [pair for pair in answer.headers if pair[0].lower() != "content-length"]
        start_response(f"{answer.status} .", [*headers, ("Content-Length", str(len(answer.body)))])
        return [answer.body]

    def _faulty(self, call: Call, perform: Callable[[], Answer]) -> Answer | None:
        for fault in self._faults:
            if fault.action in ("*", call.action) and fault.times > 0:
                fault.times -= 1
                return fault.answer(perform)
        return perform()

    def _perform(self, call: Call, environ: dict[str, Any]) -> Answer:
        if call.access_key in self.refused_keys:
            return _error(401, "AuthFailure", f"AWS was not able to validate the provided access credentials {call.access_key}")
        act = {
            "RunInstances": self._run, "DescribeInstances": self._describe, "TerminateInstances": self._named, "CreateTags": self._named,
            "GetConsoleOutput": self._console, "DescribeSpotInstanceRequests": self._requests,
        }.get(call.action, self._forward)  # fmt: skip
        return act(call, environ)

    def _forward(self, call: Call, environ: dict[str, Any], **changes: str) -> Answer:
        """To moto, with some words changed."""
        body = urllib.parse.urlencode(call.words | changes).encode()
        got: dict[str, Any] = {}

        def started(status: str, headers: list[tuple[str, str]], *_: object) -> None:
            got.update(status=int(status.split()[0]), headers=headers)

        inner = {**environ, "wsgi.input": io.BytesIO(body), "CONTENT_LENGTH": str(len(body))}
        parts = self._app(inner, started)
        whole = b"".join(parts)
        return Answer(got["status"], whole, got["headers"])

    def _run(self, call: Call, environ: dict[str, Any]) -> Answer:
        token, room = (call.region, call.words["ClientToken"]), self.capacity - len(self.alive())
        if token in self._tokens:
            words, answer, ids = self._tokens[token]
            if words != call.words:
                message = "Arguments on this idempotent request are inconsistent with arguments used in previous request(s)."
                return _error(400, "IdempotentParameterMismatch", message)
            if any(self.instance(id, call.region).state == "terminated" for id in ids):
                return _error(
                    400, "IdempotentInstanceTerminated", "The client token you have provided is associated with a terminated instance."
                )
            return answer
        if wrong := self._impossible(call, room):
            return wrong
        sizes = {name.replace("DeviceName", "Ebs.VolumeSize"): "8" for name in call.words if name.endswith("DeviceName")}
        answer = self._forward(call, environ, MinCount=str(min(room, int(call.words["MaxCount"]))), **sizes)
        if answer.status == 200:
            ids = _INSTANCE.findall(answer.body.decode())
            for id in ids:
                self._begin(self.instance(id, call.region))
            body = answer.body.replace(b"<code>16</code>", b"<code>0</code>").replace(b"<name>running</name>", b"<name>pending</name>")
            answer = Answer(answer.status, body, answer.headers)
            self._tokens[token] = (call.words, answer, ids)
        return answer

    def _impossible(self, call: Call, room: int) -> Answer | None:
        """What moto does not mind."""
        words = call.words
        if room < int(words["MinCount"]):
            return _error(500, "InsufficientInstanceCapacity", "We currently do not have sufficient capacity in the Availability Zone.")
        if words["ImageId"] not in self._backend(call.region).amis:
            return _error(400, "InvalidAMIID.NotFound", f"The image id '[{words['ImageId']}]' does not exist")
        if len(base64.b64decode(words.get("UserData", ""))) > 16384:
            return _error(400, "InvalidParameterValue", "User data is limited to 16384 bytes")
        if any(name.endswith("Ebs.SnapshotId") for name in words):
            return _error(400, "InvalidBlockDeviceMapping", "snapshotId cannot be modified on root device")
        return None

    def _describe(self, call: Call, environ: dict[str, Any]) -> Answer:
        page = min(self.page, int(call.words.get("MaxResults", 1000)))
        answer = self._forward(call, environ, MaxResults=str(page), **self._by_token(call))
        if not self.hidden or answer.status != 200:
            return answer
        root = ET.fromstring(answer.body)
        for parent in root.findall(".//{*}instancesSet"):
            for item in [each for each in parent if each.findtext("{*}instanceId") in self.hidden]:
                parent.remove(item)
        for reservations in root.findall(".//{*}reservationSet"):
            for item in [each for each in reservations if not len(each.find("{*}instancesSet") or ())]:
                reservations.remove(item)
        return Answer(200, ET.tostring(root, encoding="utf-8"), answer.headers)

    def _by_token(self, call: Call) -> dict[str, str]:
        """The filter that moto has not, as one that it has."""
        found = {}
        for name in [name for name, value in call.words.items() if value == "client-token"]:
            token = call.words[name.replace("Name", "Value.1")]
            ids = [each.id for each in self.instances(call.region) if each.client_token == token] or ["i-00000000"]
            found = {name: "instance-id"} | {name.replace("Name", f"Value.{place}"): id for place, id in enumerate(ids, 1)}
        return found

    def _named(self, call: Call, environ: dict[str, Any]) -> Answer:
        """Calls that name instances, and do nothing where they know one of them not.  moto does what it can, EC2 does not."""
        ids = call.values("InstanceId") + call.values("ResourceId")
        known = {each.id for each in self.instances(call.region)} - self.hidden
        if unknown := [id for id in ids if id.startswith("i-") and id not in known]:
            subject = f"The instance ID '{unknown[0]}' does" if len(unknown) == 1 else f"The instance IDs '{', '.join(unknown)}' do"
            return _error(400, "InvalidInstanceID.NotFound", f"{subject} not exist")
        answer = self._forward(call, environ)
        if call.action == "TerminateInstances":
            for id in ids:
                self._end(id)
        return answer

    def _console(self, call: Call, environ: dict[str, Any]) -> Answer:
        id = call.words["InstanceId"]
        if id not in {each.id for each in self.instances(call.region)}:
            return _error(400, "InvalidInstanceID.NotFound", f"The instance ID '{id}' does not exist")
        text = self.consoles.get(id) or (self.stage.console(id) if self.stage and id in self.stage.machines else "")
        output = base64.b64encode(text.encode()).decode()
        return _xml("GetConsoleOutputResponse", f"<instanceId>{id}</instanceId><output>{output}</output>")

    def _requests(self, call: Call, environ: dict[str, Any]) -> Answer:
        wanted = call.values("Filter.1.Value")
        items = "".join(
            f"<item><spotInstanceRequestId>{id}</spotInstanceRequestId><status><code>{code}</code></status></item>"
            for id, code in self.spot.items()
            if id in wanted
        )
        return _xml("DescribeSpotInstanceRequestsResponse", f"<spotInstanceRequestSet>{items}</spotInstanceRequestSet>")

    # --- machines

    def _begin(self, instance: Any) -> None:
        """An instance that is pending until it has its machine, if there is a stage, and its time is over."""
        instance._state.name, instance._state.code = "pending", 0
        if instance.lifecycle == "spot":
            instance.spot_instance_request_id = f"sir-{instance.id[-8:]}"
            self.spot[instance.spot_instance_request_id] = "fulfilled"
        if self.hide_new:
            self.hidden.add(instance.id)
        timer = threading.Timer(self.pending_seconds, lambda: self._hands.submit(self._boot, instance))
        timer.daemon = True
        self._timers.append(timer)
        timer.start()

    def _boot(self, instance: Any) -> None:
        address = None
        if self.stage:
            data = instance.user_data.decode() if instance.user_data else ""
            address = self.stage.start(instance.id, data, commands=self._commands, boot_seconds=self.boot_seconds)
        with self._guard:
            if instance.state != "pending":
                self._end(instance.id)
                return
            if address:
                instance.nics[0].private_ip_address = instance.nics[0].public_ip = address
                self._told(f"{instance.id} runs at {address}")
            instance._state.name, instance._state.code = "running", 16

    def _terminate(self, instance: Any) -> None:
        instance.terminate()
        self._end(instance.id)

    def _end(self, id: str) -> None:
        if self.stage and id in self.stage.machines:
            self._told(f"{id} is terminated")
            self._hands.submit(self.stage.stop, id)

    def _backend(self, region: str) -> Any:
        from moto.ec2.models import ec2_backends

        return ec2_backends[ACCOUNT][region]

    def _reset(self) -> None:
        for region in REGIONS:
            self._backend(region).reset()
            for arch, moto_arch in (("amd64", "x86_64"), ("arm64", "arm64")):
                for day in ("2024-05-01", "2024-07-17", "2024-06-15"):
                    self.publish(f"debian-12-{arch}-{day.replace('-', '')}-1811", day, region=region, architecture=moto_arch)
            self.publish("debian-12-backports-amd64-20240801-1811", "2024-08-01", region=region)
            self.publish("debian-12-amd64-20240901-evil", "2024-09-01", region=region, owner="666666666666")


def _xml(name: str, inner: str) -> Answer:
    return Answer(200, f'<?xml version="1.0" encoding="UTF-8"?><{name} xmlns="{XMLNS}">{inner}</{name}>'.encode())


def _error(status: int, code: str, message: str) -> Answer:
    inner = f"<Errors><Error><Code>{code}</Code><Message>{message}</Message></Error></Errors><RequestID>test</RequestID>"
    return Answer(status, f'<?xml version="1.0" encoding="UTF-8"?><Response>{inner}</Response>'.encode())


@contextlib.contextmanager
def staged_ec2(*seen: Path, commands: bool = True) -> Iterator[Ec2Server]:
    """An EC2 with a stage, whose machines see the directories ``seen``; skipped, with the reason, where there can be no stage."""
    require_stage()
    servers: list[Ec2Server] = []
    with Stage(lambda id, why: servers[0].machine_ended(id, why), list(seen)) as stage, Ec2Server(stage, commands=commands) as server:
        servers.append(server)
        yield server
