"""What a machine is told at its first boot: cloud-init's ``#cloud-config``, with the login, its host key and its timer.

The format is that of cloud-init's modules ``ssh`` (``ssh_keys``, ``ssh_authorized_keys``, ``disable_root``), ``write_files`` and
``runcmd``.  cloud-init writes the host keys before it starts sshd.  The host key is the order's: machines of one order share it.
The timer is started at each boot (module ``scripts_per_boot``); ``runcmd`` starts it too, where that module is left out of an image.
"""

from __future__ import annotations

from typing import NamedTuple

from cloudtask.providers.timer import TIMER_PATH, start_command

BOOT_PATH = "/var/lib/cloud/scripts/per-boot/cloudtask-timer"
"""cloud-init runs what stands here at each boot, and waits for it."""
LIMIT = 16384
"""Bytes that EC2 and others take at most, before base64."""


class HostKey(NamedTuple):
    """``private`` in OpenSSH's format (PEM), ``public`` as ``ssh-ed25519 AAAA...``."""

    private: str
    public: str


def cloud_config(public_key: str, host_key: HostKey | None, timer: str) -> str:
    """The user data: equal arguments give equal text.  Raises ValueError where it is too long."""
    import yaml

    config: dict[str, object] = {"disable_root": False, "ssh_pwauth": False, "ssh_authorized_keys": [public_key]}
    if host_key:
        config |= {"ssh_deletekeys": True, "ssh_keys": {"ed25519_private": host_key.private, "ed25519_public": host_key.public}}
    if timer:
        starter = f"#!/bin/sh\n{start_command()}\nexit 0\n"
        config["write_files"] = [
            {"path": TIMER_PATH, "permissions": "0700", "content": timer},
            {"path": BOOT_PATH, "permissions": "0755", "content": starter},
        ]
        config["runcmd"] = [["/bin/sh", BOOT_PATH]]
    text = "#cloud-config\n" + yaml.safe_dump(config, sort_keys=True)
    if len(text.encode()) > LIMIT:
        raise ValueError(f"user data of {len(text.encode())} bytes is too long")
    return text


def make_host_key() -> HostKey:
    """A new ed25519 key pair."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()).decode()
    return HostKey(private, key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode())
