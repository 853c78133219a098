"""An OpenStack: Keystone 3, Nova 2.1, Glance 2 and Neutron 2, as far as launching, listing and destroying go.

Sources: https://docs.openstack.org/api-ref/ (compute, identity, image, network).  A server is ``BUILD`` and ``ACTIVE``, or ``ERROR`` with
a fault; a destroyed one has the task state ``deleting`` until it is 404.  Names are not unique.  Lists have pages with a link to the next.
"""

from __future__ import annotations

import base64
import secrets
import time
import uuid
from typing import Any

from tests.providers.servers.cloud import NEVER, Answer, Call, CloudServer, Machine, Refusal, Stage, whole

USER, PASSWORD, PROJECT = "render", "openstack-secret-password", "films"
APPLICATION, APPLICATION_SECRET = "0d1e2f3a4b5c", "application-secret-9876"
FLAVOURS = {
    "m1.tiny": (1, 512, 1),
    "m1.small": (1, 2048, 20),
    "m1.medium": (2, 4096, 40),
    "m1.big": (4, 8192, 80),
    "v1.volume": (1, 1024, 0),
}
IMAGES = {name: str(uuid.uuid5(uuid.NAMESPACE_DNS, name)) for name in ("Debian 12", "Debian 13", "Ubuntu")}
TWINS = [str(uuid.uuid5(uuid.NAMESPACE_DNS, f"twin{number}")) for number in range(2)]
NETWORKS = {name: str(uuid.uuid5(uuid.NAMESPACE_DNS, name)) for name in ("inside", "outside")}


class OpenstackServer(CloudServer):
    """See `CloudServer`.  ``page`` is the most that a page has, ``regions`` those of the catalogue."""

    def __init__(self, *, page: int = 1000, regions: tuple[str, ...] = ("north",), stage: Stage | None = None, **times: Any) -> None:
        super().__init__(stage=stage, **times)
        self.page = page
        self.regions = regions
        self.tokens: set[str] = set()
        self.networks = ["inside"]
        self.fault = ""
        self.private = False

    def new_id(self, number: int) -> str:
        """See `CloudServer`."""
        return str(uuid.uuid4())

    def answer(self, call: Call) -> Answer:
        """See `CloudServer`."""
        parts = call.path.strip("/").split("/")
        if parts[:1] == ["identity"]:
            return self._token(call)
        if call.headers.get("x-auth-token") not in self.tokens:
            raise _unauthorised()
        match call.method, parts:
            case "GET", ["compute", "v2.1", "servers", "detail"]:
                return self._listed(call)
            case "POST", ["compute", "v2.1", "servers"]:
                return self._create(call.body["server"])
            case method, ["compute", "v2.1", "servers", id, *rest]:
                return self._one(method, id, rest, call.body)
            case "GET", ["compute", "v2.1", "flavors", "detail"]:
                return Answer(200, {"flavors": [_flavour(name) for name in FLAVOURS]})
            case "GET", ["image", "v2", "images", *rest]:
                return self._images(call, rest)
            case "GET", ["network", "v2.0", "networks"]:
                return Answer(200, {"networks": [{"id": id, "name": name, "subnets": []} for name, id in NETWORKS.items()]})
        raise _missing(call.path)

    def _token(self, call: Call) -> Answer:
        identity = call.body["auth"]["identity"]
        if identity["methods"] == ["password"]:
            user = identity["password"]["user"]
            good = (user["name"], user["password"], user["domain"]["name"]) == (USER, PASSWORD, "Default")
            good = good and call.body["auth"]["scope"]["project"] == {"name": PROJECT, "domain": {"id": "default"}}
        else:
            good = identity["application_credential"] == {"id": APPLICATION, "secret": APPLICATION_SECRET}
        if call.path != "/identity/v3/auth/tokens" or not good:
            raise _unauthorised()
        token = secrets.token_hex(16)
        self.tokens.add(token)
        services = [("compute", "Compute Service", "/compute/v2.1"), ("image", "Images", "/image"), ("network", "Networks", "/network")]
        catalogue = [self._service(*each) for each in services]
        body = {"expires_at": "2099-01-01T00:00:00.000000Z", "roles": [], "user": {"name": USER}, "catalog": catalogue}
        return Answer(201, {"token": body}, {"X-Subject-Token": token})

    def _service(self, kind: str, name: str, path: str) -> dict[str, Any]:
        faces = [(region, face) for region in self.regions for face in ("public", "internal")]
        places = [{"region": region, "interface": face, "url": f"{self.url}{path}"} for region, face in faces]
        return {"type": kind, "name": name, "endpoints": places}

    def _listed(self, call: Call) -> Answer:
        found = self.shown()
        ids = [each.id for each in found]
        start = ids.index(call.query["marker"]) + 1 if call.query.get("marker") in ids else 0
        end = start + min(self.page, whole(call.query.get("limit"), self.page))
        body: dict[str, Any] = {"servers": [self._shown(each) for each in found[start:end]]}
        if end < len(found):
            body["servers_links"] = [{"rel": "next", "href": f"{self.url}/compute/v2.1/servers/detail?marker={ids[end - 1]}"}]
        return Answer(200, body)

    def _create(self, wanted: dict[str, Any]) -> Answer:
        if len(self.live()) >= self.quota:
            text = f"Quota exceeded for instances: Requested 1, but already used {self.quota} of {self.quota} instances"
            raise Refusal(403, {"forbidden": {"code": 403, "message": text}})
        if wanted["flavorRef"] not in FLAVOURS or wanted["imageRef"] not in [*IMAGES.values(), *TWINS]:
            raise Refusal(400, {"badRequest": {"code": 400, "message": "Invalid imageRef or flavorRef provided."}})
        if len(self.networks) > 1 and not wanted.get("networks"):
            text = "Multiple possible networks found, use a Network ID to be more specific."
            raise Refusal(409, {"conflictingRequest": {"code": 409, "message": text}})
        if any(len(each) > 255 for pair in wanted["metadata"].items() for each in pair):
            raise Refusal(400, {"badRequest": {"code": 400, "message": "Invalid metadata"}})
        machine = self.add(wanted["name"], wanted, base64.b64decode(wanted.get("user_data", ""), validate=True).decode())
        machine.wrong, self.fault = self.fault, ""
        return Answer(202, {"server": {"id": machine.id, "links": [], "adminPass": "generated-9", "security_groups": []}})

    def _one(self, method: str, id: str, rest: list[str], body: Any) -> Answer:
        machine = next((each for each in self.shown() if each.id == id), None)
        if machine is None:
            raise _missing(f"Instance {id}")
        if method == "DELETE":
            self.end(id)
            return Answer(204)
        if method == "POST" and rest == ["metadata"]:
            machine.fields["metadata"] |= body["metadata"]
            return Answer(200, {"metadata": machine.fields["metadata"]})
        return Answer(200, {"server": self._shown(machine)})

    def _images(self, call: Call, rest: list[str]) -> Answer:
        found = [*({"name": name, "id": id} for name, id in IMAGES.items()), *({"name": "Twin", "id": id} for id in TWINS)]
        full = [{**each, "status": "active", "min_ram": 0, "min_disk": 0, "created_at": "x", "updated_at": "x"} for each in found]
        if rest:
            return Answer(200, next((each for each in full if each["id"] == rest[0]), None) or _raise(_missing(f"image {rest[0]}")))
        start = whole(call.query.get("marker"), 0)
        body: dict[str, Any] = {"images": full[start : start + 3]}
        if start + 3 < len(full):
            body["next"] = f"/v2/images?marker={start + 3}"
        return Answer(200, body)

    def _shown(self, machine: Machine) -> dict[str, Any]:
        ready = machine.age >= self.boot
        state = "ERROR" if machine.wrong else "ACTIVE" if ready else "BUILD"
        shown = {
            "id": machine.id, "name": machine.name, "status": state, "created": _time(machine.made), "updated": _time(machine.made),
            "addresses": self._addresses(machine) if ready and not machine.wrong else {}, "accessIPv4": "", "accessIPv6": "", "hostId": "",
            "tenant_id": "p", "user_id": "u", "image": {"id": machine.fields.get("imageRef")},
            "flavor": {"id": machine.fields.get("flavorRef")}, "metadata": machine.fields["metadata"],
            "links": [{"rel": "self", "href": f"{self.url}/compute/v2.1/servers/{machine.id}"}],
            "OS-EXT-STS:task_state": "deleting" if machine.ended < NEVER else None if ready else "spawning",
            "OS-EXT-STS:vm_state": "error" if machine.wrong else "active" if ready else "building", "OS-EXT-STS:power_state": 1,
        }  # fmt: skip
        return shown | ({"fault": {"code": 500, "message": machine.wrong}} if machine.wrong else {})

    def _addresses(self, machine: Machine) -> dict[str, Any]:
        inside = [{"addr": each, "OS-EXT-IPS:type": "fixed"} for each in ("192.168.7.7", "fe80::1")]
        outside = [] if self.private else [{"addr": machine.address, "OS-EXT-IPS:type": "floating"}]
        return {"inside": [*inside, *outside]}


def _flavour(name: str) -> dict[str, Any]:
    cpus, memory, disk = FLAVOURS[name]
    return {"id": name, "name": name, "vcpus": cpus, "ram": memory, "disk": disk, "swap": "", "OS-FLV-DISABLED:disabled": False}


def _time(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def _unauthorised() -> Refusal:
    return Refusal(401, {"error": {"code": 401, "title": "Unauthorized", "message": "The request requires authentication."}})


def _missing(what: str) -> Refusal:
    return Refusal(404, {"itemNotFound": {"code": 404, "message": f"{what} could not be found."}})


def _raise(refusal: Refusal) -> Any:
    raise refusal
