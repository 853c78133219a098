"""A real libvirtd of the tests' own: with folders of its own, in a mount namespace of its own, beside whatever libvirtd the machine has.

::

    with running_daemon() as daemon:
        connection = daemon.open("lxc")

Containers of `container_xml` share the machine's network and its /usr; their root directory holds little but an sshd's configuration, and
their init is that sshd.  They run in a tenth of a second.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.sshd import sshd_program

PATIENCE = 20.0

# libvirt 9 finds no room for containers in the cgroup 2 tree of a machine that has both kinds.  What it writes goes to the folder.
_SCRIPT = """
umount /sys/fs/cgroup/unified 2>/dev/null
for place in /etc/libvirt /run/libvirt /var/lib/libvirt /var/log/libvirt /var/cache/libvirt; do
  mkdir -p "$place" "$1$place" && mount --bind "$1$place" "$place" || exit 1
done
exec libvirtd --config "$1/libvirtd.conf" --pid-file "$1/libvirtd.pid"
"""
_CONFIG = """
unix_sock_dir = "{folder}/sockets"
auth_unix_rw = "none"
auth_unix_ro = "none"
log_outputs = "3:stderr"
"""

SSH_NAMESPACE = "urn:cloudtask:libvirt"


class LibvirtDaemon:
    """A running libvirtd."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def uri(self, driver: str, path: str = "system") -> str:
        """``lxc+unix:///system?socket=...``: a driver of this libvirtd."""
        return f"{driver}+unix:///{path}?socket={self.folder}/sockets/libvirt-sock"

    @property
    def pid(self) -> int:
        """The daemon's process."""
        return int((self.folder / "libvirtd.pid").read_text())

    def start(self) -> None:
        """Returns when it answers."""
        (self.folder / "sockets").mkdir(exist_ok=True)
        (self.folder / "libvirtd.conf").write_text(_CONFIG.format(folder=self.folder))
        environ = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
        with (self.folder / "log").open("ab") as log:
            command = ["unshare", "-m", "sh", "-c", _SCRIPT, "sh", str(self.folder)]
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environ, start_new_session=True
            )  # fmt: skip
        deadline = time.monotonic() + PATIENCE
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"libvirtd does not start: {(self.folder / 'log').read_text()[-2000:]}")
            time.sleep(0.05)

    def stop(self) -> None:
        """Ends the daemon; containers run on.  Idempotent."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(PATIENCE)
            self._process = None

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """It answers nothing for a while, and closes nothing."""
        os.kill(self.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.pid, signal.SIGCONT)

    def open(self, driver: str, path: str = "system") -> Any:
        """A connection of libvirt-python's."""
        import libvirt  # type: ignore[import-not-found,import-untyped,unused-ignore]  # it has no types

        return libvirt.open(self.uri(driver, path))

    def clean(self) -> None:
        """Ends all containers."""
        connection = self.open("lxc")
        for domain in connection.listAllDomains():
            if domain.isActive():
                domain.destroy()
            domain.undefine()
        connection.close()

    def _answers(self) -> bool:
        socket = self.folder / "sockets" / "libvirt-sock"
        if not socket.exists():
            return False
        done = subprocess.run(["virsh", "-c", self.uri("test", "default"), "uri"], capture_output=True, timeout=PATIENCE, check=False)
        return done.returncode == 0


@contextmanager
def running_daemon() -> Iterator[LibvirtDaemon]:
    """For a fixture.  Skips where there can be none."""
    missing = [name for name in ("libvirtd", "virsh", "unshare") if shutil.which(name, path=f"{os.environ.get('PATH')}:/usr/sbin") is None]
    if not any(Path(place, "libvirt_lxc").exists() for place in ("/usr/lib/libvirt", "/usr/libexec")):
        missing.append("libvirt_lxc")
    if missing:
        packages = "libvirt-daemon-system libvirt-daemon-driver-lxc libvirt-clients util-linux"
        pytest.skip(f"no libvirt here ({', '.join(missing)}): apt-get install {packages}")
    pytest.importorskip("libvirt", reason="no libvirt here: pip install libvirt-python, which needs libvirt-dev")
    if os.getuid() != 0:
        pytest.skip("not allowed to start libvirtd: that needs root")
    daemon = LibvirtDaemon(Path(tempfile.mkdtemp(prefix="cloudtask-libvirt-")))
    try:
        daemon.start()
        yield daemon
        daemon.clean()
    finally:
        daemon.stop()
        shutil.rmtree(daemon.folder, ignore_errors=True)


def make_root(folder: Path, user: str = "worker") -> Path:
    """A root directory for containers that get the machine's /usr; sshd keeps to its own keys and knows root and ``user``."""
    root = folder / "base"
    for name in ("dev", "etc/ssh", "home", "proc", "root", "run/sshd", "sys", "tmp", "usr", "var/lib"):
        (root / name).mkdir(parents=True)
    for name in ("bin", "lib", "lib64", "sbin"):
        if Path("/", name).is_symlink():
            (root / name).symlink_to(f"usr/{name}")
    root.chmod(0o755)
    (root / "root").chmod(0o700)
    (root / "tmp").chmod(0o1777)
    (root / "home" / user).mkdir()
    os.chown(root / "home" / user, 1234, 1234)
    (root / "etc" / "passwd").write_text(
        "root:x:0:0::/root:/bin/sh\nsshd:x:100:65534::/run/sshd:/usr/sbin/nologin\n" f"{user}:x:1234:1234::/home/{user}:/bin/sh\n"
    )
    (root / "etc" / "group").write_text(f"root:x:0:\nnogroup:x:65534:\n{user}:x:1234:\n")
    (root / "etc" / "ssh" / "sshd_config").write_text(
        "ListenAddress 127.0.0.1\nPidFile none\nUsePAM no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n"
    )
    return root


def container_xml(root: Path, name: str = "base", *, port: str = "{port}", init: str = "") -> str:
    """A domain whose init is sshd, on a port of the machine's own loopback network."""
    words = [sshd_program(), "-D", "-E", "/var/sshd.log", "-p", port]
    init = init or f"<init>{words[0]}</init>" + "".join(f"<initarg>{word}</initarg>" for word in words[1:])
    return f"""
      <domain type='lxc'>
        <name>{name}</name>
        <metadata><ssh xmlns='{SSH_NAMESPACE}' port='{port}'/></metadata>
        <memory unit='MiB'>256</memory>
        <vcpu>1</vcpu>
        <os><type>exe</type>{init}</os>
        <devices>
          <filesystem type='mount'><source dir='{root}'/><target dir='/'/></filesystem>
          <filesystem type='mount'><source dir='/usr'/><target dir='/usr'/><readonly/></filesystem>
          <console type='pty'/>
        </devices>
      </domain>
    """


def processes_of(name: str) -> list[int]:
    """The processes whose environment or command line names a container: its init and libvirt's own controller."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                said = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
            except OSError:
                continue
            if re.search(rb"(?<![\w-])" + name.encode() + rb"(?![\w-])", said):
                found.append(int(entry.name))
    return found
