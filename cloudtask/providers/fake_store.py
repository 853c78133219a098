"""What the ``fake`` provider remembers, in a directory, for all processes that ask.

::

    lock                whoever holds it (flock) is the provider
    machines/ID.json    one machine
    disks/ID/           its files: its home, its sshd's configuration
    dice.json           how often each fault was asked for
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import random
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from cloudtask.providers.base import Tags
from cloudtask.providers.fake_faults import Share

LOCK_PATIENCE = 30.0
"""Seconds that one process may keep the others waiting."""

REMEMBERED = 3600.0
"""Seconds for which a machine that is gone is known."""


class StoreError(Exception):
    """A file of the directory is not what was written."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """A machine.  Times are in seconds since 1970, None where it never comes to that.

    ``pid`` and ``start`` are its first process; ``booted`` is when one can log in, ``settled`` when it is in answers, ``notice`` when
    it is announced that it will be taken away, ``leaving`` when its destruction began and ``gone`` when that was over.  ``host_key`` is
    what its sshd shows, ``spared`` says that a request to destroy it will be ignored.
    """

    id: str
    tags: Tags
    kind: str
    pid: int
    start: int
    created: float
    booted: float | None
    settled: float
    notice: float | None = None
    leaving: float | None = None
    gone: float | None = None
    host: str
    port: int | None = None
    host_key: str | None = None
    spared: bool = False

    @property
    def first_process(self) -> tuple[int, int]:
        """As `cloudtask.providers.fake_processes` knows it."""
        return self.pid, self.start


class Store:
    """The directory ``root``.  All but `locked` is for the holder of the lock.  Raises OSError, StoreError."""

    def __init__(self, root: str) -> None:
        self.root = root

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the lock.  Raises TimeoutError."""
        for name in ("machines", "disks"):
            os.makedirs(os.path.join(self.root, name), mode=0o700, exist_ok=True)
        # A child that was forked keeps the lock with us until it is another program.
        descriptor = os.open(os.path.join(self.root, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            _take(descriptor, self.root)
            yield
        finally:
            os.close(descriptor)

    def record(self, id: str) -> str:
        """The path of a machine's file."""
        return os.path.join(self.root, "machines", f"{id}.json")

    def disk(self, id: str) -> str:
        """The directory of a machine's files."""
        return os.path.join(self.root, "disks", id)

    def machines(self) -> list[Machine]:
        """All that are remembered, oldest first."""
        names = os.listdir(os.path.join(self.root, "machines"))
        found = [self.read(name.removesuffix(".json")) for name in names if name.endswith(".json")]
        return sorted((each for each in found if each), key=lambda each: (each.created, each.id))

    def read(self, id: str) -> Machine | None:
        """One machine; None where the id is unknown, or none."""
        if not id.isascii() or not id.replace("-", "").isalnum():
            return None
        try:
            fields = _load(self.record(id))
            return Machine(**{**fields, "tags": Tags(**fields["tags"])})
        except FileNotFoundError:
            return None
        except (TypeError, KeyError, ValueError) as error:
            raise StoreError(f"{self.record(id)} is not a machine ({error})") from error

    def write(self, machine: Machine) -> Machine:
        """Remembers it, as it is from now on."""
        _dump(self.record(machine.id), asdict(machine))
        return machine

    def bury(self, machine: Machine) -> Machine:
        """It is gone, and its files with it."""
        shutil.rmtree(self.disk(machine.id), ignore_errors=True)
        return self.write(replace(machine, gone=time.time()))

    def sweep(self, machines: Sequence[Machine]) -> list[Machine]:
        """``machines``, which are all, without those gone for long, which it forgets; with what a killed process left half made it ends."""
        old = {each.id for each in machines if each.gone is not None and each.gone + REMEMBERED < time.time()}
        for id in old:
            os.unlink(self.record(id))
        folder = os.path.join(self.root, "machines")
        for name in os.listdir(folder):
            if name.endswith(".new"):
                os.unlink(os.path.join(folder, name))
        for id in {*os.listdir(os.path.join(self.root, "disks"))} - {each.id for each in machines}:
            shutil.rmtree(self.disk(id), ignore_errors=True)
        return [each for each in machines if each.id not in old]

    def struck(self, fault: str, share: Share, seed: int, session: str = "") -> bool:
        """Whether the fault meets the next one that could have it: the first ``count`` of a session, or by dice."""
        if not share.count and not share.percent:
            return False
        path = os.path.join(self.root, "dice.json")
        thrown = _load(path) if os.path.exists(path) else {}
        key = fault if share.percent else f"{fault} {session}"
        number = int(thrown.get(key, 0))
        _dump(path, {**thrown, key: number + 1})
        return number < share.count or random.Random(f"{seed} {fault} {number}").random() * 100 < share.percent


def _load(path: str) -> dict[str, Any]:
    with open(path, encoding="utf-8") as file:
        try:
            found = json.load(file)
        except ValueError as error:
            raise StoreError(f"{path} is no JSON") from error
    if not isinstance(found, dict):
        raise StoreError(f"{path} is no JSON object")
    return found


def _dump(path: str, content: dict[str, Any]) -> None:
    """By rename, so that a reader, or who comes after a kill, sees the old or the new."""
    with open(f"{path}.new", "w", encoding="utf-8") as file:
        json.dump(content, file)
    os.replace(f"{path}.new", path)


def _take(descriptor: int, root: str) -> None:
    deadline, pause = time.monotonic() + LOCK_PATIENCE, 0.001
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{root} has been locked for {LOCK_PATIENCE:g} seconds") from None
        time.sleep(pause)
        pause = min(pause * 1.5, 0.05)
