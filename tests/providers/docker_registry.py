"""A registry with one image, on this machine (Docker Registry HTTP API V2, image manifest version 2, schema 2)."""

from __future__ import annotations

import gzip
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self

_V2 = "application/vnd.docker."


class Registry:
    """Serves an image whose only layer is a tar archive, under any name, as a context manager.  ``place`` is its host and port."""

    def __init__(self, layer: bytes) -> None:
        self.manifests = 0
        """How often the image's manifest was fetched."""
        self._gate = threading.Event()
        self._gate.set()
        packed = gzip.compress(layer, 1)
        config = {
            "architecture": "amd64", "os": "linux", "config": {},
            "rootfs": {"type": "layers", "diff_ids": [_digest(layer)]}, "history": [{"created_by": "test"}],
        }  # fmt: skip
        text = json.dumps(config).encode()
        self.blobs = {_digest(each): each for each in (packed, text)}
        self.manifest = json.dumps({
            "schemaVersion": 2,
            "mediaType": _V2 + "distribution.manifest.v2+json",
            "config": {"mediaType": _V2 + "container.image.v1+json", "size": len(text), "digest": _digest(text)},
            "layers": [{"mediaType": _V2 + "image.rootfs.diff.tar.gzip", "size": len(packed), "digest": _digest(packed)}],
        }).encode()  # fmt: skip
        registry = self

        class Handler(_Handler):
            owner = registry

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.place = f"127.0.0.1:{self._server.server_port}"

    def hold(self) -> None:
        """Give no blob until `let_go`."""
        self._gate.clear()

    def let_go(self) -> None:
        """Give them."""
        self._gate.set()

    def wait(self) -> None:
        """Until blobs may be given."""
        self._gate.wait(60)

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.let_go()
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    owner: Registry

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        name = self.path.rpartition("/")[2]
        if self.path == "/v2/":
            self._send("application/json", b"{}", with_body)
        elif "/manifests/" in self.path:
            self.owner.manifests += 1
            self._send(_V2 + "distribution.manifest.v2+json", self.owner.manifest, with_body)
        elif name in self.owner.blobs:
            self.owner.wait()
            self._send("application/octet-stream", self.owner.blobs[name], with_body)
        else:
            self.send_error(404)

    def _send(self, kind: str, data: bytes, with_body: bool) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Docker-Content-Digest", _digest(data))
        self.end_headers()
        if with_body:
            self.wfile.write(data)

    def log_message(self, format: str, *arguments: object) -> None:
        pass


def _digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()
