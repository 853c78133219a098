"""An overlay as a tar stream for GNU tar on the worker: for workers, or controllers, without rsync.

The modes of the files are worked out here, as rsync would have them, and GNU tar is told to take them as they are.  Folders that exist on
the worker are left out of the stream: to keep one as it is, GNU tar (1.34) makes it 0700 for as long as it unpacks, which shuts everybody
else out of ``/usr``, for ever where it is killed meanwhile, and which fails for who does not own ``/home``.
"""

from __future__ import annotations

import io
import os
import shlex
import stat
import tarfile
from collections.abc import Callable, Iterator
from typing import Any

from cloudtask.errors import SetupError
from cloudtask.transports import Connection
from cloudtask.workers.last_words import last_words
from cloudtask.workers.remote_command import Limit, RemoteCommand, ask

_EXTRACT = "tar --extract --file=- --no-same-owner --same-permissions --no-overwrite-dir --keep-directory-symlink"
_BLOCK = 1 << 16
_EXECUTE = 0o111


def send_by_tar(connection: Connection, overlay: str, root: str, umask: int, *, log: Callable[[bytes], None], limit: Limit) -> None:
    """Pack ``overlay`` and have it unpacked in ``root``; ``umask`` is the login user's.  Raises SetupError with what tar said last."""
    entries = list(_entries(overlay))
    kept = _existing_folders(connection, root, [name for name, info in entries if stat.S_ISDIR(info.st_mode)], limit)
    entries = [(name, info) for name, info in entries if name not in kept]
    existing = _existing_modes(connection, root, [name for name, info in entries if stat.S_ISREG(info.st_mode)], limit)
    said = bytearray()

    def hear(data: bytes) -> None:
        said.extend(data)
        del said[:-_BLOCK]
        log(data)

    script = f"umask 0; {_EXTRACT} --directory={shlex.quote(root)} 2>&1"
    channel = connection.open(f"exec /bin/sh -c {shlex.quote(script)}")
    try:
        command = RemoteCommand(channel, limit, hear)
        packer = _Packer(overlay, _Stdin(command), umask, existing, hear)
        broken = packer.pack(entries)
        status = command.finish()
    finally:
        channel.close()
    if status != 0 or broken:
        reason = last_words(bytes(said)) or (f"tar ended with exit {status}" if status is not None else "the connection ended")
        raise SetupError(f"tar on the worker: {reason}")


def _entries(overlay: str) -> Iterator[tuple[str, os.stat_result]]:
    """Everything in the folder as ``(path relative to it, lstat)``, a directory before what is in it."""
    waiting = [""]
    while waiting:
        folder = waiting.pop()
        with os.scandir(os.path.join(overlay, folder)) as found:
            for entry in sorted(found, key=lambda entry: entry.name):
                name = os.path.join(folder, entry.name)
                yield name, entry.stat(follow_symlinks=False)
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(name)


def _existing_folders(connection: Connection, root: str, names: list[str], limit: Limit) -> set[str]:
    """Those of the folders that are on the worker already, or links to folders."""
    paths = {os.fsencode(os.path.join(root, name)): name for name in names}
    look = shlex.quote('for each; do [ -d "$each" ] && printf "%s\\0" "$each"; done')
    answer = ask(connection, f"xargs -0 sh -c {look} sh", limit, b"".join(path + b"\0" for path in paths)) if names else b""
    return {paths[path] for path in answer.split(b"\0") if path in paths}


def _existing_modes(connection: Connection, root: str, names: list[str], limit: Limit) -> dict[bytes, int]:
    """The modes of those regular files that are on the worker already.  Empty where its stat is not GNU's: then all count as new."""
    paths = [os.path.join(root, name) for name in names]
    stdin = b"".join(os.fsencode(path) + b"\0" for path in paths)
    answer = ask(connection, "xargs -0 stat --printf=%f/%n\\\\0 -- 2>/dev/null", limit, stdin) if names else b""
    modes: dict[bytes, int] = {}
    wanted = {os.fsencode(path): os.fsencode(name) for path, name in zip(paths, names, strict=True)}
    for row in answer.split(b"\0"):
        mode, _, path = row.partition(b"/")
        if path in wanted and stat.S_ISREG(int(mode, 16)):
            modes[wanted[path]] = stat.S_IMODE(int(mode, 16))
    return modes


class _Stdin(io.RawIOBase):
    """A command's stdin as a file to write into."""

    def __init__(self, command: RemoteCommand) -> None:
        self._command = command
        self._broken = False

    def write(self, data: Any) -> int:
        """Send all of it.  After an error the rest is swallowed: tarfile writes once more when it is thrown away."""
        if not self._broken:
            self._broken = True
            self._command.write(bytes(data))
            self._broken = False
        return len(data)


class _Packer:
    """Writes the entries as a tar stream into a command's stdin."""

    def __init__(self, overlay: str, stdin: _Stdin, umask: int, existing: dict[bytes, int], say: Callable[[bytes], None]) -> None:
        self._overlay = overlay
        self._stdin = stdin
        self._umask = umask
        self._existing = existing
        self._say = say

    def pack(self, entries: list[tuple[str, os.stat_result]]) -> bool:
        """Send everything; True where the other end did not take it all."""
        try:
            with tarfile.open(
                mode="w|", fileobj=self._stdin, bufsize=_BLOCK, format=tarfile.GNU_FORMAT, encoding="utf-8", errors="surrogateescape"
            ) as archive:
                for name, _ in entries:
                    self._add(archive, name)
        except (BrokenPipeError, ConnectionResetError, EOFError):
            return True
        return False

    def _add(self, archive: tarfile.TarFile, name: str) -> None:
        path = os.path.join(self._overlay, name)
        info = archive.gettarinfo(path, arcname=os.path.join(".", name))
        if info is None or not (info.isreg() or info.isdir() or info.issym() or info.islnk()):
            self._say(b"skipping non-regular file %b\n" % os.fsencode(name))
            return
        info.mode = self._mode(os.fsencode(name), info)
        info.uid = info.gid = 0
        info.uname = info.gname = ""
        if not info.isreg():
            archive.addfile(info)
            return
        with open(path, "rb") as content:
            archive.addfile(info, content)

    def _mode(self, name: bytes, info: tarfile.TarInfo) -> int:
        existing = self._existing.get(name)
        if existing is None or not info.isreg():
            return info.mode & 0o777 & ~self._umask
        if not info.mode & _EXECUTE:
            return existing & ~_EXECUTE
        if existing & _EXECUTE:
            return existing
        return existing | (existing & 0o444) >> 2  # executable for those who may read it, as rsync(1) says of --executability
