"""The ``ssh`` transport: paramiko, with the user's ssh configuration, keys, agent and known hosts."""

from __future__ import annotations

import contextlib
import logging
import random
import shlex
import threading
import time
from dataclasses import dataclass, field

import paramiko

from cloudtask.errors import ConnectError, RefusedError
from cloudtask.model import Address
from cloudtask.transports import dial
from cloudtask.transports.base import Channel, ConnectOptions
from cloudtask.transports.handshakes import Slot
from cloudtask.transports.hostkeys import HostKeys
from cloudtask.transports.identities import Identities
from cloudtask.transports.pinning import PinnedKey
from cloudtask.transports.session import Session, SessionChannel
from cloudtask.transports.sshconfig import HostConfig, config_arguments, expand_tokens, resolve
from cloudtask.transports.stream import Stream
from cloudtask.transports.verdict import verdict

TRIES = 5
"""Handshakes tried within one `connect` where the server hangs up on them."""

OPENS = 8
"""Times that a refused channel is asked for again: sshd frees a session's slot later than its client sees the end."""

_IDLE_POLL = 5.0
"""Seconds between two looks at the clock of an idle connection."""

logging.getLogger("paramiko").addHandler(logging.NullHandler())  # its errors are ours to report, in one line


class Dropped(Exception):
    """The server hung up on a handshake.  ``spoiled`` is the label of the key that must not be tried again."""

    def __init__(self, reason: str, spoiled: str | None = None) -> None:
        super().__init__(reason)
        self.spoiled = spoiled


class NoSuchHostKey(RefusedError):
    """The server has no host key of the types that are accepted."""


class SshTransport:
    """A `Transport` on paramiko."""

    def connect(self, address: Address, options: ConnectOptions) -> SshConnection:
        """See `Transport`."""
        deadline = time.monotonic() + options.timeout
        config = resolve(address, options.user, options.ssh_config)
        call = Call(config, options, deadline)
        for attempt in range(TRIES):
            try:
                return call.place()
            except Dropped as dropped:
                reason = str(dropped)
                call.spoiled |= {dropped.spoiled} if dropped.spoiled else set()
            pause = random.uniform(0.1, 0.3) * 2**attempt
            if time.monotonic() + pause >= deadline:
                break
            time.sleep(pause)
        raise ConnectError(f"{config.login}: the connection was dropped before the login ({reason})")


@dataclass
class Call:
    """One contact under way: from the address to a connection that is logged in."""

    config: HostConfig
    options: ConnectOptions
    deadline: float
    spoiled: set[str] = field(default_factory=set)

    def place(self) -> SshConnection:
        """Connects, checks the host key, logs in.  Raises Dropped, ConnectError or RefusedError."""
        keys = (PinnedKey if self.config.pinned else HostKeys)(self.config, self.options.known_hosts)
        with Slot(self.deadline), contextlib.ExitStack() as undo:
            line = self._line()
            undo.callback(line.close)
            session = Session(line.stream)
            undo.callback(hang_up, session)
            try:
                session.offer(keys.algorithms(session.get_security_options().key_types))
                key = self._shake_hands(session)
                keys.check(key.get_name(), key.asbytes())
                self._log_in(session)
            except Dropped as dropped:
                raise line.blame(self.config.login, dropped) from dropped
            except NoSuchHostKey as error:
                raise (keys.mismatch() if isinstance(keys, PinnedKey) and keys.accepted() else error) from error
            notes = keys.settle()
            undo.pop_all()
        line.stream.settimeout(min(_IDLE_POLL, self.options.heartbeat / 3))
        session.set_keepalive(max(1, round(self.options.heartbeat)))
        connection = SshConnection(session, line, self.config.login, self.options.timeout)
        connection.notes = notes
        return connection

    def left(self) -> float:
        """Seconds until the deadline, at least a little."""
        return max(self.deadline - time.monotonic(), 0.1)

    def _line(self) -> Line:
        command = self.config.proxy_command
        if self.config.jumps and not command:
            command = expand_tokens(jump_command(self.config, self.options, len(self.config.jumps)), self.config)
        if command:
            program = dial.ProxyProgram(command)
            return Line(Stream(program.socket), program)
        patience = min(self.left(), self.config.timeout or self.left())
        return Line(Stream(dial.tcp(self.config.host, self.config.port, patience)), None)

    def _shake_hands(self, session: Session) -> paramiko.PKey:
        """Until the host key is there and its signature is right."""
        session.banner_timeout = session.handshake_timeout = self.left()
        try:
            session.start_client(timeout=self.left())
            if session.initial_kex_done:
                return session.get_remote_server_key()
        except paramiko.ssh_exception.IncompatiblePeer as error:
            kind = NoSuchHostKey if "host key" in str(error) else RefusedError
            raise kind(f"{self.config.login}: no ssh algorithm in common ({error}); try --transport=openssh") from error
        except (paramiko.SSHException, EOFError, OSError) as error:
            raise Dropped(session.farewell or str(error) or "the other side hung up") from error
        finally:
            session.packetizer.complete_handshake()  # ends its timer, whose thread would hold up the exit of the process
        raise ConnectError(f"{self.config.login}: it takes connections, but no ssh handshake within {self.options.timeout:.0f} seconds")

    def _log_in(self, session: Session) -> None:
        identities = Identities(self.config, self.options)
        tried: list[str] = []
        try:
            for label, key in identities:
                if label not in self.spoiled:
                    tried.append(label)
                    if self._accepted(session, label, key):
                        return
        finally:
            identities.close()
        # The session's own key is nothing that the user could authorise.
        users = [label for label in tried if label != self.options.session_key]
        raise RefusedError(_nobody(self.config, users, identities))

    def _accepted(self, session: Session, label: str, key: paramiko.PKey) -> bool:
        """True when ``key`` opened the door.  Raises for all that ends the matter."""
        session.auth_timeout = self.left()
        login = self.config.login
        try:
            further = session.auth_publickey(self.config.user, key)
        except paramiko.BadAuthenticationType as error:
            allowed = ", ".join(error.allowed_types)
            raise RefusedError(f"{login}: it does not accept keys (only {allowed}), and passwords are not supported") from error
        except (paramiko.SSHException, EOFError, OSError) as error:
            if session.is_active():
                if "timeout" in str(error).lower():
                    raise ConnectError(f"{login}: no answer to the login within {self.options.timeout:.0f} seconds") from error
                return False
            if "authentication failures" in session.farewell:
                raise RefusedError(
                    f"{login}: {session.farewell}: name the right key with --ssh-identity, or set IdentitiesOnly in ssh_config"
                ) from error
            ours = not isinstance(error, (EOFError, OSError)) and "saw EOF" not in str(error)
            raise Dropped(session.farewell or str(error), label if ours else None) from error
        if further:
            raise RefusedError(f"{login}: it wants more than a key ({', '.join(further)}), which is not supported")
        return True


@dataclass
class Line:
    """The byte stream of one connection, with the program that carries it where there is one."""

    stream: Stream
    program: dial.ProxyProgram | None

    def close(self) -> None:
        """Ends both."""
        self.stream.close()
        if self.program is not None:
            self.program.close()

    def blame(self, login: str, error: Dropped) -> Exception:
        """The error to raise: the program's own complaint says more than that the line went dead."""
        if self.program is None:
            return error
        said = verdict(f"{login}: its ProxyJump or ProxyCommand", self.program.complaints())
        if isinstance(said, RefusedError):
            return said
        words = dial.last_line(self.program.complaints())
        return Dropped(f"{error}; ProxyCommand: {words}" if words else str(error), error.spoiled)


class SshConnection:
    """A `Connection` on one paramiko transport."""

    def __init__(self, session: Session, line: Line, login: str, patience: float) -> None:
        self.login = login
        self.notes: list[str] = []
        self.session = session
        self._line = line
        self._patience = patience
        self._opening = threading.Lock()  # paramiko keeps one exception for all channels
        self._channels: list[SessionChannel] = []

    def open(self, command: str) -> Channel:
        """See `Connection`."""
        with self._opening:
            channel = SessionChannel(self.session, self._new_channel())
            self._channels = [each for each in self._channels if each.fileno() >= 0]
            self._channels.append(channel)  # kept: one that the garbage collector closes may do so under paramiko's locks
            try:
                channel.start(command.encode("utf-8", "surrogateescape"), self._patience)
            except (paramiko.SSHException, EOFError, OSError) as error:
                channel.close()
                if self.session.is_active():
                    raise RefusedError(f"{self.login}: it refuses to run commands (ForceCommand, or a shell that is none?)") from error
                raise ConnectError(f"{self.login}: the connection is gone") from error
            return channel

    def alive(self) -> bool:
        """See `Connection`."""
        return self.session.is_active()

    def close(self) -> None:
        """See `Connection`.  Waits up to a second for what was sent to leave."""
        while self._channels:
            self._channels.pop().close()
        deadline = time.monotonic() + 1
        while self.session.stream.unsent and self.session.is_active() and time.monotonic() < deadline:
            time.sleep(0.01)
        hang_up(self.session)
        self._line.close()

    def _new_channel(self) -> paramiko.Channel:
        for attempt in range(OPENS):
            try:
                return self.session.open_session(timeout=self._patience)
            except paramiko.ChannelException as error:
                refusal = error.text
            except (paramiko.SSHException, EOFError, OSError) as error:
                hang_up(self.session)
                raise ConnectError(f"{self.login}: the connection is gone ({error or 'end of file'})") from error
            time.sleep(random.uniform(0.02, 0.06) * 1.5**attempt)
        raise RefusedError(f"{self.login}: it opens no further channel ({refusal}): raise MaxSessions in its sshd_config")


def hang_up(session: Session) -> None:
    """Ends a session in whatever state it is."""
    session.close()
    session.stream.close()


def jump_command(config: HostConfig, options: ConnectOptions, count: int) -> str:
    """The ProxyCommand that goes through the first ``count`` jump hosts, the earlier ones inside as it is with ``ssh -J``.

    It has ``%h`` and ``%p`` for where it leads.  Jump hosts are logged in to by ssh itself, with the same configuration.
    """
    hop = config.jumps[count - 1]
    own = resolve(Address(host=hop.host, user=hop.user, port=hop.port), None, options.ssh_config)
    words = ["ssh", *config_arguments(options.ssh_config), "-o", "BatchMode=yes", "-o", f"ConnectTimeout={max(1, round(options.timeout))}"]
    if own.strict == "ask":
        files = " ".join(f'"{path}"' for path in (*own.user_known_hosts, options.known_hosts))
        words += ["-o", "StrictHostKeyChecking=accept-new", "-o", f"UserKnownHostsFile={files}"]
    words += ["-l", hop.user] if hop.user else []
    words += ["-p", str(hop.port)] if hop.port else []
    command = shlex.join(words).replace("%", "%%")
    if count > 1:
        inner = jump_command(config, options, count - 1)
        command += " " + shlex.join(["-o", f"ProxyCommand={inner}"]).replace("%", "%%")
    return f"{command} -W '[%h]:%p' -- {shlex.quote(hop.host)}"


def _nobody(config: HostConfig, tried: list[str], identities: Identities) -> str:
    """Why no key opened the door, and what to do."""
    locked = [f"key {path} has a passphrase: load it into an ssh-agent (ssh-add {shlex.quote(path)})" for path in identities.locked]
    if tried:
        keys = ", ".join(tried)
        parts = [f"login refused with {keys}"]
        remedy = f"add one of their public keys to {config.user}'s authorized_keys there, or name another key with --ssh-identity"
    else:
        parts = ["there is no key to log in with"]
        remedy = "name one with --ssh-identity, or load it into an ssh-agent; passwords are not supported"
    return f"{config.login}: " + "; ".join([*parts, *identities.notes, *(locked or [remedy])])
