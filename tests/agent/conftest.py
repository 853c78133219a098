"""Clients of real agents, each with a HOME of its own, and the end of everything that they started."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.agent.client import Client, kill_all, remove_dead_sockets

Connect = Callable[..., Client]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """The HOME of the worker's user."""
    path = tmp_path / "home"
    path.mkdir()
    return path


@pytest.fixture
def connect(home: Path) -> Iterator[Connect]:
    """Makes clients, of one session if not said otherwise; takes the keywords of `Client`.

    All that runs below `home` is killed at the end.
    """
    clients: list[Client] = []

    session = "t" + secrets.token_hex(6)

    def make(worker: int = 1, session: str = session, **keywords: Any) -> Client:
        client = Client(home, f"{session}.{worker}", **keywords)
        clients.append(client)
        return client

    yield make
    kill_all(home)
    for client in clients:
        client.end()
    remove_dead_sockets({client.key for client in clients})
