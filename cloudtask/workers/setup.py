"""The overlay: a folder of the user's, laid over the worker's root through the connection that is there.

By rsync where both ends have it, else as a tar stream for GNU tar.  Either way: directories that exist keep mode and owner, symbolic
links to directories on the worker are followed (with a merged ``/usr``, ``bin/x`` lands in ``/usr/bin``), links of the overlay stay links,
hard links stay hard links, files belong to the login user, a new file has the overlay's mode less the login user's umask without setuid
bits, one that exists keeps its mode but for the executable bits.  Other kinds of files are passed over.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable

from cloudtask.errors import CloudtaskError, SetupError
from cloudtask.transports import Connection
from cloudtask.workers.overlay_rsync import send_by_rsync
from cloudtask.workers.overlay_tar import send_by_tar
from cloudtask.workers.remote_command import Limit, ask

_PROBE = "umask; command -v rsync >/dev/null 2>&1 && echo rsync; tar --version 2>/dev/null | head -n 1"


def apply_overlay(
    connection: Connection,
    overlay: str,
    log: Callable[[bytes], None],
    deadline: float,
    *,
    root: str = "/",
    cancelled: threading.Event | None = None,
) -> None:
    """Lay the folder ``overlay`` over ``root`` on the worker.  Blocks, so it is for a thread.

    ``log`` gets what rsync or tar say, as it comes.  ``deadline`` is a moment of time.monotonic(); then, or when ``cancelled`` is set,
    everything that was started is ended.  Raises SetupError with one line for all that goes wrong; what was copied by then stays.
    """
    what = f"overlay {overlay} to {connection.login}"
    limit = Limit(what, deadline, cancelled)
    if not os.path.isdir(overlay):
        raise SetupError(f"{what}: there is no such folder")
    try:
        limit.check()
        _send(connection, overlay, log, limit, root)
    except SetupError as error:
        text = str(error)
        raise SetupError(text if text.startswith(what) else f"{what}: {text}") from error
    except (OSError, EOFError, CloudtaskError) as error:
        raise SetupError(f"{what}: {error or 'the connection ended'}") from error


def _send(connection: Connection, overlay: str, log: Callable[[bytes], None], limit: Limit, root: str) -> None:
    umask, *programs = ask(connection, _PROBE, limit).splitlines() or [b""]
    if b"rsync" in programs and (rsync := shutil.which("rsync")):
        send_by_rsync(connection, rsync, overlay, root, log=log, limit=limit)
    elif any(b"GNU tar" in line for line in programs):
        send_by_tar(connection, overlay, root, _octal(umask), log=log, limit=limit)
    else:
        raise SetupError("needs rsync on both machines, or GNU tar on the worker; install one there, or do without --overlay")


def _octal(umask: bytes) -> int:
    try:
        return int(umask, 8) & 0o777
    except ValueError:
        return 0o022
