"""The ``openssh`` transport: the system's ssh, for sites that need GSSAPI, hardware keys, host certificates or the like.

One master connection (ControlMaster) for each worker and one ``ssh`` process for each channel.  ssh never asks anything
(BatchMode); unknown host keys are accepted once, into our own file, unless the user's configuration is stricter.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping

from cloudtask.errors import ConnectError, RefusedError, WorkerError
from cloudtask.model import Address
from cloudtask.transports.base import Channel, ConnectOptions
from cloudtask.transports.dial import last_line
from cloudtask.transports.handshakes import Slot
from cloudtask.transports.pinning import PinnedKey, parse_key
from cloudtask.transports.program import Complaints, ProgramChannel
from cloudtask.transports.sshconfig import HostConfig, config_arguments, resolve
from cloudtask.transports.verdict import verdict

TRIES = 6
"""Times that a connection is tried within one `connect` when the server hangs up on it."""

OPENS = 8
"""Times that a refused channel is asked for again."""

SILENCES = 3
"""Unanswered signs of life after which ssh gives the connection up."""

_OPENED = b"master session id"
_REFUSED = b"refused by peer"
"""Words of mux_client_request_session() in mux.c of OpenSSH."""

_TALK = (b"debug1: ", b"OpenSSH_")
_NO_SUCH_KEY = b"no matching host key type found"
_FINGERPRINT = re.compile(rb"SHA256:[A-Za-z0-9+/]{43}")

_PAUSE = 0.02
"""Seconds between two looks whether the master has logged in."""


class OpensshTransport:
    """A `Transport` on the system's ssh."""

    def connect(self, address: Address, options: ConnectOptions) -> OpensshConnection:
        """See `Transport`."""
        if shutil.which("ssh") is None:
            raise RefusedError(f"{address}: there is no ssh on PATH; install openssh-client or use --transport=ssh")
        deadline = time.monotonic() + options.timeout
        config = resolve(address, options.user, options.ssh_config)
        with contextlib.suppress(OSError):  # ssh then complains in its own words
            os.makedirs(os.path.dirname(options.known_hosts) or ".", mode=0o700, exist_ok=True)
        for attempt in range(TRIES):
            try:
                with Slot(deadline):
                    return OpensshConnection(config, options, Master(config, options, deadline))
            except ConnectError as error:
                pause = random.uniform(0.1, 0.3) * 2**attempt
                if not _dropped(error) or attempt == TRIES - 1 or time.monotonic() + pause >= deadline:
                    raise
                time.sleep(pause)
        raise AssertionError  # the last try returns or raises


class Master:
    """The process that holds the connection.  Raises ConnectError or RefusedError where it does not come up by ``deadline``."""

    def __init__(self, config: HostConfig, options: ConnectOptions, deadline: float) -> None:
        self.notes: list[str] = []
        self._pin = PinnedKey(config, options.known_hosts) if config.pinned else None
        self._folder = tempfile.mkdtemp(prefix="ctssh")  # 0700; short, for a socket's path has 104 bytes at most
        self.socket = os.path.join(self._folder, "s")
        self._login = config.login
        pinning = self._write_key(config, self._pin) if self._pin else {}
        command = ["ssh", *master_arguments(config, options, self.socket, pinning), "--", config.name]
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
        )
        assert self._process.stderr is not None
        self._complaints = Complaints(self._process.stderr)
        with contextlib.ExitStack() as undo:
            undo.callback(self.close)
            self._wait(deadline)
            if self._pin:
                self.notes = self._settle(self._pin)
            undo.pop_all()

    def alive(self) -> bool:
        """True while the process runs."""
        return self._process.poll() is None

    def close(self) -> None:
        """Ends it and what it started, and removes its socket."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(1)
                break
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)  # a ProxyCommand that outlives it
        shutil.rmtree(self._folder, ignore_errors=True)

    def blame(self) -> WorkerError:
        """Why it ended."""
        self._complaints.ended(0.5)
        said = self._complaints.kept()
        found = verdict(self._login, said)
        # Not where it is a jump host that shows another key.
        if self._pin and self._pin.accepted() and (_NO_SUCH_KEY in said or os.fsencode(self._hosts) in said):
            shown = _FINGERPRINT.search(said)
            return self._pin.mismatch(shown[0].decode() if shown else "")
        return found

    def _write_key(self, config: HostConfig, pin: PinnedKey) -> dict[str, str]:
        """A known_hosts file of this connection's own, and the settings that make ssh look nowhere else; none of them writes elsewhere."""
        with open(self._hosts, "w", encoding="ascii") as file:
            file.writelines(f"{config.alias} {key}\n" for key in pin.accepted())
        return pinned_settings(config, pin, self._hosts)

    def _settle(self, pin: PinnedKey) -> list[str]:
        """The login worked with a key that stands in the file by now."""
        with open(self._hosts, encoding="ascii") as file:
            shown = [parse_key(line.split(None, 1)[1]) for line in file]
        if not shown:
            raise RefusedError(f"{self._login}: its host key cannot be told: {self._hosts} is empty")
        pin.check(*shown[0])
        return pin.settle()

    @property
    def _hosts(self) -> str:
        return os.path.join(self._folder, "hosts")

    def _wait(self, deadline: float) -> None:
        while not os.path.exists(self.socket):
            if not self.alive():
                raise self.blame()
            if time.monotonic() > deadline:
                raise ConnectError(f"{self._login}: no login within the time limit: is the host up?")
            time.sleep(_PAUSE)


class OpensshConnection:
    """A `Connection` through a `Master`."""

    def __init__(self, config: HostConfig, options: ConnectOptions, master: Master) -> None:
        self.login = config.login
        self.notes = master.notes
        self._master = master
        self._patience = options.timeout
        self._channels: list[ProgramChannel] = []

    def open(self, command: str) -> Channel:
        """See `Connection`."""
        self._channels = [each for each in self._channels if each.fileno() >= 0]
        for attempt in range(OPENS):
            if not self.alive():
                raise ConnectError(str(self._master.blame()))
            channel = OpensshChannel(["ssh", *channel_arguments(self._master.socket), os.fsencode(command)])
            if channel.stderr.begins_with(_OPENED, self._patience):
                self._channels.append(channel)
                return channel
            refusal = channel.complaints()
            channel.close()
            if _REFUSED not in refusal:
                raise ConnectError(f"{self.login}: the connection is gone ({last_line(refusal) or 'no answer'})")
            time.sleep(random.uniform(0.02, 0.06) * 1.5**attempt)
        raise RefusedError(f"{self.login}: it opens no further channel ({last_line(refusal)}): raise MaxSessions in its sshd_config")

    def alive(self) -> bool:
        """See `Connection`."""
        return self._master.alive()

    def close(self) -> None:
        """See `Connection`."""
        while self._channels:
            self._channels.pop().close()
        self._master.close()


class OpensshChannel(ProgramChannel):
    """A channel's ssh process.  It talks of its own doings (``-v``), for only so does it say that the channel is open."""

    def complaints(self) -> bytes:
        """See `Channel`.  Without ssh's own talk."""
        return b"".join(line for line in super().complaints().splitlines(keepends=True) if not line.startswith(_TALK))


def master_arguments(config: HostConfig, options: ConnectOptions, path: str, pinning: Mapping[str, str]) -> list[str]:
    """What the master is started with, before the host's name.  ``pinning`` are `pinned_settings` where they apply."""
    settings = {
        "BatchMode": "yes",
        "ControlPersist": "no",
        "ServerAliveInterval": str(max(1, round(options.heartbeat))),
        "ServerAliveCountMax": str(SILENCES),
        "ConnectTimeout": str(max(1, round(min(options.timeout, config.timeout or options.timeout)))),
        "ClearAllForwardings": "yes",
        "PermitLocalCommand": "no",
        "UserKnownHostsFile": " ".join(f'"{file}"' for file in (options.known_hosts, *config.user_known_hosts)),
    }
    if config.strict != "yes":
        settings["StrictHostKeyChecking"] = "accept-new"  # also in place of "no": a changed key is never accepted
    settings |= pinning
    words = ["-N", "-M", "-S", path, "-T", *config_arguments(options.ssh_config), "-l", config.user, "-p", str(config.port)]
    for key, value in settings.items():
        words += ["-o", f"{key}={value}"]
    for identity in _identities(config, options):
        words += ["-i", identity]
    return words


def pinned_settings(config: HostConfig, pin: PinnedKey, file: str) -> dict[str, str]:
    """What makes ssh accept the keys in ``file`` only, or, where there are none, write the first one there."""
    keys = pin.accepted()
    settings = {
        "HostKeyAlias": str(config.alias),
        "UserKnownHostsFile": '"' + file.replace("%", "%%") + '"',
        "GlobalKnownHostsFile": "/dev/null",
        "StrictHostKeyChecking": "yes" if keys else "accept-new",
        "CheckHostIP": "no",
        "HashKnownHosts": "no",
        "NoHostAuthenticationForLocalhost": "no",
        "UpdateHostKeys": "no",
        "VerifyHostKeyDNS": "no",
    }
    if keys:
        settings["HostKeyAlgorithms"] = ",".join(dict.fromkeys(name for key in keys for name in key.algorithms))
    if config.hosts_command:
        settings["KnownHostsCommand"] = "none"
    return settings


def channel_arguments(path: str) -> list[str]:
    """What a channel's ssh is started with.  It reads no configuration and cannot connect by itself where the master is gone."""
    return [
        "-v", "-F", "none", "-S", path, "-T", "-o", "BatchMode=yes", "-o", "ControlMaster=no",
        "-o", "ProxyCommand=echo the connection is gone >&2; exit 1", "--", "worker",
    ]  # fmt: skip


def _identities(config: HostConfig, options: ConnectOptions) -> list[str]:
    """The keys in our order.  An ``-i`` takes the place of ssh's default files, so those are named as well."""
    first = [path for path in (options.session_key, options.identity) if path]
    if not first:
        return []
    return [path for path in (*first, *config.identities) if path in first or os.path.exists(path)]


def _dropped(error: ConnectError) -> bool:
    """True where the server hung up during the handshake: MaxStartups does that."""
    return any(words in str(error) for words in ("Connection closed by", "Connection reset by", "kex_exchange_identification"))
