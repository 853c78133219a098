"""Containers as machines: their ids, names and labels, and what the engine's lists say of them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from cloudtask.providers.base import TAG, Instance, InstanceState, Tags

LABEL = f"{TAG}-label"
LOGIN = f"{TAG}-login"
"""The label with the user of the image, whose programs these are; the container itself runs its timer as root."""
SSH_LABEL = f"{TAG}-ssh"
SSH_PORT = "22/tcp"

_ID = re.compile(r"(?P<container>[0-9a-f]{64})\.(?P<engine>[0-9a-f]{12})")
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
_FAILURE = re.compile(r"\(Exited \(([1-9]|[1-9][0-9]|12[0-7])\)")
_ENGINE_LENGTH = 12
_SHORT = 12

# A container that is paused is somebody's wish: it goes on when it is let go.
_STATES = {
    "created": InstanceState.PENDING,
    "restarting": InstanceState.PENDING,
    "running": InstanceState.RUNNING,
    "paused": InstanceState.RUNNING,
    "exited": InstanceState.STOPPED,
    "removing": InstanceState.LEAVING,
    "dead": InstanceState.LEAVING,
}


def name_of(token: str, index: int) -> str:
    """The name of an order's container: names are the engine's own way to make each once."""
    return f"{TAG}-{token}-{index}"


def engine_mark(id: str) -> str:
    """What stands behind a container's id to say which engine it belongs to: another one would call the id unknown."""
    return hashlib.sha256(id.encode()).hexdigest()[:_ENGINE_LENGTH]


def instance_id(container: str, engine: str) -> str:
    """The id by which the session knows a container."""
    return f"{container}.{engine}"


def split_id(id: str) -> tuple[str, str] | None:
    """``(container, engine)``; None for what is no id of ours."""
    match = _ID.fullmatch(id)
    return (match["container"], match["engine"]) if match else None


def read_row(row: Mapping[str, Any], engine: str, engine_host: str) -> Instance:
    """A row of the engine's list of containers.  Raises ValueError, TypeError or LookupError where it is none."""
    labels = row.get("Labels") or {}
    container, state = str(row["Id"]), _STATES.get(str(row["State"]), InstanceState.PENDING)
    if not _ID.fullmatch(instance_id(container, engine)):
        raise ValueError(f"not a container's id: {container!r}")
    over_ssh = SSH_LABEL in labels
    port = _published(row.get("Ports") or ()) if over_ssh else None
    host: str | None = container[:_SHORT]
    if over_ssh:
        host = ssh_host(engine_host) if port else None
    return Instance(
        id=instance_id(container, engine),
        state=state,
        host=host if state in (InstanceState.RUNNING, InstanceState.PENDING) else None,
        port=port,
        user=_login(labels.get(LOGIN)) or ("root" if over_ssh else None),
        transport=None if over_ssh else "docker",
        tags=Tags.from_dict(labels),
        size=str(row.get("Image", ""))[:200],
        created=float(row["Created"]),
        note=_note(row, state),
    )


def failed(instance: Instance) -> bool:
    """Its first process ended by itself, and not well."""
    return instance.state is InstanceState.STOPPED and bool(_FAILURE.search(instance.note))


def _login(label: object) -> str | None:
    return label if isinstance(label, str) and _USER.fullmatch(label) else None


def _published(ports: Sequence[Mapping[str, Any]]) -> int | None:
    """The port of the engine's machine that leads to sshd."""
    found = [each["PublicPort"] for each in ports if f"{each.get('PrivatePort')}/{each.get('Type')}" == SSH_PORT and each.get("PublicPort")]
    return int(found[0]) if found else None


def ssh_host(engine_host: str) -> str:
    """The address of the engine's machine."""
    return "127.0.0.1" if is_local(engine_host) else urlsplit(engine_host).hostname or "127.0.0.1"


def is_local(engine_host: str) -> bool:
    """Whether the engine's machine is this one."""
    return engine_host.startswith("unix://") or urlsplit(engine_host).hostname in ("127.0.0.1", "localhost", "::1")


def _note(row: Mapping[str, Any], state: InstanceState) -> str:
    status = "".join(each if each.isprintable() else " " for each in str(row.get("Status", "")))[:200]
    return f"the container has ended ({status})" if state is InstanceState.STOPPED else status
