"""The session's own key pair: ed25519, made for one session, authorised on its workers, and gone with it.

The private key is not in the session's directory, because people keep sessions in git, but in ``$XDG_STATE_HOME/cloudtask/keys/``
(``~/.local/state`` where that is not set, or not absolute: XDG Base Directory Specification 0.8), in OpenSSH's format, 0600.
"""

from __future__ import annotations

import contextlib
import os

from cloudtask.errors import SessionError
from cloudtask.session.layout import DIRECTORY_MODE, read_inside, write_inside


def keys_directory() -> str:
    """Where the keys are; it may not exist."""
    state = os.environ.get("XDG_STATE_HOME", "")
    if not os.path.isabs(state):
        state = os.path.join(os.path.expanduser("~"), ".local", "state")
    return os.path.join(state, "cloudtask", "keys")


def key_path(uid: str) -> str:
    """The private key's file for the session with this unique id."""
    return os.path.join(keys_directory(), uid)


def comment(uid: str) -> str:
    """What marks the session's line in an authorized_keys file."""
    return f"cloudtask-{uid}"


def make_key(uid: str) -> str:
    """The session's public key line, without newline and options: ``ssh-ed25519 AAAA... cloudtask-UID``.

    The key pair is made where there is none yet, or none that can be read; a resume on the same machine finds the old one.
    Raises SessionError where it cannot be written.
    """
    try:
        return public_key(uid)
    except (OSError, ValueError):
        pass
    try:
        return _make(uid)
    except OSError as error:
        raise SessionError(f"{key_path(uid)}: the session's key cannot be written: {error.strerror}; set XDG_STATE_HOME") from error


def public_key(uid: str) -> str:
    """The public key line of a key that exists.  Raises OSError (no file), ValueError (not a key) or SessionError (a symbolic link)."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_ssh_private_key

    try:
        key = load_ssh_private_key(read_inside(*os.path.split(key_path(uid))), password=None)
    except (TypeError, UnsupportedAlgorithm) as error:
        raise ValueError(str(error)) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise ValueError(f"{key_path(uid)} is not an ed25519 key")
    line = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    return f"{line} {comment(uid)}"


def remove_key(uid: str) -> None:
    """Remove the private key; nothing happens where there is none."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(key_path(uid))


def _make(uid: str) -> str:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    folder = keys_directory()
    os.makedirs(folder, mode=DIRECTORY_MODE, exist_ok=True)
    os.chmod(folder, DIRECTORY_MODE)
    key = Ed25519PrivateKey.generate()
    write_inside(folder, uid, key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    return public_key(uid)
