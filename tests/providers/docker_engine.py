"""A real Docker engine for the tests, and images that nobody had to download from a registry.

The engine that answers at ``DOCKER_HOST`` (or at its usual socket) is used where there is one; else a private ``dockerd`` is started, with
a data root, a containerd and a mount namespace of its own, and without touching the machine's firewall; it ends with the test run.

`BUSYBOX` has busybox and no python3; `DEBIAN`, made by debootstrap once and kept in ``build/``, has python3 and sshd.
The fixtures are in `tests/conftest.py`.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import platform
import re
import shutil
import signal
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from cloudtask.transports.docker_engine import EngineError, open_engine

ROOT = Path(__file__).parent.parent.parent
BUSYBOX = "cloudtask-test/busybox:1"
DEBIAN = "cloudtask-test/debian:2"
LABEL = "cloudtask-test"
"""What containers that tests make by hand carry."""
START_SECONDS = 30.0
_PACKAGES = "python3,openssh-server"
_NEEDLESS = (
    "./usr/share/doc/",
    "./usr/share/man/",
    "./usr/share/locale/",
    "./usr/share/zoneinfo/",
    "./var/cache/apt/",
    "./var/lib/apt/lists/",
)
_NUMBERS = itertools.count(1)
_PROGRAMS = ("dockerd", "containerd", "runc", "docker-init", "ip", "unshare", "setpriv")


class Engine:
    """Where a running engine is, and a client for it."""

    def __init__(self, host: str) -> None:
        self.host = host
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("DOCKER_HOST", host)
            self.client = open_engine(60.0).api

    def has(self, image: str) -> bool:
        """Whether an image is there."""
        return bool(self.client.images(name=image))

    def load(self, image: str, archive: bytes | Path) -> None:
        """Makes an image of the root directory in a tar archive."""
        repository, _, tag = image.partition(":")
        if isinstance(archive, Path):
            self.client.import_image_from_file(str(archive), repository=repository, tag=tag)
        else:
            self.client.import_image_from_data(archive, repository=repository, tag=tag)

    def load_busybox(self) -> None:
        """Makes `BUSYBOX` where it is not there."""
        if not self.has(BUSYBOX):
            self.load(BUSYBOX, busybox_root())

    def run(self, image: str, command: list[str] | None = None, **host_config: object) -> str:
        """Starts a container that does nothing for an hour; its id."""
        made = self.client.create_container(
            image,
            command or ["/bin/sleep", "3600"],
            labels={LABEL: "1"},
            host_config=self.client.create_host_config(init=True, **host_config),  # type: ignore[arg-type]  # the caller's words
        )
        self.client.start(made["Id"])
        return str(made["Id"])

    def remove_all(self) -> None:
        """Removes what `run` made."""
        for each in self.client.containers(all=True, filters={"label": LABEL}):
            self.client.remove_container(each["Id"], v=True, force=True)


def serve() -> Iterator[Engine]:
    """An engine, with `BUSYBOX` in it; skips where there can be none."""
    engine = _running()
    if engine:
        yield from _with_images(engine)
        return
    with private() as engine:
        yield from _with_images(engine)


def _running() -> Engine | None:
    try:
        return Engine(os.environ.get("DOCKER_HOST") or "unix:///var/run/docker.sock")
    except EngineError:
        return None


@contextlib.contextmanager
def private(*more: str) -> Iterator[Engine]:
    """A dockerd of the tests' own meanwhile; skips where there can be none.  ``more`` are further options of it."""
    if os.getuid() != 0:
        pytest.skip("no docker here: no engine answers, and only root can start one")
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    if missing := [each for each in _PROGRAMS if not shutil.which(each, path=path)]:
        pytest.skip(f"no docker here: not found: {', '.join(missing)}; install docker.io, iproute2 and util-linux")
    with tempfile.TemporaryDirectory(prefix="cloudtask-docker-") as folder, _bridge() as bridge:
        process = _start(Path(folder), bridge, path, more)
        try:
            engine = _wait(Path(folder), process)
            yield engine
            engine.client.close()
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(START_SECONDS)


@contextlib.contextmanager
def _bridge() -> Iterator[str]:
    """A bridge of its own: with none, dockerd would take away docker0, which may be in use."""
    _remove_bridges(lambda pid: not os.path.exists(f"/proc/{pid}"))
    number = next(_NUMBERS)
    name = f"ct{os.getpid()}x{number}"
    subprocess.run(["ip", "link", "add", name, "type", "bridge"], check=True)
    subprocess.run(["ip", "addr", "add", f"198.18.{(os.getpid() * 8 + number) % 256}.1/24", "dev", name], check=True)
    subprocess.run(["ip", "link", "set", name, "up"], check=True)
    try:
        yield name
    finally:
        subprocess.run(["ip", "link", "del", name], check=True)


def _remove_bridges(stale: Callable[[str], bool]) -> None:
    """Those that a killed test run left."""
    for name in os.listdir("/sys/class/net"):
        if (match := re.fullmatch(r"ct(\d+)x\d+", name)) and stale(match[1]):
            subprocess.run(["ip", "link", "del", name], check=False, capture_output=True)


def _start(folder: Path, bridge: str, path: str, more: Sequence[str]) -> subprocess.Popen[bytes]:
    # setpriv: it ends with the test run even where that is killed.  unshare: no mount of it is left behind.
    command = [
        *("setpriv", "--pdeathsig", "TERM", "unshare", "-m"),
        *("dockerd", "--data-root", f"{folder}/data", "--exec-root", f"{folder}/exec", "--pidfile", f"{folder}/pid"),
        *("--host", f"unix://{folder}/socket", "--iptables=false", "--ip6tables=false", "--bridge", bridge, "--shutdown-timeout=5"),
        *("--containerd-namespace", bridge, "--containerd-plugins-namespace", f"{bridge}.plugins", *more),
    ]
    with (folder / "log").open("wb") as log:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={"PATH": path}, start_new_session=True)


def _wait(folder: Path, process: subprocess.Popen[bytes]) -> Engine:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        try:
            return Engine(f"unix://{folder}/socket")
        except EngineError:
            time.sleep(0.05)
    said = (folder / "log").read_text(errors="replace").splitlines()
    pytest.skip(f"no docker here: dockerd does not start: {said[-1:]}")


def _with_images(engine: Engine) -> Iterator[Engine]:
    engine.load_busybox()
    try:
        yield engine
    finally:
        engine.remove_all()


def busybox_root() -> bytes:
    """A root directory with busybox, as a tar archive."""
    program = shutil.which("busybox")
    if program is None:
        pytest.skip("no docker here: no busybox for an image; install busybox-static")
    tools = subprocess.run([program, "--list"], capture_output=True, text=True, check=True).stdout.split()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, mode in (("bin", 0o755), ("etc", 0o755), ("root", 0o700), ("tmp", 0o1777), ("run", 0o755), ("var", 0o755)):
            _add(archive, name, tarfile.DIRTYPE, mode=mode)
        _add(archive, "bin/busybox", tarfile.REGTYPE, Path(program).read_bytes(), mode=0o755)
        for tool in tools:
            if tool != "busybox":
                _add(archive, f"bin/{tool}", tarfile.SYMTYPE, link="busybox")
        _add(archive, "etc/passwd", tarfile.REGTYPE, b"root:x:0:0::/root:/bin/sh\nworker:x:1000:1000::/tmp:/bin/sh\n")
        _add(archive, "etc/group", tarfile.REGTYPE, b"root:x:0:\nworker:x:1000:\n")
    return buffer.getvalue()


def _add(archive: tarfile.TarFile, name: str, kind: bytes, data: bytes = b"", *, mode: int = 0o644, link: str = "") -> None:
    info = tarfile.TarInfo(name)
    info.type, info.size, info.mode, info.linkname = kind, len(data), mode, link
    archive.addfile(info, io.BytesIO(data))


def with_debian(engine: Engine) -> Engine:
    """The engine with `DEBIAN` in it; skips where debootstrap cannot make one."""
    if not engine.has(DEBIAN):
        engine.load(DEBIAN, _debian())
    return engine


def _debian() -> Path:
    """The archive, which takes half a minute when it is not there yet."""
    archive = ROOT / "build" / "test-images" / f"debian-{platform.machine()}-2.tar"
    if archive.exists():
        return archive
    if os.getuid() != 0 or not shutil.which("debootstrap", path=f"{os.environ['PATH']}:/usr/sbin"):
        pytest.skip("no docker here: an image needs root and debootstrap")
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="cloudtask-debootstrap-", dir=archive.parent) as folder:
        root = Path(folder) / "root"
        _debootstrap(root)
        unfinished = Path(folder) / "archive"
        with tarfile.open(unfinished, "w") as tar:
            tar.add(root, ".", filter=_needed)
        unfinished.rename(archive)
    return archive


def _debootstrap(root: Path) -> None:
    suite = platform.freedesktop_os_release().get("VERSION_CODENAME", "stable")
    command = ["debootstrap", "--variant=minbase", f"--include={_PACKAGES}", suite, str(root)]
    environment = {**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        pytest.skip(f"no docker here: debootstrap: {(done.stderr or done.stdout).strip().splitlines()[-1:]}")


def _needed(info: tarfile.TarInfo) -> tarfile.TarInfo | None:
    return None if info.ischr() or info.name.startswith(_NEEDLESS) else info
