"""Making a machine of the ``fake`` provider: its files, its sshd, its first process.

The first process leaves this one's session at once, so that logouts and Ctrl-C do not reach it.  It does nothing before its machine is
written down: it waits for the end of a pipe, which comes when that is done or when who makes it has died, and then looks whether it is.
So nothing runs that is not remembered, whenever the maker is killed.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from cloudtask.errors import ProviderRefusedError
from cloudtask.providers import fake_processes
from cloudtask.providers.base import Order
from cloudtask.providers.userdata import HostKey, make_host_key

SSH_PORT = 2222
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_SSHD_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin"

LOOK_EVERY = 30.0
"""Seconds between two looks of a machine whether it is still remembered: one that nobody could find any more ends itself."""

# Arguments: the machine's record, seconds between two looks at it, seconds until it has booted, seconds from then to its end ("" for
# never), python, the program that ends the rest of the machine, the machine's id, and its sshd if it has one.
FIRST_PROCESS = """
read -r nothing
[ -e "$1" ] || exit 0
exec </dev/null
cd /
record=$1 pause=$2 boot=$3 life=$4 python=$5 program=$6 id=$7
shift 7
remembered() { while [ -e "$record" ]; do sleep "$pause"; done; }
the_end() { exec "$python" -IS "$program" "$id"; }
if [ $# -eq 0 ] && [ -z "$life" ]; then
  remembered
  the_end
fi
(remembered; the_end) &
[ "$boot" = 0 ] || sleep "$boot"
if [ $# -eq 0 ]; then
  sleep "$life"
elif [ -n "$life" ]; then
  timeout -s KILL "$life" "$@"
else
  "$@"
fi
the_end
"""

# As in a machine of one's own: commands run in the home, and that is on the machine's disk.
LOGIN = (
    """/bin/sh -c 'cd; if [ -z "${SSH_ORIGINAL_COMMAND+x}" ]; then exec "$SHELL" -l; fi; """
    """command=$SSH_ORIGINAL_COMMAND; unset SSH_ORIGINAL_COMMAND; exec "$SHELL" -c "$command"'"""
)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a machine will be.  Seconds: ``boot`` until one can log in (None: never), ``life`` from then to its end (None: never)."""

    id: str
    disk: str
    record: str
    boot: float | None
    life: float | None

    @property
    def home(self) -> str:
        """Its login's home directory."""
        return os.path.join(self.disk, "home")


class Sshd(NamedTuple):
    """Where a machine's sshd will listen, the host key that it will show, and how it is started."""

    host: str
    port: int
    host_key: str
    argv: list[str]


def make_sshd(plan: Plan, order: Order, key: HostKey | None) -> Sshd:
    """The files of an sshd; ``key`` is its host key, None for a new one.  Raises OSError, ProviderRefusedError."""
    host, port = _free_address()
    key = key or make_host_key()
    os.makedirs(plan.disk, mode=0o700)
    _write(f"{plan.disk}/host_key", [key.private.rstrip("\n")])
    _write(f"{plan.disk}/authorized_keys", authorized_keys(order))
    _write(f"{plan.disk}/sshd_config", _sshd_config(plan, host, port))
    if os.getuid() == 0:
        os.makedirs("/run/sshd", mode=0o755, exist_ok=True)  # sshd's privilege separation wants it
    argv = [] if plan.boot is None else [sshd_program() or "sshd", "-D", "-e", "-f", f"{plan.disk}/sshd_config"]
    return Sshd(host, port, " ".join(key.public.split()[:2]), argv)


@contextlib.contextmanager
def starting(plan: Plan, program: Sequence[str], more: Mapping[str, str]) -> Iterator[tuple[int, int]]:
    """Its first process, and when that was started.  It waits until the context is left, and ends where there is no record then."""
    os.makedirs(plan.home, mode=0o700)
    life = "" if plan.life is None else f"{plan.life:.3f}"
    words = [plan.record, f"{LOOK_EVERY:g}", f"{plan.boot or 0:.6g}", life, sys.executable, fake_processes.__file__, plan.id, *program]
    argv = ["/bin/sh", "-c", FIRST_PROCESS, "fake-machine", *words]
    log = (os.POSIX_SPAWN_OPEN, 1, f"{plan.disk}/console.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    gate, ours = os.pipe()
    try:
        pid = os.posix_spawn(
            argv[0],
            argv,
            {**environment(plan), **more},
            file_actions=((os.POSIX_SPAWN_DUP2, gate, 0), log, (os.POSIX_SPAWN_DUP2, 1, 2)),
            setsid=True,
            setsigmask=(),
            setsigdef=signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP},
        )
        found = fake_processes.look_up(pid)
        yield pid, found.start if found else 0
    finally:
        os.close(gate)
        os.close(ours)


def _write(path: str, lines: Sequence[str]) -> None:
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write("".join(f"{line}\n" for line in lines))


def environment(plan: Plan) -> dict[str, str]:
    """That of everything on a machine."""
    user = login()
    return {"HOME": plan.home, "USER": user, "LOGNAME": user, "SHELL": "/bin/sh", "PATH": PATH, fake_processes.MARK: plan.id}


def login() -> str:
    """Who logs in: whoever this is."""
    return pwd.getpwuid(os.getuid()).pw_name


def chosen_host_key(order: Order) -> HostKey | None:
    """The host key that the order's user data brings; None where there is none.  Raises ProviderRefusedError."""
    keys = _cloud_config(order).get("ssh_keys")
    if not isinstance(keys, dict) or not all(isinstance(keys.get(f"ed25519_{half}"), str) for half in ("private", "public")):
        return None
    return HostKey(keys["ed25519_private"], keys["ed25519_public"])


def authorized_keys(order: Order) -> list[str]:
    """Whom the order lets in.  Raises ProviderRefusedError."""
    listed = _cloud_config(order).get("ssh_authorized_keys")
    told = [line for line in listed if isinstance(line, str)] if isinstance(listed, list) else []
    return list(dict.fromkeys(line.strip() for line in (*told, order.public_key or "") if line.strip()))


def _cloud_config(order: Order) -> dict[str, object]:
    import yaml

    try:
        config = yaml.safe_load(order.user_data) if order.user_data.startswith("#cloud-config") else {}
    except yaml.YAMLError as error:
        raise ProviderRefusedError("fake: the user data cannot be read") from error
    return config if isinstance(config, dict) else {}


def sshd_program() -> str | None:
    """The path of sshd."""
    return shutil.which("sshd", path=_SSHD_PATH)


def _free_address() -> tuple[str, int]:
    """One of the loopback addresses (all of 127/8 is this machine) with a port that nobody listens on.  Raises OSError."""
    for _ in range(20):
        host = f"127.{random.randint(64, 126)}.{random.randint(0, 255)}.{random.randint(1, 254)}"
        for port in (SSH_PORT, random.randint(20000, 32000)):
            with socket.socket() as trial:
                try:
                    trial.bind((host, port))
                    return host, port
                except OSError:
                    continue
    raise OSError("no free port on 127.64.0.0 to 127.126.255.255")


def _sshd_config(plan: Plan, host: str, port: int) -> list[str]:
    """Lines of sshd_config(5): nobody but this user gets in, with the order's key or one that is in the machine's own home."""
    keys = (f"{plan.disk}/authorized_keys", f"{plan.home}/.ssh/authorized_keys")
    variables = [f'"{name}={value}"' for name, value in environment(plan).items() if name in ("HOME", "PATH", fake_processes.MARK)]
    return [
        f"ListenAddress {host}:{port}",
        f'HostKey "{plan.disk}/host_key"',
        "AuthorizedKeysFile " + " ".join('"{}"'.format(path.replace("%", "%%")) for path in keys),
        f"AllowUsers {login()}",
        f"SetEnv {' '.join(variables)}",
        f"ForceCommand {LOGIN}",
        "PidFile none",
        # sshd without PAM lets nobody in whose password is locked, which root's often is; only root's sshd looks.
        f"UsePAM {'yes' if _is_locked() else 'no'}",
        "UseDNS no",
        "StrictModes no",
        "PasswordAuthentication no",
        "KbdInteractiveAuthentication no",
        "PermitRootLogin prohibit-password",
        "PrintMotd no",
        *(["PerSourcePenalties no"] if _version() >= (9, 8) else []),
    ]


def _is_locked() -> bool:
    """As sshd has it: the password in shadow(5), which only root can read, begins with ``!``."""
    try:
        with open("/etc/shadow", encoding="utf-8", errors="replace") as file:
            return any(line.startswith(f"{login()}:!") for line in file)
    except OSError:
        return False


def _version() -> tuple[int, int]:
    """sshd's version, (0, 0) where it does not tell.  ``-V`` is unknown before 9.2, but tells it all the same."""
    try:
        done = subprocess.run([sshd_program() or "sshd", "-V"], capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return (0, 0)
    major, _, rest = (done.stderr + done.stdout).partition("OpenSSH_")[2].partition(".")
    minor = "".join(character for character in rest[:2] if character.isdigit())
    return (int(major), int(minor)) if major.isdigit() and minor else (0, 0)
