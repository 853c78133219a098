"""Which cloud, and with which credentials: ``clouds.yaml`` in the user's configuration directory, else the environment.

::

    linode:                                  # as in --provider=linode; or any name, as in --cloud=NAME
      driver: linode                         # a compute driver of apache-libcloud; the entry's name where left out
      token: ...                             # or key and secret; openstack: see cloudtask.providers.openstack_config
      region: us-east                        # these are taken where no option says otherwise
      image: linode/debian12
      size: g6-standard-1
      endpoint: http://127.0.0.1:8080        # another address of the API
      timeout: 20                            # seconds that one request may take
      cacert: /etc/ssl/our-own.pem           # who signed the API's certificate
      options: {project: render}             # more words for the driver itself
      create: {ex_firewall_group_id: 7}      # and for each machine that it makes

The file holds credentials, so nobody else may read or write it.
"""

from __future__ import annotations

import difflib
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from cloudtask.errors import UsageError
from cloudtask.providers.libcloud_names import DRIVERS
from cloudtask.settings import Settings

TIMEOUT = 20.0
"""Seconds that a request may take, where nothing else is said."""

TOKENS = {
    "digitalocean": ("DIGITALOCEAN_TOKEN", "DIGITALOCEAN_ACCESS_TOKEN"),
    "linode": ("LINODE_TOKEN", "LINODE_CLI_TOKEN"),
    "vultr": ("VULTR_API_KEY",),
}
"""The variables that hold a driver's token, those of the cloud's own tools."""

_GENERAL = ("driver", "token", "key", "secret", "region", "image", "size", "network", "endpoint", "timeout", "cacert", "options", "create")
_OPENSTACK = (
    "auth_url", "username", "password", "project", "user_domain", "project_domain_id", "application_credential_id",
    "application_credential_secret", "os_cloud", "security_groups",
)  # fmt: skip
_SECRET_WORDS = ("key", "secret", "token", "password", "credential")
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True, kw_only=True)
class Cloud:
    """An entry of the file with the settings laid over it.  ``provider`` is what the user calls it, in messages; no credential is shown.

    ``text`` holds the entry's other values that are words, ``options`` and ``create`` words for the driver and for each machine.
    """

    provider: str
    driver: str
    place: str
    region: str | None = None
    image: str | None = None
    size: str | None = None
    network: str | None = None
    endpoint: str | None = None
    cacert: str | None = None
    timeout: float = TIMEOUT
    security_groups: tuple[str, ...] = ()
    text: Mapping[str, str] = field(default_factory=dict, repr=False)
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    create: Mapping[str, Any] = field(default_factory=dict, repr=False)
    secrets: tuple[str, ...] = field(default=(), repr=False)

    def error(self, message: str) -> UsageError:
        """An error about what the user said of this cloud."""
        return UsageError(f"{self.provider}: {message}")


def read_cloud(settings: Settings, provider: str, environ: Mapping[str, str]) -> Cloud:
    """The cloud that the settings mean, complete but for OpenStack's own variables.  Raises UsageError."""
    name = settings.extra.get("cloud") or provider
    path = settings.extra.get("libcloud_config") or default_path(environ)
    entries = _load(path) if os.path.lexists(path) else {}
    if name not in entries and (settings.extra.get("cloud") or provider == "libcloud"):
        known = ", ".join(sorted(entries)) or "none"
        raise UsageError(f"{provider}: no cloud {name!r} in {path} (there are: {known}); add it, or name one with --cloud")
    entry = _checked(entries.get(name), f"{path}: {name}")
    default = provider if provider in DRIVERS else name
    driver = str(entry.get("driver", default))
    if driver not in DRIVERS:
        raise UsageError(f"{path}: {name}: {driver!r} is no driver of apache-libcloud that we know{_nearest(driver, DRIVERS)}")
    if provider in DRIVERS and driver != provider:
        raise UsageError(f"{path}: {name}: its driver is {driver}: use --provider={driver}")
    return _cloud(settings, provider, f"{path}: {name}", {**entry, "driver": driver}, environ)


def default_path(environ: Mapping[str, str]) -> str:
    """Where the file is when no setting says so (XDG Base Directory Specification: a relative base is ignored)."""
    base = environ.get("XDG_CONFIG_HOME", "")
    return os.path.join(base if os.path.isabs(base) else os.path.expanduser("~/.config"), "cloudtask", "clouds.yaml")


def _cloud(settings: Settings, provider: str, place: str, entry: Mapping[str, Any], environ: Mapping[str, str]) -> Cloud:
    def said(name: str) -> str | None:
        found = settings.extra.get(f"cloud_{name}") or entry.get(name)
        return None if found is None else str(found)

    text = {key: str(value) for key, value in entry.items() if key not in ("options", "create", "security_groups", "timeout")}
    if not any(text.get(key) for key in ("token", "key")):
        text |= {"token": found} if (found := next(filter(None, map(environ.get, TOKENS.get(entry["driver"], ()))), None)) else {}
    options, create = entry.get("options", {}), entry.get("create", {})
    return Cloud(
        provider=provider,
        driver=entry["driver"],
        place=place,
        region=said("region"),
        image=said("image"),
        size=said("size"),
        network=said("network"),
        endpoint=_endpoint(text.get("endpoint"), place),
        cacert=_certificates(text.get("cacert"), place),
        timeout=float(entry.get("timeout", TIMEOUT)),
        security_groups=tuple(entry.get("security_groups", ())),
        text=text,
        options=options,
        create=create,
        secrets=tuple(secrets_of({**text, **options})),
    )


def secrets_of(values: Mapping[str, object]) -> list[str]:
    """The values that no message may show, judged by their names."""
    return [str(value) for key, value in values.items() if any(word in key for word in _SECRET_WORDS) and value]


def load_yaml(path: str, data: str) -> dict[str, Any]:
    """A mapping of a YAML text.  Raises UsageError that names the line and shows nothing of it: it may be a secret."""
    import yaml

    try:
        found = yaml.safe_load(data)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else path
        raise UsageError(f"{where}: this is no YAML: {getattr(error, 'problem', None) or 'unknown characters'}") from None
    if found is not None and not isinstance(found, dict):
        raise UsageError(f"{path}: must be a mapping, as in 'linode: {{token: ...}}'")
    return {str(key): value for key, value in (found or {}).items()}


def _load(path: str) -> dict[str, Any]:
    try:
        with open(path, encoding="utf-8") as file:
            status = os.fstat(file.fileno())
            if stat.S_ISREG(status.st_mode):
                _check_owner(path, status)
            return load_yaml(path, file.read())
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or 'it is no UTF-8'}") from None


def _check_owner(path: str, status: os.stat_result) -> None:
    if status.st_uid not in (0, os.geteuid()):
        raise UsageError(f"{path}: belongs to somebody else (uid {status.st_uid}), and holds credentials: use a file of your own")
    if status.st_mode & 0o077:
        mode = f"{status.st_mode & 0o777:04o}"
        raise UsageError(f"{path}: others may read or write it (mode {mode}), and it holds credentials: chmod 600 {path}")


def _checked(entry: object, place: str) -> dict[str, Any]:
    """An entry with its keys as we write them and its values of their types."""
    if not isinstance(entry, dict) and entry is not None:
        raise UsageError(f"{place}: must be a mapping, as in '{{driver: linode, token: ...}}'")
    found = {str(key).replace("-", "_"): value for key, value in (entry or {}).items() if value is not None}
    for key, value in found.items():
        if key not in (*_GENERAL, *_OPENSTACK):
            raise UsageError(f"{place}: there is no key {key!r}{_nearest(key, (*_GENERAL, *_OPENSTACK))}")
        if wrong := _wrong(key, value):
            raise UsageError(f"{place}: {key} {wrong}")
    return found


def _wrong(key: str, value: object) -> str:
    if key in ("options", "create"):
        words = isinstance(value, dict) and all(isinstance(each, str) for each in value)
        return "" if words else "must be a mapping"
    if key == "security_groups":
        return "" if isinstance(value, list) and all(isinstance(each, str) for each in value) else "must be a list of names"
    if key == "timeout":
        return "" if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value <= 60 else "must be 60 seconds at most"
    return "" if isinstance(value, (str, int)) and not isinstance(value, bool) else "must be a word; put quotes around it"


def _endpoint(url: str | None, place: str) -> str | None:
    """An address of the web.  Credentials travel there: without TLS to this machine only."""
    if url is None:
        return None
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host = None
    if not host or parts.scheme not in ("http", "https") or parts.username or parts.query or parts.fragment:
        raise UsageError(f"{place}: endpoint: not an address like https://api.example.org")
    if parts.scheme == "http" and host not in _LOOPBACK:
        raise UsageError(f"{place}: endpoint: must begin with https://: credentials would travel in clear")
    return url


def _certificates(path: str | None, place: str) -> str | None:
    found = os.path.expanduser(path) if path else None
    if found and not os.path.isfile(found):
        raise UsageError(f"{place}: cacert: no file {found}")
    return found


def _nearest(word: str, known: tuple[str, ...] | frozenset[str]) -> str:
    near = difflib.get_close_matches(word, sorted(known), n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else ""
