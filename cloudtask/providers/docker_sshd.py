"""A container that is logged in to by ssh: what goes into it before it starts, and how its sshd is started."""

from __future__ import annotations

import io
import tarfile

from cloudtask.providers.base import Order

HOST_KEY = "etc/ssh/cloudtask_host_key"
LOGIN_KEYS = "etc/ssh/cloudtask_authorized_keys"

START = f"""
sshd=$(command -v sshd) || sshd=/usr/sbin/sshd
[ -x "$sshd" ] || {{ echo "cloudtask: no sshd in this image" >&2; exit 127; }}
mkdir -p /run/sshd
"$sshd" -p 22 -o HostKey=/{HOST_KEY} -o 'AuthorizedKeysFile=/{LOGIN_KEYS} .ssh/authorized_keys' -o PasswordAuthentication=no \\
  -o PermitRootLogin=prohibit-password || exit 1
"""
"""Shell code for the container's first process, before its timer."""


def files(order: Order) -> bytes:
    """The login's key and the host key, as a tar archive for ``/``.  Raises ValueError for an order without them."""
    private = _host_key(order)
    if not order.public_key or not private:
        raise ValueError("an order without keys cannot be logged in to by ssh")
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, text, mode in ((LOGIN_KEYS, f"{order.public_key}\n", 0o644), (HOST_KEY, private, 0o600)):
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(text.encode()), mode
            archive.addfile(info, io.BytesIO(text.encode()))
    return buffer.getvalue()


def _host_key(order: Order) -> str:
    """The private half, which stands in the user data only."""
    import yaml

    try:
        found = yaml.safe_load(order.user_data)
        return str(found["ssh_keys"]["ed25519_private"])
    except (yaml.YAMLError, LookupError, TypeError):
        return ""
