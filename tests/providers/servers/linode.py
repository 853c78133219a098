"""Linode's API, version 4, as far as launching, listing and destroying go (https://techdocs.akamai.com/linode-api/reference).

Lists have pages of 25 to 500; a Linode is ``provisioning``, ``booting``, ``running``, and ``deleting`` until it is gone; labels are
unique; tags are 3 to 50 characters, and stay in the account's list; a root password is needed and weighed.
"""

from __future__ import annotations

import base64
import binascii
import re
import time
from typing import Any
from urllib.parse import unquote

from tests.providers.servers.cloud import NEVER, Answer, Call, CloudServer, Machine, Refusal, Stage, whole

TOKEN = "linode-secret-token-0123456789"
_LABEL = re.compile(r"[a-zA-Z]((?!--|__|\.\.)[a-zA-Z0-9-_.])+")
_TIME = "2026-01-02T03:04:05"


def _type(id: str, vcpus: int, memory: int, hourly: float, **more: Any) -> dict[str, Any]:
    return {
        "id": id, "label": id.replace("g6-", "Linode "), "class": "standard", "vcpus": vcpus, "memory": memory, "disk": memory * 25,
        "network_out": 1000, "transfer": 1000, "gpus": 0, "successor": None, "addons": {}, "price": {"hourly": hourly, "monthly": 5.0},
        "region_prices": [], **more,
    }  # fmt: skip


TYPES = [
    _type("g6-standard-2", 2, 4096, 0.036),
    _type("g6-standard-1", 1, 2048, 0.018),
    _type("g6-nanode-1", 1, 1024, 0.0075, region_prices=[{"id": "br-gru", "hourly": 0.0105, "monthly": 7.0}]),
    _type("g6-dedicated-2", 2, 4096, 0.054),
]
REGIONS = {"us-east": ["Linodes", "Metadata"], "br-gru": ["Linodes", "Metadata"], "old-town": ["Linodes"]}


def _image(id: str, *capabilities: str) -> dict[str, Any]:
    return {
        "id": id, "label": id, "type": "manual", "description": "", "created": _TIME, "created_by": "linode", "is_public": True,
        "size": 1500, "eol": None, "vendor": "Debian", "capabilities": list(capabilities),
    }  # fmt: skip


IMAGES = [
    _image("linode/debian9"),
    *(_image(f"linode/debian{number}", "cloud-init") for number in (11, 12)),
    _image("private/7", "cloud-init"),
]


class LinodeServer(CloudServer):
    """See `CloudServer`.  ``page`` is the most that a page has; a ``restricted`` user writes no tags, and it may ``forget`` them."""

    def __init__(self, *, page: int = 500, stage: Stage | None = None, **times: Any) -> None:
        super().__init__(stage=stage, **times)
        self.page = page
        self.tags: set[str] = set()
        self.restricted = False
        self.forgets = False

    def new_id(self, number: int) -> str:
        """See `CloudServer`."""
        return str(50_000_000 + number)

    def answer(self, call: Call) -> Answer:
        """See `CloudServer`."""
        if call.headers.get("authorization") != f"Bearer {TOKEN}":
            raise _refuse(401, "Invalid Token")
        parts = [unquote(each) for each in call.path.removeprefix("/v4/").split("/")]
        match call.method, parts:
            case "GET", ["linode", "instances"]:
                return self._listed(call, [self._shown(each) for each in self.shown()])
            case "POST", ["linode", "instances"]:
                return Answer(200, self._shown(self._create(call.body)))
            case method, ["linode", "instances", id]:
                return self._one(method, id, call.body)
            case "GET", ["linode", "types"]:
                return self._listed(call, TYPES)
            case "GET", ["linode", "types", id]:
                return Answer(200, next(each for each in TYPES if each["id"] == id))
            case "GET", ["regions"]:
                return self._listed(call, [_region(id, able) for id, able in REGIONS.items()])
            case "GET", ["images"]:
                return self._listed(call, IMAGES)
            case "GET", ["tags"]:
                return self._listed(call, [{"label": each} for each in sorted(self.tags)])
            case method, ["tags", label]:
                return self._tag(method, label, call)
        raise _refuse(404, "Not found")

    def _listed(self, call: Call, things: list[Any]) -> Answer:
        size = whole(call.query.get("page_size"), 100)
        if not 25 <= size <= 500:
            raise _refuse(400, "Must be 25-500", "page_size")
        size = min(size, self.page)
        page, pages = whole(call.query.get("page"), 1), max(1, -(-len(things) // size))
        return Answer(200, {"data": things[(page - 1) * size : page * size], "page": page, "pages": pages, "results": len(things)})

    def _one(self, method: str, id: str, body: Any) -> Answer:
        machine = next((each for each in self.shown() if each.id == id), None)
        if machine is None:
            raise _refuse(404, "Not found")
        if method == "DELETE":
            self.end(id)
            return Answer(200, {})
        if method == "PUT":
            self._write_tags(machine, body["tags"])
        return Answer(200, self._shown(machine))

    def _tag(self, method: str, label: str, call: Call) -> Answer:
        if label not in self.tags:
            raise _refuse(404, "Not found")
        if method == "DELETE":
            self.tags.discard(label)
            for each in self.shown():
                each.fields["tags"] = [tag for tag in each.fields["tags"] if tag != label]
            return Answer(200, {})
        held = [{"type": "linode", "data": self._shown(each)} for each in self.shown() if label in each.fields["tags"]]
        return self._listed(call, held)

    def _create(self, body: Any) -> Machine:
        if len(self.live()) >= self.quota:
            raise _refuse(400, "Account Limit reached. Please open a support ticket.")
        if body.get("region") not in REGIONS or body.get("type") not in [each["id"] for each in TYPES]:
            raise _refuse(400, "region is not valid", "region")
        if body.get("image") not in [each["id"] for each in IMAGES]:
            raise _refuse(400, "image is not valid", "image")
        password = body.get("root_pass") or ""
        if not 11 <= len(password) <= 128 or len({each.isalpha() for each in password}) < 2:
            raise _refuse(400, "Password does not meet complexity requirements.", "root_pass")
        self._check_label(body["label"])
        self._check_tags(body.get("tags", []))
        machine = self.add(body["label"], {**body, "tags": []}, _user_data(body))
        self._write_tags(machine, body.get("tags", []))
        return machine

    def _check_label(self, label: str) -> None:
        if not _LABEL.fullmatch(label) or not 3 <= len(label) <= 64:
            raise _refuse(400, "Label must be 3-64 letters, numbers, ...", "label")
        if label in [each.name for each in self.shown()]:
            raise _refuse(400, "Label must be unique among your linodes", "label")

    def _check_tags(self, tags: list[str]) -> None:
        if tags and self.restricted:
            raise _refuse(403, "An unrestricted user is needed to add or modify tags")
        if any(not 3 <= len(each) <= 50 for each in tags):
            raise _refuse(400, "Length must be 3-50 characters", "tags")

    def _write_tags(self, machine: Machine, tags: list[str]) -> None:
        self._check_tags(tags)
        machine.fields["tags"] = [] if self.forgets else list(dict.fromkeys(tags))
        self.tags |= set(tags)

    def _shown(self, machine: Machine) -> dict[str, Any]:
        states = ((self.boot / 2, "provisioning"), (self.boot, "booting"), (NEVER, "running"))
        state = "deleting" if machine.ended < NEVER else next(word for until, word in states if machine.age < until)
        return {
            "id": int(machine.id), "label": machine.name, "status": machine.wrong or state, "type": machine.fields.get("type"),
            "region": machine.fields.get("region"), "image": machine.fields.get("image"), "ipv4": [machine.address],
            "ipv6": "2001:db8::1/128", "tags": machine.fields["tags"], "hypervisor": "kvm", "specs": {}, "alerts": {}, "backups": {},
            "watchdog_enabled": True, "created": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(machine.made)), "updated": _TIME,
        }  # fmt: skip


def _user_data(body: Any) -> str:
    try:
        return base64.b64decode(body.get("metadata", {}).get("user_data", ""), validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        raise _refuse(400, "user_data must be base64-encoded", "metadata.user_data") from None


def _region(id: str, capabilities: list[str]) -> dict[str, Any]:
    return {"id": id, "label": id, "country": "us", "status": "ok", "capabilities": capabilities, "resolvers": {}}


def _refuse(status: int, reason: str, field: str | None = None) -> Refusal:
    return Refusal(status, {"errors": [{"reason": reason, **({"field": field} if field else {})}]})
