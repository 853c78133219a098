"""What all tests share: a clean environment, and real sshd's to log in to (see `tests.sshd`)."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.accounts import Account, borrow, give_back, own_account
from tests.providers import docker_engine
from tests.sshd import ClientKeys, Sshd, make_chroot, make_client_keys, sshd_program

for _name in [name for name in os.environ if name.startswith("CLOUDTASK_") or name == "HUB_APIKEY"]:
    del os.environ[_name]

MakeSshd = Callable[..., Sshd]


@pytest.fixture
def private_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A HOME of the test's own, and no XDG folders and no ssh-agent of the tester's."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    for name in ("XDG_CONFIG_HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME", "SSH_AUTH_SOCK"):
        monkeypatch.delenv(name, raising=False)
    return home


@pytest.fixture
def client_keys(private_home: Path) -> ClientKeys:
    """The controller's side of ssh: a private HOME with a key, a configuration for --ssh-config, and known_hosts files."""
    return make_client_keys(private_home)


@pytest.fixture(scope="session")
def _borrowed_account() -> Iterator[Account]:
    if os.getuid() != 0:
        yield own_account()
        return
    account = borrow()
    yield account
    give_back(account)


@pytest.fixture
def account(_borrowed_account: Account) -> Account:
    """The ordinary user to log in as.  Run as root: one of this test run's own, with an empty home and nothing running."""
    if os.getuid() == 0:
        _borrowed_account.wipe()
    return _borrowed_account


@pytest.fixture
def sshd(tmp_path: Path, account: Account, client_keys: ClientKeys) -> Iterator[MakeSshd]:
    """Makes running sshd's that let the key of `client_keys` in; takes the keywords of `tests.sshd.Sshd`."""
    sshd_program()
    servers: list[Sshd] = []

    def make(**keywords: object) -> Sshd:
        folder = tmp_path / f"sshd{len(servers)}"
        folder.mkdir()
        keywords.setdefault("public_keys", [client_keys.public])
        server = Sshd(folder, account, **keywords)  # type: ignore[arg-type]  # the caller's words are checked by the class
        servers.append(server)
        return server.start()

    yield make
    for server in servers:
        server.stop()


@pytest.fixture
def nopython(sshd: MakeSshd, account: Account) -> Iterator[Sshd]:
    """An sshd whose users live in a root directory with busybox's sh and tools, and without python3.  Needs root."""
    if os.getuid() != 0 or shutil.which("busybox") is None or shutil.which("unshare") is None:
        pytest.skip("a root directory without python3 needs root, busybox-static and unshare")
    root = make_chroot(account)
    # A mount namespace of its own: /proc inside the root directory goes away with the server.
    script = f'mount -t proc proc {root}/proc 2>/dev/null; exec "$@"'
    try:
        yield sshd(config=[f"ChrootDirectory {root}"], wrapper=["unshare", "-m", "sh", "-c", script, "sh"])
    finally:
        account.wipe()
        shutil.rmtree(root)


@pytest.fixture(scope="session")
def _docker_engine() -> Iterator[docker_engine.Engine]:
    yield from docker_engine.serve()


@pytest.fixture
def docker(_docker_engine: docker_engine.Engine, monkeypatch: pytest.MonkeyPatch) -> Iterator[docker_engine.Engine]:
    """A real Docker engine, the one that DOCKER_HOST names; what the test runs there by hand is removed."""
    monkeypatch.setenv("DOCKER_HOST", _docker_engine.host)
    yield _docker_engine
    _docker_engine.remove_all()


@pytest.fixture
def docker_debian(docker: docker_engine.Engine) -> docker_engine.Engine:
    """The same with an image of Debian that has python3 and sshd.  The first time that takes half a minute."""
    return docker_engine.with_debian(docker)
