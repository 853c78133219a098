"""What the tests of the workers share: connections of the local transport, and PATHs with less, or other things, on them."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cloudtask.model import Address
from cloudtask.transports import Connection, ConnectOptions, find

TOOL_FOLDERS = ("/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")

MakePath = Callable[..., Path]


@pytest.fixture
def connection() -> Iterator[Connection]:
    """A connection to this machine."""
    opened = find("local").connect(Address(host="local", local=True), ConnectOptions())
    yield opened
    opened.close()


@pytest.fixture
def make_path(tmp_path: Path) -> MakePath:
    """Makes a folder that stands for all of PATH: every tool of this machine but for those named, and the scripts given."""

    def make(*without: str, **scripts: str) -> Path:
        folder = tmp_path / "path"
        folder.mkdir()
        for source in TOOL_FOLDERS:
            for name in os.listdir(source) if os.path.isdir(source) else []:
                if name not in without and not os.path.lexists(folder / name):
                    (folder / name).symlink_to(os.path.join(source, name))
        for name, text in scripts.items():
            (folder / name).unlink(missing_ok=True)
            (folder / name).write_text("#!/bin/sh\n" + text)
            (folder / name).chmod(0o755)
        return folder

    return make


@pytest.fixture
def busybox_path(tmp_path: Path) -> Path:
    """A PATH with nothing but busybox."""
    busybox = shutil.which("busybox")
    if busybox is None:
        pytest.skip("busybox is not installed")
    folder = tmp_path / "busybox"
    folder.mkdir()
    for name in subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True).stdout.split():
        (folder / name).symlink_to(busybox)
    return folder
