"""A socket in front of a Docker engine's, at which answers can be lost and connections cut."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from pathlib import Path


class LossyProxy:
    """Passes bytes both ways; the next request that matches `lose` reaches the engine, and its answer nobody."""

    def __init__(self, place: Path | tuple[str, int], engine: str) -> None:
        self._engine = engine.removeprefix("unix://")
        self._pattern: re.Pattern[bytes] | None = None
        self._lock = threading.Lock()
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        if isinstance(place, Path):
            self._listener = socket.socket(socket.AF_UNIX)
            self._listener.bind(str(place))
            self.host = f"unix://{place}"
        else:
            self._listener = socket.create_server(place)
            self.host = "tcp://{}:{}".format(*self._listener.getsockname())
        self._listener.listen(64)
        self.lost = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    def lose(self, pattern: bytes) -> None:
        """Lose the answer to the next request whose first bytes match."""
        self._pattern = re.compile(pattern)
        self.lost.clear()

    def cut(self) -> None:
        """Cut all connections, and take no more."""
        self.close()
        for pair in self._pairs:
            for each in pair:
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Take no more connections."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.socket(socket.AF_UNIX)
                server.connect(self._engine)
                self._pairs.append((client, server))
                doomed = threading.Event()
                threading.Thread(target=self._pass_requests, args=(client, server, doomed), daemon=True).start()
                threading.Thread(target=self._pass_answers, args=(client, server, doomed), daemon=True).start()

    def _pass_requests(self, client: socket.socket, server: socket.socket, doomed: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(65536):
                with self._lock:
                    if self._pattern and self._pattern.match(data):
                        self._pattern = None
                        doomed.set()
                server.sendall(data)
        with contextlib.suppress(OSError):
            server.shutdown(socket.SHUT_WR)

    def _pass_answers(self, client: socket.socket, server: socket.socket, doomed: threading.Event) -> None:
        with contextlib.suppress(OSError), client, server:
            while (data := server.recv(65536)) and not doomed.is_set():
                client.sendall(data)
            client.shutdown(socket.SHUT_RDWR)
        if doomed.is_set():
            self.lost.set()
