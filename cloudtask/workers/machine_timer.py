"""Starting the timer of a machine (see `cloudtask.providers.timer`) whose provider could not do it at boot, over its connection."""

from __future__ import annotations

import os
import shlex
import time

from cloudtask.errors import WorkerError
from cloudtask.printable import sanitize
from cloudtask.providers.timer import TIMER_PATH, keep_command, start_command
from cloudtask.transports import Connection
from cloudtask.workers.remote_command import Limit, ask

_SECONDS = 30.0
_STARTED = b"cloudtask-timer started"
IT_IS_US = "it is the controller itself"
"""The reason where a machine is a process on this one."""

_HELD = b"cloudtask-timer held"
_AS_ROOT = 'if [ "$(id -u)" = 0 ]; then {words}; else sudo -n {words}; fi 2>&1'
_ELSEWHERE = f"""\
if [ "$(cat /proc/sys/kernel/random/boot_id 2>/dev/null) $(readlink /proc/self/ns/pid 2>/dev/null)" = "$1 $2" ]; \
then echo {IT_IS_US}; exit 1; fi; """

_INSTALL = f"""\
{_ELSEWHERE}umask 077; mkdir -p {os.path.dirname(TIMER_PATH)} && cat >{TIMER_PATH}.$$ && mv -f {TIMER_PATH}.$$ {TIMER_PATH} && \
{{ {start_command()}; }} && echo {_STARTED.decode()}"""


def start_timer(connection: Connection, script: str) -> str:
    """Start it, as root; where it runs already nothing happens.  Returns why there is none, empty where there is.

    Blocks for some seconds, so it is for a thread.  Never on the controller: a machine may be a process there.
    """
    words = shlex.join(["/bin/sh", "-c", _INSTALL, "cloudtask", *_here()])
    try:
        said = ask(connection, _AS_ROOT.format(words=words), Limit("its start", time.monotonic() + _SECONDS), script.encode())
    except (WorkerError, OSError, EOFError) as error:
        return str(error) or "the connection ended"
    if said.endswith(_STARTED + b"\n"):
        return ""
    return _last_words(said)


def hold_machine(connection: Connection, seconds: int) -> str:
    """Hold it for so long though nobody uses it; returns why that cannot be, empty where it can.  Blocks for some seconds.  Never here."""
    words = shlex.join(["/bin/sh", "-c", f"{_ELSEWHERE}{keep_command(seconds)} && echo {_HELD.decode()}", "cloudtask", *_here()])
    try:
        said = ask(connection, _AS_ROOT.format(words=words), Limit("its hold", time.monotonic() + _SECONDS), b"")
    except (WorkerError, OSError, EOFError) as error:
        return str(error) or "the connection ended"
    return "" if said.endswith(_HELD + b"\n") else _last_words(said)


def _last_words(said: bytes) -> str:
    lines = said.decode("utf-8", "replace").splitlines()
    return sanitize(lines[-1][:200]) if lines else "it says nothing"


def _here() -> tuple[str, str]:
    """What tells this machine, and on it this container, from any other."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip(), os.readlink("/proc/self/ns/pid")
    except OSError:
        return "unknown", "unknown"
