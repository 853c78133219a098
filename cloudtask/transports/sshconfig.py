"""What the user's ssh configuration says about a host.

``ssh -G`` knows best (Include, Match, ``exec``, canonical names, ...), so it is asked where there is an ssh; paramiko's reader of
configuration files is the second best.  Facts about ``ssh -G``, checked with OpenSSH 9.2:

* it prints ``user`` with the local user's name where none is configured, so the default is found out by a configuration of our own
  that ends in ``Host *``, ``User root``: the first value wins (ssh_config(5));
* ``identityfile``, ``certificatefile``, ``identityagent`` and ``proxycommand`` come with ``~`` and ``%`` tokens in them,
  ``userknownhostsfile`` comes expanded, several files separated by blanks and without quotes;
* ``ssh`` takes the home directory from the password database, not from HOME.
"""

from __future__ import annotations

import os
import pwd
import re
import shutil
import socket
import subprocess
import tempfile
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from cloudtask.errors import ConnectError, RefusedError
from cloudtask.model import Address

SYSTEM_CONFIG = "/etc/ssh/ssh_config"
DEFAULT_USER = "root"
DEFAULT_IDENTITIES = ("~/.ssh/id_ed25519", "~/.ssh/id_ecdsa", "~/.ssh/id_rsa")
_PATIENCE = 20.0
_GOOD_NAME = re.compile(r"[^\s\x00-\x1f\x7f'\"`$\\;&<>|(){}-][^\s\x00-\x1f\x7f'\"`$\\;&<>|(){}]*")

_GOOD_ALIAS = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}", re.ASCII)
"""Nothing that known_hosts files take for a pattern, a list or a digest."""
NAMELESS = "cloudtask-pinned"
"""The alias of a host key that has none: it is compared, and never looked up."""


class Hop(NamedTuple):
    """One jump host of ProxyJump, as the user wrote it."""

    host: str
    user: str | None
    port: int | None


@dataclass(frozen=True, kw_only=True)
class HostConfig:
    """What counts for one host, resolved.

    ``name`` is the host as the user named it, ``host`` the real one.  Paths have their tokens expanded.  ``strict`` is ``yes``,
    ``no``, ``ask`` or ``accept-new``.  ``agent`` is the path of the agent's socket, None for none.  ``algorithms`` are the
    allowed host key algorithms in order, empty for no opinion.  ``timeout`` is ConnectTimeout in seconds.  ``hosts_command`` says that
    KnownHostsCommand is set.

    ``host_key`` is the address's: the only key that counts.  ``pinned`` says that the host key goes by ``alias``, which is the address's
    then: what the user's configuration and files say about host keys is not asked, for the address may have been another machine's.
    """

    name: str
    host: str
    port: int
    user: str
    identities: tuple[str, ...] = ()
    identities_only: bool = False
    certificates: tuple[str, ...] = ()
    agent: str | None = None
    proxy_command: str | None = None
    jumps: tuple[Hop, ...] = ()
    alias: str | None = None
    pinned: bool = False
    host_key: str | None = None
    strict: str = "ask"
    user_known_hosts: tuple[str, ...] = ()
    global_known_hosts: tuple[str, ...] = ()
    hosts_command: bool = False
    algorithms: tuple[str, ...] = ()
    timeout: float | None = None
    config_file: str | None = field(default=None, compare=False)

    @property
    def login(self) -> str:
        """``user@host:port``, for messages."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.user}@{host}:{self.port}"


def resolve(address: Address, user: str | None, config_file: str | None) -> HostConfig:
    """What the configuration says about ``address``.

    The user to log in as: the address's, then ``user`` (a --user that was set), then ``User`` of the configuration, then root.
    Raises RefusedError for a name that cannot be one and for a configuration that ssh rejects.
    """
    check_name(address)
    if config_file is not None and config_file != "none" and not os.access(config_file, os.R_OK):
        raise RefusedError(f"{address}: the ssh configuration {config_file} cannot be read")
    wanted = address.user or user
    if wanted is not None and not _GOOD_NAME.fullmatch(wanted):
        raise RefusedError(f"{wanted!r} cannot be a user name")
    if shutil.which("ssh"):
        words = _ask_ssh(address, wanted or _configured_user(address, config_file), config_file)
    else:
        words = _read_files(address, wanted, config_file)
    return _pinned(_record(address, words, config_file), address)


def check_name(address: Address) -> None:
    """Refuses a host name that ssh, or the shell of a ProxyCommand, could take for something else."""
    if not _GOOD_NAME.fullmatch(address.host):
        raise RefusedError(f"{address.host!r} cannot be a host name")
    if address.alias is not None and not _GOOD_ALIAS.fullmatch(address.alias):
        raise RefusedError(f"{address.alias!r} cannot be the name of a host key")


def home() -> str:
    """The home directory that ssh uses: the password database's."""
    try:
        return pwd.getpwuid(os.getuid()).pw_dir
    except KeyError:
        return os.path.expanduser("~")


def config_arguments(config_file: str | None) -> list[str]:
    """The arguments that give ssh the same configuration."""
    return [] if config_file is None else ["-F", config_file]


# --- asking ssh ----------------------------------------------------------------------------------------------------------------


def _ask_ssh(address: Address, user: str | None, config_file: str | None) -> dict[str, list[str]]:
    command = ["ssh", "-G", *config_arguments(config_file)]
    if user is not None:
        command += ["-l", user]
    if address.port is not None:
        command += ["-p", str(address.port)]
    try:
        done = subprocess.run(
            [*command, "--", address.host], stdin=subprocess.DEVNULL, capture_output=True, timeout=_PATIENCE, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise ConnectError(f"{address}: `ssh -G` did not answer: look at `Match exec` in your ssh configuration") from error
    if done.returncode:
        complaint = " ".join(done.stderr.decode("utf-8", "replace").split())
        raise RefusedError(f"{address}: ssh rejects its configuration: {complaint}")
    words: dict[str, list[str]] = {}
    for line in done.stdout.decode("utf-8", "surrogateescape").splitlines():
        key, _, value = line.partition(" ")
        words.setdefault(key.lower(), []).append(value)
    return words


def _configured_user(address: Address, config_file: str | None) -> str:
    """``User`` of the configuration, else root."""
    own = config_file or os.path.join(home(), ".ssh", "config")
    with tempfile.NamedTemporaryFile("wb", prefix="cloudtask-ssh-config-") as file:
        if own != "none" and os.access(own, os.R_OK):
            with open(own, "rb") as source:
                file.write(source.read())
        if config_file is None and os.access(SYSTEM_CONFIG, os.R_OK):
            file.write(f"\nMatch all\nInclude {SYSTEM_CONFIG}\n".encode())
        file.write(f"\nHost *\nUser {DEFAULT_USER}\n".encode())
        file.flush()
        return _ask_ssh(address, None, file.name)["user"][0]


# --- the second best -----------------------------------------------------------------------------------------------------------


def _read_files(address: Address, user: str | None, config_file: str | None) -> dict[str, list[str]]:
    """The same words from paramiko's reader, for controllers without an ssh."""
    import paramiko

    text = "Host *\n" + (f"User {user}\n" if user else "") + (f"Port {address.port}\n" if address.port else "")
    for path in [config_file] if config_file else [os.path.join(home(), ".ssh", "config"), SYSTEM_CONFIG]:
        if path != "none" and os.access(path, os.R_OK):
            with open(path, encoding="utf-8", errors="surrogateescape") as file:
                text += "\nHost *\n" + file.read()
    text += f"\nHost *\nUser {DEFAULT_USER}\nPort 22\n"
    try:
        found: dict[str, object] = dict(paramiko.SSHConfig.from_text(text).lookup(address.host))
    except (paramiko.SSHException, ValueError, LookupError, ImportError, OSError) as error:  # ImportError: `Match exec` needs invoke
        raise RefusedError(f"{address}: the ssh configuration cannot be read: {error}") from error
    words = {key: list(value) if isinstance(value, list) else [str(value)] for key, value in found.items() if value is not None}
    words.setdefault("identityfile", list(DEFAULT_IDENTITIES))
    words.setdefault("userknownhostsfile", [f"{home()}/.ssh/known_hosts {home()}/.ssh/known_hosts2"])
    words.setdefault("globalknownhostsfile", ["/etc/ssh/ssh_known_hosts /etc/ssh/ssh_known_hosts2"])
    return words


# --- words to record -----------------------------------------------------------------------------------------------------------


def _record(address: Address, words: dict[str, list[str]], config_file: str | None) -> HostConfig:
    def one(key: str, default: str = "none") -> str:
        return words.get(key, [default])[0]

    def optional(key: str) -> str | None:
        value = one(key)
        return None if value.lower() == "none" else value

    user, host, port = one("user"), one("hostname", address.host), int(one("port", "22"))
    tokens = _tokens(address.host, host, port, user, optional("hostkeyalias"))
    return HostConfig(
        name=address.host,
        host=host,
        port=port,
        user=user,
        identities=tuple(expand(path, tokens) for path in words.get("identityfile", []) if path.lower() != "none"),
        identities_only=one("identitiesonly", "no") in ("yes", "true"),
        certificates=tuple(expand(path, tokens) for path in words.get("certificatefile", []) if path.lower() != "none"),
        agent=_agent(one("identityagent", "SSH_AUTH_SOCK"), tokens),
        proxy_command=_substitute(command, tokens) if (command := optional("proxycommand")) else None,
        jumps=_hops(optional("proxyjump")),
        alias=optional("hostkeyalias"),
        strict={"true": "yes", "false": "no", "off": "no"}.get(one("stricthostkeychecking", "ask"), one("stricthostkeychecking", "ask")),
        user_known_hosts=_files(one("userknownhostsfile"), tokens),
        global_known_hosts=_files(one("globalknownhostsfile"), tokens),
        hosts_command=optional("knownhostscommand") is not None,
        algorithms=tuple(word for word in one("hostkeyalgorithms", "").split(",") if word),
        timeout=float(one("connecttimeout")) if one("connecttimeout").isdigit() else None,
        config_file=config_file,
    )


def _pinned(config: HostConfig, address: Address) -> HostConfig:
    """The same, with the host key that the address names, or the alias that it goes by, in the place of the user's files."""
    if address.alias is None and address.host_key is None:
        return config
    return replace(
        config,
        alias=(address.alias or NAMELESS).lower(),
        pinned=True,
        host_key=address.host_key,
        strict="accept-new",
        user_known_hosts=(),
        global_known_hosts=(),
        algorithms=() if address.host_key else config.algorithms,
    )


def _tokens(name: str, host: str, port: int, user: str, alias: str | None) -> dict[str, str]:
    """The ``%`` tokens of ssh_config(5) that can stand in paths and proxy commands (``%C`` and ``%j`` need what we do not have)."""
    here = socket.gethostname()
    return {
        "%": "%", "d": home(), "h": host, "i": str(os.getuid()), "k": alias or name, "l": here, "L": here.split(".")[0],
        "n": name, "p": str(port), "r": user, "u": _local_user(),
    }  # fmt: skip


def _local_user() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def expand(path: str, tokens: dict[str, str]) -> str:
    """A path with ``~``, ``${NAME}`` and ``%`` tokens expanded as ssh does; unknown ones stay."""
    path = re.sub(r"\$\{(\w+)\}", lambda match: os.environ.get(match[1], match[0]), path)
    path = _substitute(path, tokens)
    if path == "~" or path.startswith("~/"):
        return home() + path[1:]
    return os.path.expanduser(path)


def _files(value: str, tokens: dict[str, str]) -> tuple[str, ...]:
    """Several paths in one value.  Quotes are lost by then, so a new path begins where a blank is followed by ``/``, ``~`` or ``%``."""
    if value.lower() == "none":
        return ()
    return tuple(expand(path, tokens) for path in re.split(r" +(?=[/~%])", value.strip()) if path)


def _agent(value: str, tokens: dict[str, str]) -> str | None:
    if value == "SSH_AUTH_SOCK":
        return os.environ.get("SSH_AUTH_SOCK") or None
    if value.lower() == "none":
        return None
    if value.startswith("$") and not value.startswith("${"):
        return os.environ.get(value[1:]) or None
    return expand(value, tokens)


def expand_tokens(command: str, config: HostConfig) -> str:
    """A ProxyCommand with its ``%`` tokens put in, as ssh does."""
    return _substitute(command, _tokens(config.name, config.host, config.port, config.user, config.alias))


def _substitute(text: str, tokens: dict[str, str]) -> str:
    return re.sub(r"%(.)", lambda match: tokens.get(match[1], match[0]), text)


def _hops(value: str | None) -> tuple[Hop, ...]:
    """``user@host:port,host2`` or ``ssh://user@host:port``, in the order in which they are passed."""
    return () if value is None else tuple(_hop(word.strip()) for word in value.split(","))


def _hop(word: str) -> Hop:
    user, _, rest = word.removeprefix("ssh://").rstrip("/").rpartition("@")
    match = re.fullmatch(r"\[(?P<six>[^]]+)\](?::(?P<port>\d+))?|(?P<host>[^:]+)(?::(?P<port2>\d+))?|(?P<bare>.+)", rest)
    if match is None:
        raise RefusedError(f"ProxyJump {word!r} cannot be read")
    port = match["port"] or match["port2"]
    return Hop(match["six"] or match["host"] or match["bare"], user or None, int(port) if port else None)
