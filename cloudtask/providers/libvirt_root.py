"""A container's root directory: copied from the base's, with the login's key, the host key and the timer in it.

The copy is made under another name and renamed when it is whole, so that a directory of ours is a complete one.  Nothing in it is
followed: a symbolic link in an image must not lead what root writes, or deletes, to a file of the host.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass

from cloudtask.providers.libvirt_marks import Root
from cloudtask.providers.libvirt_xml import WRAPPED_INIT
from cloudtask.providers.timer import TIMER_PATH, start_command
from cloudtask.providers.userdata import HostKey

_COPY_LIMIT = 45.0
_PART = ".part-"
_TRIES = 1000
_INIT = f"""#!/bin/sh
# Made by cloudtask: starts the timer that ends an unused machine, and becomes the container's own init.
{start_command()}
exec "$@"
"""


@dataclass(frozen=True, kw_only=True)
class Content:
    """What is written into the copy."""

    login: str = "root"
    public_key: str | None = None
    host_key: HostKey | None = None
    timer: str = ""


def make_root(root: Root, content: Content) -> None:
    """Copies and fills it, where it is not there yet.  Raises OSError, with the reason on one line in ``strerror``."""
    if os.path.isdir(root.path):
        return
    part = tempfile.mkdtemp(prefix=f"{os.path.basename(root.path)}{_PART}", dir=os.path.dirname(root.path))
    try:
        _copy(root.base, part)
        _Inside(part).fill(content)
        _rename(part, root.path)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def remove_root(root: Root) -> None:
    """Deletes it, and what a copy that was broken off left.  Silent where there is nothing.  Raises OSError."""
    folder, name = os.path.split(root.path)
    with contextlib.suppress(FileNotFoundError):
        for found in os.listdir(folder):
            if found == name or found.startswith(f"{name}{_PART}"):
                _remove(os.path.join(folder, found))


def _copy(base: str, part: str) -> None:
    """cp, for hard links, device nodes, owners, ACLs and reflinks; mounts inside the base are left out."""
    if not os.path.isdir(base):
        raise OSError(2, f"no directory {base}, which is the base's root")
    command = ["cp", "-a", "-x", "--reflink=auto", "--", f"{base}/.", part]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_COPY_LIMIT, check=False)
    except subprocess.TimeoutExpired:
        raise OSError(62, f"{base} cannot be copied within {_COPY_LIMIT:g} seconds; take a smaller root") from None
    if done.returncode:
        lines = done.stderr.decode("utf-8", "replace").splitlines() or ["cp failed"]
        raise OSError(5, f"{base} cannot be copied: {lines[0]}")


def _rename(part: str, path: str) -> None:
    """Somebody else may have made it in the meantime, all the same."""
    try:
        os.rename(part, path)
    except OSError:
        if not os.path.isdir(path):
            raise
        _remove(part)


def _remove(path: str) -> None:
    if os.path.islink(path):
        return os.unlink(path)
    mounts = [mount for mount in _mount_points() if mount == path or mount.startswith(f"{path}/")]
    if mounts:
        raise OSError(16, f"{path} is not deleted: {mounts[0]} is a mount; umount it first")
    for _ in range(_TRIES):
        try:
            return shutil.rmtree(path)
        except FileNotFoundError:  # another process deletes it too, and was faster with a part of it
            if not os.path.lexists(path):
                return None
    raise OSError(16, f"{path} is not deleted: it changes all the time")


def _mount_points() -> list[str]:
    """All of this process's mount namespace; proc_pid_mountinfo(5) has blanks in octal."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        fields = [line.split(" ")[4] for line in file]
    return [field.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\") for field in fields]


class _Inside:
    """Writes below a root directory, and never through a symbolic link.

    A root directory of a user namespace belongs to whoever is root in it: numbers of owners count from there.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        found = os.stat(path)
        self._uid, self._gid = found.st_uid, found.st_gid

    def fill(self, content: Content) -> None:
        """Writes it all."""
        if content.public_key:
            self._authorize(content.login, content.public_key)
        if content.host_key:
            self._set_host_key(content.host_key)
        if content.timer:
            self._write(TIMER_PATH, content.timer.encode(), 0o700)
            self._write(WRAPPED_INIT, _INIT.encode(), 0o755)

    def _authorize(self, login: str, public_key: str) -> None:
        uid, gid, home = self._account(login)
        file = f"{home}/.ssh/authorized_keys"
        lines = [line for line in self._read(file).splitlines() if line.strip() != public_key.strip()]
        text = "\n".join([*lines, public_key.strip(), ""])
        self._write(file, text.encode(), 0o600, owner=(uid, gid), folder_mode=0o700)

    def _account(self, login: str) -> tuple[int, int, str]:
        """Numbers and home from the root's own passwd."""
        for line in self._read("/etc/passwd").splitlines():
            fields = line.split(":")
            if len(fields) == 7 and fields[0] == login and fields[2].isdigit() and fields[3].isdigit():
                return int(fields[2]), int(fields[3]), fields[5] or "/"
        if login == "root":
            return 0, 0, "/root"
        raise OSError(2, f"the base's root has no user {login}")

    def _set_host_key(self, key: HostKey) -> None:
        """The only one: sshd would show a key of the base's, of another kind, to who asks for that."""
        with self._folder("/etc/ssh", 0o755, (0, 0)) as folder:
            for name in os.listdir(folder):
                if name.startswith("ssh_host_"):
                    os.unlink(name, dir_fd=folder)
        self._write("/etc/ssh/ssh_host_ed25519_key", key.private.encode(), 0o600)
        self._write("/etc/ssh/ssh_host_ed25519_key.pub", f"{key.public}\n".encode(), 0o644)

    def _read(self, path: str) -> str:
        """A file's text, empty where there is none."""
        try:
            with self._folder(os.path.dirname(path), None, (0, 0)) as folder:
                descriptor = os.open(os.path.basename(path), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
        except FileNotFoundError:
            return ""
        with open(descriptor, encoding="utf-8", errors="surrogateescape") as file:
            return file.read(1 << 20)

    def _write(self, path: str, data: bytes, mode: int, *, owner: tuple[int, int] = (0, 0), folder_mode: int = 0o755) -> None:
        name = os.path.basename(path)
        with self._folder(os.path.dirname(path), folder_mode, owner) as folder:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=folder)
            descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode, dir_fd=folder)
            with open(descriptor, "wb") as file:
                file.write(data)
                os.fchmod(descriptor, mode)
                os.fchown(descriptor, self._uid + owner[0], self._gid + owner[1])

    @contextlib.contextmanager
    def _folder(self, path: str, mode: int | None, owner: tuple[int, int]) -> Iterator[int]:
        """A descriptor of a folder below the root; ``mode``: made where it is not there.  Raises OSError for a symbolic link."""
        here = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            for part in [part for part in path.split("/") if part]:
                if part == "..":
                    raise OSError(22, f"{path} leads out of the root")
                there = self._step(here, part, mode, owner)
                os.close(here)
                here = there
            yield here
        finally:
            os.close(here)

    def _step(self, here: int, part: str, mode: int | None, owner: tuple[int, int]) -> int:
        try:
            found = os.stat(part, dir_fd=here, follow_symlinks=False)
        except FileNotFoundError:
            if mode is None:
                raise
            os.mkdir(part, mode, dir_fd=here)
            os.chown(part, self._uid + owner[0], self._gid + owner[1], dir_fd=here, follow_symlinks=False)
            found = os.stat(part, dir_fd=here, follow_symlinks=False)
        if not stat.S_ISDIR(found.st_mode):
            raise OSError(20, f"{part} in the base's root is no directory; links are not followed")
        return os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=here)
