"""The keys to log in with, in the order in which they are tried.

The session's key first, then --ssh-identity, then what the ssh configuration says: keys of the agent (those named by an IdentityFile
first, and only those with IdentitiesOnly), then the files.  A certificate goes before the bare key that it is for.  A key with a
passphrase is passed over unless the agent has it; passwords are never used.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import copy
import os
import socket
from collections.abc import Iterable, Iterator

import paramiko
import paramiko.agent
from cryptography.exceptions import UnsupportedAlgorithm

from cloudtask.transports.base import ConnectOptions
from cloudtask.transports.sshconfig import HostConfig, expand

_AGENT_PATIENCE = 60.0
"""Seconds that an agent may take: it may have to ask a person."""


class NeedsPassphraseError(Exception):
    """The key file is encrypted."""


class UnusableError(Exception):
    """The file is not a key that paramiko can use; the message says why."""


class Agent(paramiko.agent.AgentSSH):
    """The ssh-agent that listens at ``path``.  Raises OSError or paramiko.SSHException where it does not answer."""

    def __init__(self, path: str) -> None:
        super().__init__()
        with contextlib.ExitStack() as undo:
            connection = undo.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            connection.settimeout(_AGENT_PATIENCE)
            connection.connect(path)
            self._connect(connection)  # type: ignore[attr-defined]  # not in the stubs
            undo.pop_all()

    def close(self) -> None:
        """Hangs up."""
        self._close()  # type: ignore[attr-defined]  # not in the stubs


class Identities:
    """An iterable of (label, key), read as they are asked for.  `notes` says afterwards what was passed over and why.  Close it."""

    def __init__(self, config: HostConfig, options: ConnectOptions) -> None:
        self._config = config
        self._options = options
        self._agent: Agent | None = None
        self.notes: list[str] = []
        """What was passed over, and why."""
        self.locked: list[str] = []
        """Key files with a passphrase that no agent opened."""

    def __iter__(self) -> Iterator[tuple[str, paramiko.PKey]]:
        """The candidates, each once."""
        seen: set[bytes] = set()
        for label, key in self._candidates():
            blob = key.public_blob.key_blob if key.public_blob else key.asbytes()
            if blob not in seen:
                seen.add(blob)
                yield label, key

    def close(self) -> None:
        """Lets go of the agent."""
        if self._agent is not None:
            self._agent.close()
            self._agent = None

    def _candidates(self) -> Iterator[tuple[str, paramiko.PKey]]:
        if self._options.session_key and os.path.exists(self._options.session_key):
            yield from self._file(self._options.session_key, {})
        held = self._held()
        named = [path for path in (self._options.identity and expand(self._options.identity, {}),) if path]
        for path in named:
            if not os.path.exists(path) and not os.path.exists(f"{path}.pub"):
                self.notes.append(f"{path} does not exist")
            yield from self._file(path, held)
        files = [path for path in self._config.identities if path not in named]
        wanted = {blob for path in files for blob in _public(path)}
        for blob, key in held.items():
            if blob in wanted or not self._config.identities_only:
                yield from self._certified(_agent_label(key), key, self._config.certificates)
        for path in files:
            yield from self._file(path, held)

    def _held(self) -> dict[bytes, paramiko.PKey]:
        """What the agent holds, by public key, what an IdentityFile names first."""
        if self._config.agent is None:
            return {}
        try:
            self._agent = Agent(self._config.agent)
        except (OSError, paramiko.SSHException) as error:
            self.notes.append(f"the ssh-agent at {self._config.agent} does not answer ({getattr(error, 'strerror', None) or error})")
            return {}
        wanted = {blob for path in self._config.identities for blob in _public(path)}
        return {key.blob: key for key in sorted(self._agent.get_keys(), key=lambda key: key.blob not in wanted)}

    def _file(self, path: str, held: dict[bytes, paramiko.PKey]) -> Iterator[tuple[str, paramiko.PKey]]:
        public = next(_public(path), None)
        key: paramiko.PKey | None = held.get(public) if public else None
        if key is None:
            key = self._load(path)
        if key is None:
            return
        yield from self._certified(path, key, (f"{path}-cert.pub", *self._config.certificates))

    def _certified(self, label: str, key: paramiko.PKey, certificates: Iterable[str]) -> Iterator[tuple[str, paramiko.PKey]]:
        """The key with each certificate that is for it, then the bare key."""
        for certificate in certificates:
            with contextlib.suppress(OSError, ValueError, LookupError, paramiko.SSHException):
                if _certifies(certificate, key):
                    certified = _duplicate(key)
                    certified.load_certificate(certificate)
                    yield f"{label} with {os.path.basename(certificate)}", certified
        key.public_blob = None
        yield label, key

    def _load(self, path: str) -> paramiko.PKey | None:
        try:
            return load(path)
        except FileNotFoundError:
            return None
        except NeedsPassphraseError:
            self.locked.append(path)
        except UnusableError as error:
            self.notes.append(f"{path} cannot be used ({error})")
        return None


def load(path: str) -> paramiko.PKey:
    """The private key in ``path``.  Raises FileNotFoundError, NeedsPassphraseError or UnusableError."""
    try:
        return paramiko.PKey.from_path(path)
    except FileNotFoundError:
        raise
    except (paramiko.PasswordRequiredException, TypeError) as error:
        raise NeedsPassphraseError(path) from error
    except UnsupportedAlgorithm as error:
        raise UnusableError("its type needs an ssh-agent or --transport=openssh") from error
    except (OSError, ValueError, paramiko.SSHException, paramiko.pkey.UnknownKeyType) as error:
        raise UnusableError(getattr(error, "strerror", None) or "it is not a private key") from error


def _public(path: str) -> Iterator[bytes]:
    """The public key beside a private one, where there is one (ssh reads it from the same place)."""
    for candidate in (f"{path}.pub", path):
        with contextlib.suppress(OSError, ValueError, binascii.Error), open(candidate, "rb") as file:
            fields = file.readline(64 * 1024).split()
            if len(fields) >= 2 and not fields[0].startswith(b"-"):
                yield base64.b64decode(fields[1], validate=True)
                return


def _certifies(certificate: str, key: paramiko.PKey) -> bool:
    """True where the certificate is for this key: its public parts stand in it (PROTOCOL.certkeys)."""
    message = paramiko.Message(key.asbytes())
    message.get_text()
    parts = message.get_remainder()
    with open(certificate, "rb") as file:
        return parts in base64.b64decode(file.read().split()[1])


def _duplicate(key: paramiko.PKey) -> paramiko.PKey:
    if isinstance(key, paramiko.AgentKey):
        return paramiko.AgentKey(key.agent, key.blob, key.comment)
    return copy.copy(key)


def _agent_label(key: paramiko.PKey) -> str:
    return f"agent key {getattr(key, 'comment', '') or key.get_name()}"
