"""How the controller speaks with an agent: the command line that starts it, its program, its greeting, and frames.

The transport runs `launch_command` on the worker.  Whatever login scripts print first is passed over by `Greeting`, which finds the
mark; only then `agent_payload` is sent, and frames follow in both directions at once.

An attempt is ``[job, attempt]``; pre is job -1 and post -2.  To the agent:

========  =============================================================================================================
hello     version, epoch, connection, acked (false: without the acknowledged rows), config (session, worker, slots,
          grace, lease, max_output, env, workdir, post, post_timeout, public_key, heartbeat).  Only the highest
          (epoch, connection) is obeyed
run       jobs: ``[job, attempt, timeout, size]``; the payload is their codes one after the other; size -1: staged before
code      job, attempt: the next piece of a long code, in the payload
want      jobs: ``[job, attempt, out, err]``: deliver these old attempts, their output from those positions on
ack       jobs: the controller has their results on disk; the agent keeps the bare outcome
kill      jobs, why (aborted, superseded); recall: count unstarted ones back
ready     set-up is complete; remembered in the agent's home
beat      n: renews the lease
abort     end all jobs, give back what waits, run post, take the key out, and go once nothing is unacknowledged
finish    the same where nothing runs
========  =============================================================================================================

From the agent:

=========  ============================================================================================================
welcome    version, epoch (before this hello), pid, cpus, python, identity, fresh, rebooted, ready, survives, root, home
inventory  rows of ``[job, attempt, state, result]``, last; state is queued, running, ended, acked or lost
started    jobs: ``[job, attempt, slot]``
out        job, attempt, stream (1, 2), position; the payload is the piece
ended      jobs: results ``[job, attempt, slot, ending, value, seconds, cpu, memory, out, err, crc_out, crc_err, cut,
           inline_out, inline_err]``; the payload is the output that no ``out`` frame has brought, in order
returned   jobs, why: never will start; refused: jobs that are known already; stuck: jobs that cannot be killed
full       error: the disk is full; note: text for the log; beat: n, free; overtaken: epoch; done: left unacknowledged
=========  ============================================================================================================
"""

from __future__ import annotations

import functools
import os
import pkgutil
import re
import secrets
import zlib

from cloudtask.agent.codec import MAX_FRAME, ProtocolError, Unpacker, pack

__all__ = ["MAX_FRAME", "VERSION", "Greeting", "ProtocolError", "Unpacker", "agent_payload", "launch_command", "new_nonce", "pack"]

VERSION = 1
"""The protocol's version, in `hello` and `welcome`."""

NOISE_KEPT = 4096
"""Bytes of what came before the mark that are kept for messages."""

_NO_PYTHON = ("CLOUDTASK-NO", "PYTHON")
_PART_OF_ALL = "json"
"""A module that Debian's python3-minimal, which is not all of Python, has not."""
_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,120}\Z")
_SIZE_DIGITS = 8

# No quote of any kind, no backslash, dollar or exclamation mark: every login shell hands it on as it is.  It prints the mark from
# two arguments, reads a length of eight digits and as many bytes, never one more, and runs what they unpack to.
_BOOTSTRAP = (
    "import os,sys,zlib;"
    "s=sys.argv;"
    "m=s[1]+s[2] if sys.version_info>=(3,6) and sys.meta_path[-1].find_spec(s[5],None) else s[3]+s[4];"
    "os.write(1,(m+chr(10)).encode());"
    "m==s[1]+s[2] or os._exit(0);"
    "r=lambda n,b:[b.extend(os.read(0,n-len(b)) or os._exit(3)) for _ in iter(lambda:len(b)<n,False)] and b;"
    f"z=bytes(r(int(r({_SIZE_DIGITS},bytearray())),bytearray()));"
    "a=s[6:];"
    "exec(zlib.decompress(z))"
)


def new_nonce() -> tuple[str, str]:
    """Two random halves of a mark that no login script prints."""
    return "cloudtask-" + secrets.token_hex(8), secrets.token_hex(8)


def launch_command(key: str, nonce: tuple[str, str]) -> str:
    """The command line for the worker's login shell, whichever that is.  ``key``: ``<session uid>.<worker number>``.

    It prints one of two marks, each put together from two words that stand apart here, so that an echo of the line is no mark.
    Raises ValueError for a key that is no such name.
    """
    if not _KEY.match(key):
        raise ValueError(f"{key!r} is no name for an agent")
    words = " ".join([*nonce, *_NO_PYTHON, _PART_OF_ALL, "attach", key])
    script = f'command -v python3 >/dev/null 2>&1 && exec python3 -I -S -c "{_BOOTSTRAP}" {words}; printf %s%s {" ".join(_NO_PYTHON)}; echo'
    return f"exec /bin/sh -c '{script}'"


@functools.cache
def agent_payload() -> bytes:
    """The agent's program, as the bootstrap reads it after the mark: eight digits with the length, then that many bytes."""
    sources = {}
    for module in pkgutil.iter_modules([_directory()]):
        with open(os.path.join(_directory(), module.name + ".py"), encoding="utf-8") as file:
            sources[module.name] = file.read()
    boot = sources.pop("boot")
    packed = zlib.compress(f"{boot}\nenter({sources!r}, a, z)\n".encode(), 9)
    return f"{len(packed):0{_SIZE_DIGITS}d}".encode() + packed


def _directory() -> str:
    return os.path.join(os.path.dirname(os.path.abspath(__file__)), "agent")


class Greeting:
    """Finds the mark in what the worker prints.  ``noise``: what came before it, for messages."""

    def __init__(self, nonce: tuple[str, str]) -> None:
        self._marks = {"agent": ("".join(nonce) + "\n").encode(), "nopython": ("".join(_NO_PYTHON) + "\n").encode()}
        self._seen = b""
        self.noise = b""

    def feed(self, data: bytes) -> tuple[str, bytes] | None:
        """None while there is no mark; then ``("agent", rest)`` or ``("nopython", rest)`` with what followed the mark."""
        seen = self._seen + data
        for kind, mark in self._marks.items():
            before, found, rest = seen.partition(mark)
            if found:
                self._pass_over(before)
                return kind, rest
        keep = max(len(mark) for mark in self._marks.values()) - 1
        self._pass_over(seen[:-keep])
        self._seen = seen[-keep:]
        return None

    def _pass_over(self, noise: bytes) -> None:
        self.noise = (self.noise + noise)[-NOISE_KEPT:]
