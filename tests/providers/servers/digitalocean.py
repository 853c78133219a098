"""DigitalOcean's API, version 2, as far as launching, listing and destroying go (https://docs.digitalocean.com/reference/api)."""

from __future__ import annotations

import re
import time
from typing import Any

from tests.providers.servers.cloud import NEVER, Answer, Call, CloudServer, Machine, Refusal, Stage, whole

TOKEN = "digitalocean-secret-token"
_NAME = re.compile(r"[a-zA-Z0-9]?[a-z0-9A-Z.\-]{0,253}[a-z0-9A-Z]")
_TIME = "2026-01-02T03:04:05Z"
SIZES = {"s-1vcpu-1gb": (1, 1024, 0.00893), "s-2vcpu-4gb": (2, 4096, 0.03571), "c-4": (4, 8192, 0.125)}
IMAGES = {"debian-12-x64": 101, "debian-13-x64": 102}
REGIONS = ("ams3", "nyc1")


class DigitalOceanServer(CloudServer):
    """See `CloudServer`.  ``page`` is the most that a page has; ``shortens`` cuts names at so many characters, as no real one does."""

    def __init__(self, *, page: int = 200, shortens: int = 255, stage: Stage | None = None, **times: Any) -> None:
        super().__init__(stage=stage, **times)
        self.page = page
        self.shortens = shortens

    def new_id(self, number: int) -> str:
        """See `CloudServer`."""
        return str(3_000_000 + number)

    def answer(self, call: Call) -> Answer:
        """See `CloudServer`."""
        if call.headers.get("authorization") != f"Bearer {TOKEN}":
            raise Refusal(401, {"id": "unauthorized", "message": "Unable to authenticate you"})
        parts = call.path.removeprefix("/v2/").split("/")
        match call.method, parts:
            case "GET", ["droplets"]:
                return self._listed(call, "droplets", [self._shown(each) for each in self.shown()])
            case "POST", ["droplets"]:
                return Answer(202, {"droplet": self._shown(self._create(call.body))})
            case method, ["droplets", id, *rest]:
                return self._one(method, id, rest, call.body)
            case "GET", ["sizes"]:
                return self._listed(call, "sizes", [_size(name) for name in SIZES])
            case "GET", ["images"]:
                return self._listed(call, "images", [_image(name) for name in IMAGES])
            case "GET", ["regions"]:
                regions = [{"slug": each, "name": each.upper(), "available": True, "features": []} for each in REGIONS]
                return self._listed(call, "regions", regions)
        raise Refusal(404, {"id": "not_found", "message": "The resource you were accessing could not be found."})

    def _listed(self, call: Call, key: str, things: list[Any]) -> Answer:
        size = min(self.page, whole(call.query.get("per_page"), 20))
        page, pages = whole(call.query.get("page"), 1), max(1, -(-len(things) // size))
        links = {"pages": {"last": f"{self.url}{call.path}?page={pages}"}} if page < pages else {}
        return Answer(200, {key: things[(page - 1) * size : page * size], "links": links, "meta": {"total": len(things)}})

    def _create(self, body: dict[str, Any]) -> Machine:
        if len(self.live()) >= self.quota:
            raise Refusal(422, {"id": "unprocessable_entity", "message": "creating this/these droplet(s) will exceed your droplet limit"})
        if body["size"] not in SIZES or body["image"] not in map(str, IMAGES.values()) or body["region"] not in REGIONS:
            raise Refusal(422, {"id": "unprocessable_entity", "message": "You specified an invalid size, image or region."})
        if not _NAME.fullmatch(body["name"]):
            raise Refusal(422, {"id": "unprocessable_entity", "message": "Only valid hostname characters are allowed."})
        return self.add(body["name"][: self.shortens], body, body["user_data"] or "")

    def _one(self, method: str, id: str, rest: list[str], body: Any) -> Answer:
        machine = next((each for each in self.shown() if each.id == id), None)
        if machine is None:
            raise Refusal(404, {"id": "not_found", "message": "The resource you were accessing could not be found."})
        if method == "DELETE":
            self.end(id)
            return Answer(204)
        if method == "POST" and rest == ["actions"] and body["type"] == "rename":
            machine.name = body["name"]
            return Answer(201, {"action": {"status": "in-progress"}})
        return Answer(200, {"droplet": self._shown(machine)})

    def _shown(self, machine: Machine) -> dict[str, Any]:
        return {
            "id": int(machine.id), "name": machine.name, "status": "active" if machine.age >= self.boot else "new",
            "created_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(machine.made)), "locked": machine.ended < NEVER,
            "networks": {"v4": [{"ip_address": machine.address, "type": "public"}] if machine.age >= self.boot else [], "v6": []},
            "region": {"name": "Amsterdam 3", "slug": "ams3"}, "size_slug": machine.fields.get("size"),
            "image": _image(next(iter(IMAGES))), "tags": [],
        }  # fmt: skip


def _size(name: str) -> dict[str, Any]:
    cpus, memory, price = SIZES[name]
    return {
        "slug": name, "vcpus": cpus, "memory": memory, "disk": 25, "transfer": 1.0, "price_hourly": price, "price_monthly": 6.0,
        "regions": list(REGIONS if name != "c-4" else REGIONS[1:]),
    }  # fmt: skip


def _image(name: str) -> dict[str, Any]:
    return {
        "id": IMAGES[name], "name": f"12 {name}", "slug": name, "distribution": "Debian", "public": True, "regions": list(REGIONS),
        "min_disk_size": 7, "created_at": _TIME,
    }  # fmt: skip
