"""Commands for a host, here and there: run to their end, with a limit, and what they complained of in one line.

Here, on the controller, a command gets the host's particulars as ``HOST_NAME HOST_ADDRESS HOST_PORT HOST_USER``.  There, on the host,
it is a login shell's command line, by the run's own transport and with the user's own keys.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import tempfile
import time

from cloudtask.errors import ConnectError, ProviderBusyError, ProviderRefusedError, WorkerError
from cloudtask.model import Address
from cloudtask.printable import sanitize
from cloudtask.providers.hosts_power import Switch, Words
from cloudtask.transports import Channel, Connection, ConnectOptions
from cloudtask.transports import find as find_transport

GRACE = 5.0
"""Seconds between TERM and KILL for a command that takes too long."""

GUARD = """
exec 3<&0 </dev/null
"$@" 3<&- & command=$!
{ read -r _ <&3; kill -KILL 0; } & guard=$!
exec 3<&-
wait $command; status=$?
kill -KILL $guard
exit $status
"""
"""Runs its arguments, and ends their process group when whoever holds the other end of stdin is killed: a start that was given up must
not succeed a minute later, when somebody else has made sure that the host is off.  What leaves the group lives on."""

_SHOWN = 200


def run_here(words: Words, switch: Switch, limit: float) -> int:
    """Run a command on the controller; its exit status.  Raises ProviderRefusedError (cannot be run), ProviderBusyError (too slow)."""
    return _run(words, switch, limit)[0]


def must_here(words: Words, switch: Switch, limit: float) -> None:
    """Run one that must succeed.  Raises ProviderRefusedError with its last words where its exit status is not 0."""
    status, said = _run(words, switch, limit)
    if status:
        raise ProviderRefusedError(f"hosts: {switch.name}: {shown(words)}: exit {status}" + (f": {said}" if said else ""))


def _run(words: Words, switch: Switch, limit: float) -> tuple[int, str]:
    argv = ["/bin/sh", "-c", words] if isinstance(words, str) else list(words)
    # Not a pipe: what the command leaves running (a virtual machine, an sshd) keeps its output open.
    with tempfile.TemporaryFile() as said:
        try:
            process = subprocess.Popen(
                ["/bin/sh", "-c", GUARD, "sh", *argv],
                stdin=subprocess.PIPE,
                stdout=said,
                stderr=said,
                env=_environment(switch),
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or str(error)
            raise ProviderRefusedError(f"hosts: {switch.name}: {shown(words)} cannot be run: {why}") from None
        assert process.stdin is not None
        with process.stdin:
            try:
                status = process.wait(limit)
            except subprocess.TimeoutExpired:
                _end(process)
                raise ProviderBusyError(f"hosts: {switch.name}: {shown(words)}: not done in {limit:g} s, and ended") from None
        size = said.seek(0, os.SEEK_END)
        said.seek(max(0, size - 4096))
        return status, last_words(said.read())


def _end(process: subprocess.Popen[bytes]) -> None:
    """TERM for the whole group, a grace, KILL."""
    deadline = time.monotonic() + GRACE
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
        while time.monotonic() < deadline:
            process.poll()
            os.killpg(process.pid, 0)
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _environment(switch: Switch) -> dict[str, str]:
    said = {"NAME": switch.name, "ADDRESS": switch.address, "PORT": switch.port, "USER": switch.user}
    return {**os.environ, **{f"HOST_{key}": str(value) for key, value in said.items() if value is not None}}


def must_there(command: str, name: str, connection: Connection, limit: float) -> None:
    """Run a command on the host.  Raises ProviderRefusedError where it fails, ProviderBusyError where the contact or the time ends."""
    deadline = time.monotonic() + limit
    try:
        channel = connection.open(command)
    except WorkerError as error:
        raise ProviderBusyError(f"hosts: {name}: {sanitize(str(error))}") from None
    try:
        status, complaints = _read(channel, deadline), channel.complaints()
    finally:
        channel.close()
    if status is None:
        what = "contact was lost" if time.monotonic() < deadline else f"not done in {limit:g} s"
        raise ProviderBusyError(f"hosts: {name}: {shown(command)}: {what}")
    if status:
        said = last_words(complaints)
        raise ProviderRefusedError(f"hosts: {name}: {shown(command)}: exit {status}" + (f": {said}" if said else ""))


def _read(channel: Channel, deadline: float) -> int | None:
    """Take in what it says until it ends; its exit status, None where that is not known in time."""
    with contextlib.suppress(OSError, EOFError):
        channel.shutdown_write()
        while time.monotonic() < deadline:
            select.select([channel.fileno()], [], [], 0.2)
            try:
                if not channel.recv(1 << 16):
                    break
            except BlockingIOError:
                continue
    end = min(deadline, time.monotonic() + GRACE)
    while (status := channel.exit_status()) is None and time.monotonic() < end:
        time.sleep(0.01)
    return status


def login(address: Address, transport: str, options: ConnectOptions, name: str) -> Connection:
    """Log in to a host.  Raises ProviderBusyError where it does not answer (yet), ProviderRefusedError where it will not have us."""
    try:
        return find_transport("local" if address.local else transport).connect(address, options)
    except ConnectError as error:
        raise ProviderBusyError(f"hosts: {name}: {sanitize(str(error))}") from None
    except WorkerError as error:
        raise ProviderRefusedError(f"hosts: {name}: {sanitize(str(error))}") from None


def shown(words: Words) -> str:
    """A command as messages name it: by its first word, for the others may hold what is secret."""
    found = [word for word in (words.split() if isinstance(words, str) else words) if "=" not in word]
    return repr(sanitize(found[0][:60] if found else "") + (" ..." if len(found) != 1 else ""))


def last_words(data: bytes) -> str:
    """The last line of what a program said, on one harmless line."""
    lines = [line for line in data.decode(errors="replace").splitlines() if line.strip()]
    text = " ".join(sanitize(lines[-1]).split()) if lines else ""
    return "".join(character if character.isprintable() else "?" for character in text)[:_SHOWN]
