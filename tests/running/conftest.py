"""Fixtures of the whole-run tests."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import MakeSshd
from tests.running.operator import Operator
from tests.running.program import Controller
from tests.sshd import ClientKeys, Sshd

Remote = Callable[..., tuple[list[Sshd], list[str]]]


@pytest.fixture
def controller() -> Iterator[Controller]:
    """A controller with a home of its own; what it leaves behind is ended.

    Not under pytest's directories, which only their owner may enter: jobs of another user write to the witness.
    """
    with tempfile.TemporaryDirectory(prefix="cloudtask-test-", ignore_cleanup_errors=True) as directory:
        controller = Controller(Path(directory))
        yield controller
        controller.stop_all()


@pytest.fixture
def operator() -> Iterator[Operator]:
    """A controller whose user calls the commands about machines, too."""
    with tempfile.TemporaryDirectory(prefix="cloudtask-test-", ignore_cleanup_errors=True) as directory:
        operator = Operator(Path(directory))
        yield operator
        operator.clean()


@pytest.fixture
def remote(sshd: MakeSshd, client_keys: ClientKeys) -> Remote:
    """``remote(2, slots=2)``: two sshd's, and the options that make them the workers."""

    def make(count: int = 1, slots: int = 1, **keywords: object) -> tuple[list[Sshd], list[str]]:
        servers = [sshd(**keywords) for _ in range(count)]
        workers = " ".join(f"{slots}/{server.address}" for server in servers)
        return servers, [f"--workers={workers}", f"--ssh-config={client_keys.config}"]

    return make
