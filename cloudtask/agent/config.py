"""The settings that come with a hello, checked."""

import os

from . import codec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class Config:
    """What the controller wants of this worker.  Raises ProtocolError for anything that is not as the protocol says."""

    def __init__(self, epoch: int, values: "Any") -> None:
        if not isinstance(values, dict):
            raise codec.ProtocolError("no config in the hello")
        self.epoch = epoch
        self.session = codec.text(values.get("session"))
        self.worker = codec.whole(values.get("worker"))
        self.slots = codec.whole(values.get("slots", 1), 0, 100000)
        self.grace = codec.seconds(values.get("grace", 10))
        self.lease = codec.seconds(values.get("lease", 3600))
        self.max_output = codec.whole(values.get("max_output", 1 << 30), 0, 1 << 62)
        self.workdir = _text_or_none(values.get("workdir"))
        self.post = _text_or_none(values.get("post"))
        self.post_timeout = codec.seconds(values.get("post_timeout", 3600))
        self.public_key = _text_or_none(values.get("public_key"))
        self.heartbeat = codec.seconds(values.get("heartbeat", 15))
        self._env = values.get("env") or {}
        if not isinstance(self._env, dict):
            raise codec.ProtocolError("env is not an object")
        for name, value in self._env.items():
            codec.text(value)
            if not codec.text(name) or "=" in name:
                raise codec.ProtocolError("not the name of a variable: %.80r" % name)

    def environment(self) -> "dict[bytes, bytes]":
        """The variables of every attempt: the agent's own without CLOUDTASK_*, those of the controller, and who this worker is."""
        own = {name: value for name, value in os.environb.items() if not name.startswith(b"CLOUDTASK_")}
        for name, value in self._env.items():
            own[as_bytes(name)] = as_bytes(value)
        own[b"CLOUDTASK_SESSION"] = as_bytes(self.session)
        own[b"CLOUDTASK_WORKER"] = b"%d" % self.worker
        return own


def as_bytes(text: str) -> bytes:
    """The raw bytes of a string from the wire.  Raises ProtocolError where it holds half a character of another kind."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise codec.ProtocolError("a text holds what is no character: %.80r" % text)


def _text_or_none(value: object) -> "str | None":
    return None if value is None else codec.text(value)
